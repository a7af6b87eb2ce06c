import { containerPath } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { table } from '../table.js'

const help = {
  usage: 'top CONTAINER [PS OPTIONS]',
  summary: 'Shows the processes that run in a container.',
  options: (yargs) => yargs,
  examples: [
    ['top web', 'all of them, as ps -ef does'],
    ['top web aux', 'with what they use'],
    ['top web -o pid,comm', 'these columns'],
  ],
  words: [1, 64],
  halt: true,
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const [name = '', ...ps] = options._
  return withClient(invocation, async (client) => {
    const query = ps.length > 0 ? `?${new URLSearchParams({ ps_args: ps.join(' ') }).toString()}` : ''
    const { Titles, Processes } = await client.json<{ Titles: string[]; Processes: string[][] }>(
      'GET',
      containerPath(name, 'top') + query,
    )
    process.stdout.write(table([Titles, ...Processes]))
    return 0
  })
}
