import { closeSync, openSync, writeSync } from 'node:fs'
import type { Duplex } from 'node:stream'
import { constants } from 'node:os'
import { parseDetachKeys } from '../../engine/detach-keys.js'
import { CoracleError } from '../../errors.js'
import { containerPath, type Client } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import {
  choose,
  CONTAINER_REFUSED,
  type ContainerOptions,
  containerOptions,
  createBody,
  NO_STREAMS,
  type Streams,
  streamsOf,
} from '../container-options.js'
import { closeInput, copyInput, copyOutput, DETACH_KEYS, ownTerminal } from '../session.js'

const help = {
  usage: 'run [OPTIONS] IMAGE [COMMAND] [ARGUMENT...]',
  summary: 'Creates a container from an image and runs it.',
  options: (yargs) =>
    containerOptions(yargs)
      .option('detach', { alias: 'd', type: 'boolean', describe: 'Print the id and leave it running' })
      .option('detach-keys', DETACH_KEYS)
      .option('sig-proxy', SIG_PROXY),
  examples: [
    ['run --rm busybox uname -r', "the guest's kernel"],
    ['run --rm -it busybox', 'a shell; ctrl-p ctrl-q leaves it running'],
    ['run -d --name web -m 256m busybox httpd -f', 'in the background'],
    ['run --rm --isolation process busybox uname -r', 'without a virtual machine'],
    ['run --rm --cold busybox date', 'booted, in place of cloned from a booted guest'],
    ['run -d --from ready', 'goes on from a snapshot: coracle snapshot --help'],
    ['run --rm --security-opt seccomp=unconfined busybox unshare -U id', 'with every system call'],
    ['run --rm --device sriov=eth0,ip=10.0.0.2/24 busybox ip a', 'with a virtual function of eth0'],
    ['run --rm --device pci=0000:01:10.0 busybox ls /sys/class/net', 'with a PCI device of the host'],
  ],
  words: [0, Infinity],
  halt: true,
  refused: CONTAINER_REFUSED,
} satisfies CommandHelp<unknown>

/** The option of all that waits for a container. */
export const SIG_PROXY = {
  type: 'boolean',
  default: true,
  describe: 'Pass signals on to the container; else they end this command alone',
} as const

/** Signals that are the container's to handle. */
const PROXIED = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2', 'SIGCONT'] as const
/** So many SIGINT or SIGTERM, and we go without an answer. */
const IMPATIENCE = 3

interface Waited {
  readonly StatusCode: number
  readonly Error?: { readonly Message: string } | null
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const { interactive = false, tty = false, detach = false } = options
  if (tty && interactive && !detach && !process.stdin.isTTY)
    throw new CoracleError('USAGE', 'the input device is not a terminal: leave out -t')
  const manner = mannerOf(options)
  const keys = detachKeys(options['detach-keys'])
  if (detach && options.attach)
    throw new CoracleError('USAGE', '-a joins a container that -d leaves: give one')
  const streams = detach ? NO_STREAMS : streamsOf(options)
  const body = createBody(options, options._, streams)
  return withClient(invocation, async (client) => {
    const id = await create(client, body, manner)
    if (detach) {
      await client.json('POST', containerPath(id, 'start'))
      process.stdout.write(`${id}\n`)
      return 0
    }
    const { rm: autoRemove = false, 'sig-proxy': proxy } = options
    if (!streams.stdout && !streams.stderr) process.stdout.write(`${id}\n`)
    return runAttached(client, id, { streams, tty, autoRemove, keys, proxy })
  })
}

/** What `--detach-keys` says. @throws CoracleError USAGE */
export function detachKeys(text: string | undefined): DetachSequence {
  try {
    return { text, bytes: parseDetachKeys(text) }
  } catch (error) {
    throw new CoracleError('USAGE', `--detach-keys: ${(error as Error).message}`)
  }
}

/** Keys that leave a terminal: as given, for the API, and as they arrive. */
export interface DetachSequence {
  readonly text: string | undefined
  readonly bytes: Buffer
}

/** When an image is fetched before a container is created from it. */
type PullPolicy = 'missing' | 'always' | 'never'

interface CreateManner {
  readonly name: string | undefined
  readonly policy: PullPolicy
  readonly quiet: boolean
  readonly platform: string | undefined
  readonly idFile: string | undefined
}

/** How `run` and `create` create. @throws CoracleError USAGE */
export const mannerOf = (options: ContainerOptions): CreateManner => ({
  name: options.name,
  policy: (choose('--pull', options.pull, ['missing', 'always', 'never']) ?? 'missing') as PullPolicy,
  quiet: options.quiet ?? false,
  platform: options.platform,
  idFile: options.cidfile,
})

/** Creates a container, fetches its image where that is wanted, and tells the engine's warnings. @returns its id */
export async function create(
  client: Client,
  body: { readonly Image: string },
  { name, policy, quiet, platform, idFile }: CreateManner,
): Promise<string> {
  // Before there is a container that nobody could find.
  const file = idFile === undefined ? undefined : newFile(idFile)
  const post = (): Promise<{ Id: string; Warnings?: string[] | null }> =>
    client.json('POST', '/containers/create', { query: { name, platform }, body })
  const fetchImage = (): Promise<void> => pullFor(client, body.Image, quiet, platform)
  if (policy === 'always') await fetchImage()
  const { Id, Warnings } = await post().catch(async (error: unknown) => {
    if (!(error instanceof CoracleError && error.code === 'NO_SUCH_IMAGE' && policy === 'missing'))
      throw error
    if (!quiet) process.stderr.write(`coracle: image ${body.Image} is not here: pulling it\n`)
    await fetchImage()
    return post()
  })
  for (const warning of Warnings ?? []) process.stderr.write(`coracle: ${warning}\n`)
  if (file !== undefined) {
    writeSync(file, Id)
    closeSync(file)
  }
  return Id
}

