import { createInterface } from 'node:readline'
import { CoracleError } from '../../errors.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { openArchive } from '../open-archive.js'
import { PLATFORM, platformQuery } from '../platform.js'
import { showSize } from '../size.js'

const help = {
  usage: 'load [OPTIONS]',
  summary: 'Loads images from an archive (docker save, or an OCI layout in a tar), as it is or compressed.',
  options: (yargs) =>
    yargs
      .option('input', { alias: 'i', type: 'string', requiresArg: true, describe: 'The archive; else stdin' })
      .option('quiet', { alias: 'q', type: 'boolean', describe: 'No progress' })
      .option('platform', PLATFORM),
  examples: [['load -i debian.tar', 'from a file']],
  words: [0, 0],
} satisfies CommandHelp<unknown>

/** Nothing is said of a load that takes less, in ms. */
const SOON = 1000

interface Message {
  readonly stream?: string
  readonly error?: string
  readonly status?: string
  readonly id?: string
  readonly progressDetail?: { readonly current?: number; readonly total?: number }
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const platform = platformQuery(options.platform)
  const upload = await openArchive(options.input, 'use -i FILE')
  return withClient(invocation, async (client) => {
    const response = await client.stream('POST', '/images/load', {
      query: { quiet: options.quiet ? 1 : 0, platform },
      upload,
    })
    const progress = new Progress()
    for await (const line of createInterface(response)) {
      if (line.trim() === '') continue
      const message = JSON.parse(line) as Message
      if (message.error !== undefined) {
        progress.clear()
        throw new CoracleError('IMAGE_ARCHIVE', message.error)
      }
      if (message.stream !== undefined) {
        progress.clear()
        process.stdout.write(message.stream)
      } else progress.show(message)
    }
    return 0
  })
}

/** One line on a terminal's stderr that is written over. */
class Progress {
  readonly #from = Date.now()
  #shown = 0

  show({ status, id, progressDetail: { current = 0, total } = {} }: Message): void {
    const now = Date.now()
    if (!process.stderr.isTTY || now - this.#from < SOON || now - this.#shown < 100) return
    this.#shown = now
    const of = total === undefined ? '' : ` of ${showSize(total)}`
    process.stderr.write(`\r\x1b[K${status} ${id} ${showSize(current)}${of}`)
  }

  clear(): void {
    if (this.#shown > 0) process.stderr.write('\r\x1b[K')
    this.#shown = 0
  }
}
