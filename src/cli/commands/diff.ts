import { containerPath } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'diff CONTAINER',
  summary: 'Shows which files a container changed (C), added (A) and deleted (D).',
  options: (yargs) => yargs,
  examples: [['diff web', 'what differs from its image']],
  words: [1, 1],
} satisfies CommandHelp<unknown>

const LETTERS = ['C', 'A', 'D']

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, async (client) => {
    const all = await client.json<{ Path: string; Kind: number }[]>(
      'GET',
      containerPath(options._[0]!, 'changes'),
    )
    process.stdout.write(all.map(({ Path, Kind }) => `${LETTERS[Kind]} ${Path}\n`).join(''))
    return 0
  })
}