/** @throws CoracleError USAGE where it is there already, or cannot be made */
function newFile(path: string): number {
  try {
    return openSync(path, 'wx', 0o644)
  } catch (error) {
    throw new CoracleError(
      'USAGE',
      `--cidfile: cannot make ${path} (${(error as NodeJS.ErrnoException).code})`,
    )
  }
}

/** Pulls on stderr, since stdout is the container's. @throws CoracleError NO_SUCH_IMAGE where that fails */
async function pullFor(client: Client, name: string, quiet: boolean, platform?: string): Promise<void> {
  const { pull } = await import('../registry.js')
  try {
    await pull(client, name, { quiet, to: process.stderr }, platform)
  } catch (error) {
    if (!(error instanceof CoracleError) || error.code === 'DAEMON_UNREACHABLE') throw error
    throw new CoracleError('NO_SUCH_IMAGE', `cannot pull image ${name}: ${error.message}`, { cause: error })
  }
}

interface Manner {
  readonly streams: Streams
  readonly tty: boolean
  /** It is this command's own, and goes with it. */
  readonly autoRemove: boolean
  readonly keys: DetachSequence
  /** Signals are passed on. */
  readonly proxy: boolean
  /** It was there before this command, which must not take it away. */
  readonly existing?: 'to start' | 'running'
}

/** Joins a container's streams, starts it where it is to be started, and waits for its end. @returns the exit status */
export async function runAttached(
  client: Client,
  id: string,
  { streams, tty, autoRemove, keys, proxy, existing }: Manner,
): Promise<number> {
  using signals = proxy ? new SignalProxy(client, id, existing !== undefined) : undefined
  const { socket, multiplexed } = await client.hijack(containerPath(id, 'attach'), {
    stream: 1,
    stdin: streams.stdin ? 1 : 0,
    stdout: streams.stdout ? 1 : 0,
    stderr: streams.stderr ? 1 : 0,
    detachKeys: keys.text,
  })
  const waiting = await client.stream('POST', containerPath(id, 'wait'), {
    query: { condition: existing === 'running' ? 'not-running' : autoRemove ? 'removed' : 'next-exit' },
  })
  const exited = readJson<Waited>(waiting)
  exited.catch(() => undefined)
  const output = copyOutput(socket, multiplexed)
  onBrokenPipe(client, id, socket, autoRemove)
  try {
    if (existing !== 'running') await client.json('POST', containerPath(id, 'start'))
  } catch (error) {
    socket.destroy()
    // Docker leaves a container that could not start, unless it is to remove itself.
    if (autoRemove)
      await client.json('DELETE', containerPath(id), { query: { force: 1 } }).catch(() => undefined)
    throw error
  }
  signals?.started()
  let detached = false
  const restore = tty ? ownTerminal(client, containerPath(id), streams.stdin) : undefined
  try {
    const leave = (): void => ((detached = true), void socket.destroy())
    if (streams.stdin)
      copyInput(socket, tty && process.stdin.isTTY ? { keys: keys.bytes, then: leave } : undefined)
    await output
    if (detached) return 0
    const { StatusCode, Error: failure } = await exited
    if (failure) process.stderr.write(`coracle: ${failure.Message}\n`)
    return StatusCode
  } finally {
    restore?.()
    closeInput(socket)
  }
}

/** Nobody reads the output any more: a container that is ours alone ends with us, as a program in a pipe would. */
function onBrokenPipe(client: Client, id: string, socket: Duplex, autoRemove: boolean): void {
  process.stdout.removeAllListeners('error')
  process.stdout.on('error', () => {
    socket.destroy()
    const gone = autoRemove
      ? client.json('DELETE', containerPath(id), { query: { force: 1 } })
      : Promise.resolve()
    gone.then(
      () => process.exit(128 + constants.signals.SIGPIPE),
      () => process.exit(128 + constants.signals.SIGPIPE),
    )
  })
}

async function readJson<T>(response: AsyncIterable<Buffer>): Promise<T> {
  const chunks = []
  for await (const chunk of response) chunks.push(chunk)
  return JSON.parse(Buffer.concat(chunks).toString('utf8')) as T
}

/** Hands signals on to the container; before it is started, they end this command and take it away. */
class SignalProxy implements Disposable {
  #running = false
  #insisted = 0
  readonly #handlers = new Map<NodeJS.Signals, () => void>()

  constructor(
    readonly client: Client,
    readonly id: string,
    /** It stays where nobody waits for it any more. */
    readonly stays: boolean,
  ) {
    for (const signal of PROXIED) {
      const handler = (): void => this.#handle(signal)
      this.#handlers.set(signal, handler)
      process.on(signal, handler)
    }
  }

  started(): void {
    this.#running = true
  }

  #handle(signal: NodeJS.Signals): void {
    const ends = signal !== 'SIGUSR1' && signal !== 'SIGUSR2' && signal !== 'SIGCONT'
    if (ends && (!this.#running || ++this.#insisted >= IMPATIENCE)) {
      const exit = (): void => process.exit(128 + constants.signals[signal])
      if (this.stays) exit()
      else this.client.json('DELETE', containerPath(this.id), { query: { force: 1 } }).then(exit, exit)
    } else if (this.#running)
      this.client.json('POST', containerPath(this.id, 'kill'), { query: { signal } }).catch(() => undefined)
  }

  [Symbol.dispose](): void {
    for (const [signal, handler] of this.#handlers) process.off(signal, handler)
  }
}
