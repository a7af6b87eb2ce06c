import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { PLATFORM } from '../container-options.js'
import { pull } from '../registry.js'

const help = {
  usage: 'pull [OPTIONS] NAME[:TAG|@DIGEST]',
  summary: 'Fetches an image from a registry: Docker Hub, or the one that the name begins with.',
  options: (yargs) =>
    yargs
      .option('quiet', { alias: 'q', type: 'boolean', describe: 'Print the name alone' })
      .option('platform', PLATFORM),
  examples: [
    ['pull debian:12', 'from Docker Hub'],
    ['pull registry.example:5000/team/app', 'from another registry'],
  ],
  words: [1, 1],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const name = options._[0]!
  return withClient(invocation, async (client) => {
    await pull(client, name, { quiet: options.quiet ?? false, to: process.stdout }, options.platform)
    if (options.quiet) process.stdout.write(`${name}\n`)
    return 0
  })
}
