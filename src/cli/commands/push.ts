import { CoracleError } from '../../errors.js'
import { familiarName, parseReference } from '../../image/reference.js'
import { CONTENT_TRUST, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { PLATFORM, platformQuery } from '../platform.js'
import { push } from '../registry.js'

const help = {
  usage: 'push [OPTIONS] NAME[:TAG]',
  summary: "Sends an image to the registry that its name begins with, else to Docker Hub: see 'coracle tag'.",
  options: (yargs) =>
    yargs
      .option('all-tags', { alias: 'a', type: 'boolean', describe: 'All tags of the name that are here' })
      .option('quiet', { alias: 'q', type: 'boolean', describe: 'Print the name alone' })
      .option('platform', PLATFORM),
  examples: [['push registry.example:5000/team/app:1', 'to another registry']],
  words: [1, 1],
  refused: CONTENT_TRUST,
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const name = options._[0]!
  const { repository, tag, digest } = parseReference(name)
  if (digest !== undefined)
    throw new CoracleError(
      'USAGE',
      `cannot push ${name}: a push has a tag, no digest. See 'coracle push --help'.`,
    )
  const platform = platformQuery(options.platform)
  const all = options['all-tags'] ?? false
  if (all && /:[^/]*$/.test(name))
    throw new CoracleError('USAGE', `--all-tags goes with a name without a tag. See 'coracle push --help'.`)
  return withClient(invocation, async (client) => {
    const manner = { quiet: options.quiet ?? false, to: process.stdout }
    await push(client, familiarName(repository), all ? '' : tag!, manner, platform)
    if (options.quiet) process.stdout.write(`${name}\n`)
    return 0
  })
}
