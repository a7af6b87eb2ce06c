import { containerPath } from '../client.js'
import { forEach, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'start CONTAINER...',
  summary: 'Starts containers in the background.',
  options: (yargs) => yargs,
  examples: [['start job', 'start a container that was created or has ended']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, (client) =>
    forEach(options._, async (name) => {
      await client.json('POST', containerPath(name, 'start'))
      return name
    }),
  )
}
