import { Transform, type Readable, type TransformCallback } from 'node:stream'
import { CoracleError } from '../../errors.js'
import { type Client, connect, containerPath, imagePath } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { findContext } from '../contexts.js'
import { showSize } from '../size.js'

const help = {
  usage: 'container move --to CONTEXT CONTAINER',
  summary:
    'Moves a running container to another daemon, with its memory, processes and files: it stands still here, goes on\n' +
    'there under its name and with its ports, and is removed here once it runs there. Where anything fails it goes on\n' +
    'here, and nothing of it is there. Its id and addresses are new, so what was connected is cut. MicroVMs on kvm\n' +
    'only, without volumes or devices of the host, between hosts of one kernel, processor and build; the networks\n' +
    'that it is on have to be there by name. Its image is sent where it is missing.',
  options: (yargs) =>
    yargs.option('to', {
      type: 'string',
      requiresArg: true,
      demandOption: true,
      describe: 'Where to: a context (coracle context ls)',
    }),
  examples: [['container move --to farm web', 'prints the id that it has there']],
  words: [1, 1],
} satisfies CommandHelp<unknown>

/** Milliseconds between two words on how far it is. */
const INTERVAL = 200

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const endpoint = findContext(options.to)
  const container = options._[0]!
  return withClient(invocation, async (here) => {
    const there = await connect(endpoint)
    try {
      process.stdout.write(`${await move(here, there, container)}\n`)
    } finally {
      there.close()
    }
    return 0
  })
}

interface Inspected {
  readonly Id: string
  readonly Image: string
  readonly Config: { readonly Image: string }
}

async function move(here: Client, there: Client, container: string): Promise<string> {
  const { Id, Image, Config } = await here.json<Inspected>('GET', containerPath(container, 'json'))
  const ends = new AbortController()
  try {
    await sendImage(here, there, Image, Config.Image)
    const sent = await here.stream('POST', `/coracle${containerPath(Id)}/move`, { signal: ends.signal })
    const upload = sent.pipe(new Progress(container))
    sent.on('error', (error) => upload.destroy(error))
    const made = await there.json<{ Id: string; Warnings?: string[] }>('POST', '/coracle/moves', {
      upload,
      headers: { 'Content-Type': 'application/vnd.coracle.move' },
      signal: ends.signal,
    })
    try {
      await here.json('DELETE', containerPath(Id), { query: { force: 1 } })
    } catch (error) {
      // Never two of it.
      await there.json('DELETE', containerPath(made.Id), { query: { force: 1 } })
      throw error
    }
    upload.done()
    for (const warning of made.Warnings ?? []) process.stderr.write(`coracle: ${warning}\n`)
    return made.Id
  } finally {
    // At the end of the connection the container goes on here, if it is still here.
    ends.abort()
  }
}

async function sendImage(here: Client, there: Client, id: string, name: string): Promise<void> {
  const has = async (): Promise<boolean> => {
    try {
      await there.json('GET', imagePath(id, 'json'))
      return true
    } catch (error) {
      if (error instanceof CoracleError && error.code === 'NO_SUCH_IMAGE') return false
      throw error
    }
  }
  if (await has()) return
  process.stderr.write(`coracle: sending the image ${name}…\n`)
  const names = (await here.json<{ RepoTags: string[] }>('GET', imagePath(id, 'json'))).RepoTags
  const upload: Readable = await here.stream('GET', '/images/get', { query: { names: names[0] ?? id } })
  const said = await there.stream('POST', '/images/load', { upload })
  for await (const _ of said) continue
  if (!(await has()))
    throw new CoracleError(
      'NO_SUCH_IMAGE',
      `the image ${name} did not arrive as it is here: load it there first`,
    )
}

/** Says on a terminal how much has passed. */
class Progress extends Transform {
  readonly #name: string
  #bytes = 0
  #said = 0

  constructor(name: string) {
    super()
    this.#name = name
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, pass: TransformCallback): void {
    this.#bytes += chunk.length
    if (process.stderr.isTTY && Date.now() - this.#said >= INTERVAL) {
      this.#said = Date.now()
      process.stderr.write(`\r\x1b[K${this.#name}: ${showSize(this.#bytes)} sent`)
    }
    pass(undefined, chunk)
  }

  done(): void {
    if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${this.#name}: ${showSize(this.#bytes)} moved\n`)
  }
}
