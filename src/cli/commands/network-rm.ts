import { networkPath } from '../client.js'
import { forEach, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'network rm NETWORK...',
  summary: 'Removes networks that no running container is on.',
  options: (yargs) => yargs,
  examples: [['network rm back', 'by its name']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, (client) =>
    forEach(options._, async (name) => {
      await client.json('DELETE', networkPath(name))
      return name
    }),
  )
}
