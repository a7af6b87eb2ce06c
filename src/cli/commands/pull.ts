import { CoracleError } from '../../errors.js'
import { CONTENT_TRUST, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { PLATFORM } from '../platform.js'
import { isTagged, pull } from '../registry.js'

const help = {
  usage: 'pull [OPTIONS] NAME[:TAG|@DIGEST]',
  summary: 'Fetches an image from a registry: Docker Hub, or the one that the name begins with.',
  options: (yargs) =>
    yargs
      .option('all-tags', { alias: 'a', type: 'boolean', describe: 'All that the registry has of the name' })
      .option('quiet', { alias: 'q', type: 'boolean', describe: 'Print the name alone' })
      .option('platform', PLATFORM),
  examples: [
    ['pull debian:12', 'from Docker Hub'],
    ['pull registry.example:5000/team/app', 'from another registry'],
  ],
  words: [1, 1],
  refused: CONTENT_TRUST,
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const name = options._[0]!
  const all = options['all-tags'] ?? false
  if (all && isTagged(name))
    throw new CoracleError('USAGE', '--all-tags goes with a name without a tag or digest')
  return withClient(invocation, async (client) => {
    const manner = { quiet: options.quiet ?? false, to: process.stdout }
    await pull(client, name, manner, options.platform, all)
    if (options.quiet) process.stdout.write(`${name}\n`)
    return 0
  })
}
