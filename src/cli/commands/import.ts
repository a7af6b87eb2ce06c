import { createInterface } from 'node:readline'
import { CoracleError } from '../../errors.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { newImageOptions, newImageQuery } from '../new-image.js'
import { PLATFORM } from '../platform.js'
import { openArchive } from '../open-archive.js'

const help = {
  usage: 'import [OPTIONS] FILE|- [NAME[:TAG]]',
  summary: 'Makes an image of one layer from the files in a tar, as it is or compressed.',
  options: (yargs) => newImageOptions(yargs).option('platform', PLATFORM),
  examples: [
    ['import rootfs.tar.xz mine:1', 'from a file'],
    ['import -c \'CMD ["sh"]\' - mine <rootfs.tar', 'from stdin, with a command'],
  ],
  words: [1, 2],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const [file, name] = options._
  const upload = await openArchive(file === '-' ? undefined : file, 'name a FILE')
  return withClient(invocation, async (client) => {
    const response = await client.stream('POST', '/images/create', {
      query: {
        fromSrc: '-',
        message: options.message,
        platform: options.platform,
        ...newImageQuery(name, options),
      },
      upload,
    })
    for await (const line of createInterface(response)) {
      const { status, error } = JSON.parse(line) as { status?: string; error?: string }
      if (error !== undefined) throw new CoracleError('IMAGE_ARCHIVE', error)
      process.stdout.write(`${status ?? ''}\n`)
    }
    return 0
  })
}
