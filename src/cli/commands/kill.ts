import { containerPath } from '../client.js'
import { forEach, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'kill [OPTIONS] CONTAINER...',
  summary: 'Sends a signal to the first process of containers.',
  options: (yargs) =>
    yargs.option('signal', {
      alias: 's',
      type: 'string',
      requiresArg: true,
      default: 'KILL',
      describe: 'Name or number',
    }),
  examples: [['kill -s HUP web', 'let a server read its configuration again']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, (client) =>
    forEach(options._, async (name) => {
      await client.json('POST', containerPath(name, 'kill'), { query: { signal: options.signal } })
      return name
    }),
  )
}
