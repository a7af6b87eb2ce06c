import { containerPath } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { telling } from './snapshot.js'

const help = {
  usage: 'clone [OPTIONS] CONTAINER',
  summary:
    'Starts a copy of a running container, memory, processes and files: both go on from the same place, the copy under\n' +
    'a name, addresses and an identity of its own. MicroVMs on kvm only. Published ports stay with the first.',
  options: (yargs) =>
    yargs.option('name', { type: 'string', requiresArg: true, describe: 'Name of the copy' }),
  examples: [
    ['clone web', 'prints the id of the copy'],
    ['clone --name web2 web; coracle logs web2', 'what the copy says from then on'],
  ],
  words: [1, 1],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const container = options._[0]!
  return withClient(invocation, async (client) => {
    const { Id, Warnings } = await telling(`saving ${container}, which stands still meanwhile…`, () =>
      client.json<{ Id: string; Warnings?: string[] }>('POST', `/coracle${containerPath(container)}/clone`, {
        query: { name: options.name },
      }),
    )
    for (const warning of Warnings ?? []) process.stderr.write(`coracle: ${warning}\n`)
    process.stdout.write(`${Id}\n`)
    return 0
  })
}
