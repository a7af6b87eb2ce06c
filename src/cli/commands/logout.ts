import { Credentials } from '../../image/registry/credentials.js'
import { serverName } from '../../image/registry/registry.js'
import { parseOptions, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'logout [SERVER]',
  summary: 'Forgets the credentials for a registry, Docker Hub when none is named.',
  options: (yargs) => yargs,
  examples: [['logout registry.example:5000', 'one registry']],
  words: [0, 1],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const server = serverName(options._[0] ?? '')
  const known = await new Credentials().erase(server)
  process.stdout.write(known ? `Removed the login for ${server}\n` : `Not logged in to ${server}\n`)
  return 0
}
