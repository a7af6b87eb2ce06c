import { containerPath } from '../client.js'
import { forEach, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'stop [OPTIONS] CONTAINER...',
  summary: 'Stops containers: their stop signal, and SIGKILL when that did not help in time.',
  options: (yargs) =>
    yargs.option('time', {
      alias: 't',
      type: 'string',
      requiresArg: true,
      describe: 'Seconds to wait before SIGKILL (10)',
    }),
  examples: [['stop -t 2 web', 'wait two seconds']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, (client) =>
    forEach(options._, async (name) => {
      await client.json('POST', containerPath(name, 'stop'), { query: { t: options.time } })
      return name
    }),
  )
}
