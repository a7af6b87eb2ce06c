import { createWriteStream } from 'node:fs'
import { pipeline } from 'node:stream/promises'
import { CoracleError } from '../../errors.js'
import { containerPath } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'export [OPTIONS] CONTAINER',
  summary: "Writes a container's whole root file system as a tar.",
  options: (yargs) =>
    yargs.option('output', { alias: 'o', type: 'string', requiresArg: true, describe: 'A file, not stdout' }),
  examples: [['export -o web.tar web', 'into a file']],
  words: [1, 1],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  if (options.output === undefined && process.stdout.isTTY)
    throw new CoracleError('USAGE', 'a tar is not for a terminal: use -o FILE, or redirect stdout')
  return withClient(invocation, async (client) => {
    const tar = await client.stream('GET', containerPath(options._[0]!, 'export'))
    if (options.output === undefined) await pipeline(tar, process.stdout, { end: false })
    else await pipeline(tar, createWriteStream(options.output))
    return 0
  })
}
