import { containerPath } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'rename CONTAINER NAME',
  summary: 'Gives a container another name.',
  options: (yargs) => yargs,
  examples: [['rename web web-old', 'the name web is free then']],
  words: [2, 2],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, async (client) => {
    await client.json('POST', containerPath(options._[0]!, 'rename'), { query: { name: options._[1]! } })
    return 0
  })
}
