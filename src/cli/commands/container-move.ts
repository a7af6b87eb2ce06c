import { Transform, type Readable, type TransformCallback } from 'node:stream'
import { CoracleError, type ErrorCode } from '../../errors.js'
import { type Client, connect, containerPath, imagePath } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { findContext } from '../contexts.js'
import { showSize } from '../size.js'

const help = {
  usage: 'container move --to CONTEXT CONTAINER',
  summary:
    'Moves a running container to another daemon, with its memory, processes and files: it stands still here, is made\n' +
    'ready there under its name and with its ports, is removed here, and goes on there. Where anything fails it goes on\n' +
    'here, and nothing of it is there. It never runs twice: where this command is killed over it, the same command once\n' +
    'more ends the move. Its id and addresses are new, so what was connected is cut. MicroVMs on kvm only, without\n' +
    'volumes or devices of the host, between hosts of one kernel, processor and build; the networks that it is on have\n' +
    'to be there by name. Its image is sent where it is missing.',
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

/** Digits of an id that nobody gives as a name. */
const SHORT_ID = 12
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

/** A container that stands still there until it is known that it is gone here. */
interface Arrived {
  readonly Id: string
  readonly Name: string
  readonly Move: string
  /** Its id here. */
  readonly Container: string
}

/** @param word what the user calls it @returns its id there */
async function move(here: Client, there: Client, word: string): Promise<string> {
  const earlier = await finishEarlier(here, there, word)
  if (earlier !== undefined) return earlier
  const { Id, Image, Config } = await here.json<Inspected>('GET', containerPath(word, 'json'))
  const ends = new AbortController()
  try {
    await sendImage(here, there, Image, Config.Image)
    const sent = await here.stream('POST', `/coracle${containerPath(Id)}/move`, { signal: ends.signal })
    const upload = sent.pipe(new Progress(word))
    sent.on('error', (error) => upload.destroy(error))
    const made = await there.json<{ Id: string; Warnings?: string[] }>('POST', '/coracle/moves', {
      upload,
      headers: { 'Content-Type': 'application/vnd.coracle.move' },
      signal: ends.signal,
    })
    await give(here, there, String(sent.headers['coracle-move']), made.Id)
    await goOn(there, made.Id)
    upload.done()
    for (const warning of made.Warnings ?? []) process.stderr.write(`coracle: ${warning}\n`)
    return made.Id
  } finally {
    // At the end of the connection the container goes on here, unless it was given away.
    ends.abort()
  }
}

/**
 * Ends an earlier move of it, whose command was killed over it.
 * @returns its id there, where it had been given away; undefined where it is still to move
 */
async function finishEarlier(here: Client, there: Client, word: string): Promise<string | undefined> {
  const arrived = await there.json<Arrived[]>('GET', '/coracle/moves')
  const named = arrived.filter(
    ({ Name, Container }) => Name === word || (word.length >= SHORT_ID && Container.startsWith(word)),
  )
  for (const { Id, Move, Container } of named) {
    // Asked in this order: one that arrived, and that nobody gives away any more, never will be.
    const { State } = await here.json<{ State: string }>('GET', `/coracle/moves/${Move}`)
    if (State === 'given') {
      await goOn(there, Id)
      return Id
    }
    if (State === 'unknown' && (await exists(here, containerPath(Container, 'json'), 'NO_SUCH_CONTAINER')))
      await remove(there, Id)
  }
  return undefined
}

/** @param missing how the API answers where it is not there */
async function exists(client: Client, path: string, missing: ErrorCode): Promise<boolean> {
  try {
    await client.json('GET', path)
    return true
  } catch (error) {
    if (error instanceof CoracleError && error.code === missing) return false
    throw error
  }
}

/** Has it be the other daemon's. @param id there */
async function give(here: Client, there: Client, move: string, id: string): Promise<void> {
  try {
    await here.json('POST', `/coracle/moves/${move}/give`)
  } catch (error) {
    // Only a daemon's own word tells that it was not given away.
    if (error instanceof CoracleError && ['CONFLICT', 'NO_SUCH_CONTAINER'].includes(error.code)) {
      await remove(there, id)
      throw error
    }
    throw new CoracleError(
      'DAEMON_UNREACHABLE',
      `${(error as Error).message}: it has arrived and stands still there; run the same command again to find out whether it is gone here, and to have it go on`,
      { cause: error },
    )
  }
}

/** @param id there */
const goOn = (there: Client, id: string): Promise<void> => there.json('POST', containerPath(id, 'unpause'))

const remove = (there: Client, id: string): Promise<void> =>
  there.json('DELETE', containerPath(id), { query: { force: 1 } })

async function sendImage(here: Client, there: Client, id: string, name: string): Promise<void> {
  const has = (): Promise<boolean> => exists(there, imagePath(id, 'json'), 'NO_SUCH_IMAGE')
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
