import { createWriteStream } from 'node:fs'
import { pipeline } from 'node:stream/promises'
import { CoracleError } from '../../errors.js'
import { PLATFORM, platformQuery } from '../platform.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'save [OPTIONS] IMAGE...',
  summary: 'Writes images with their names as an archive, as load takes it.',
  options: (yargs) =>
    yargs
      .option('output', { alias: 'o', type: 'string', requiresArg: true, describe: 'A file, not stdout' })
      .option('platform', PLATFORM),
  examples: [
    ['save -o app.tar app:2', 'into a file'],
    ['save app | ssh other coracle load', 'to another machine'],
  ],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  if (options.output === undefined && process.stdout.isTTY)
    throw new CoracleError('USAGE', 'an archive is not for a terminal: use -o FILE, or redirect stdout')
  const platform = platformQuery(options.platform)
  return withClient(invocation, async (client) => {
    const archive = await client.stream('GET', '/images/get', {
      query: { names: options._.join(','), platform },
    })
    if (options.output === undefined) await pipeline(archive, process.stdout, { end: false })
    else await pipeline(archive, createWriteStream(options.output))
    return 0
  })
}
