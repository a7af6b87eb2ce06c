import { EPOLLIN, Epoll, type Fd, receiveWithFds, sendWithFds } from '@coracle/sys'
import { CoracleError } from '../errors.js'

/*
 * How the process of a sandbox gets what it may touch: as open descriptors with names, sent with the sandbox's
 * specification over a Unix stream socket. It sees no file system but its own small root, so that what it was not
 * handed does not exist for it.
 *
 * One message is a line of JSON, `{"names":[…]}`, with as many descriptors beside it (SCM_RIGHTS, unix(7)); the last
 * line is `{"end":true}`. A descriptor is used by the path `/proc/self/fd/N` ({@link Handover.path}), wherever a path
 * is asked for: `Fd.openOrDuplicate` takes a file's as it is, and below a folder's Node opens files as usual. Hand
 * folders over as `detachedFolder` makes them: `..` leads out of any other.
 *
 * What is sent is checked by who receives it, since a monitor takes further descriptors while it runs.
 */

/** Descriptors a message; the kernel takes 253, `receiveWithFds` 32. */
const MESSAGE = 32
/** What all names of a hand-over may come to, in bytes. */
const MAX_BYTES = 1 << 20
const NAME = /^[a-z][a-z0-9.-]{0,63}$/

/** Descriptors by name, owned until they are taken. */
export class Handover implements Disposable {
  readonly #held = new Map<string, Fd>()

  /** @throws CoracleError INVALID_ARGUMENT for a name that is none (lower case, digits, `.`, `-`) or is there already */
  add(name: string, fd: Fd): void {
    if (!NAME.test(name) || this.#held.has(name))
      throw new CoracleError('INVALID_ARGUMENT', `'${name.slice(0, 64)}' is no name for a new descriptor`)
    this.#held.set(name, fd)
  }

  get names(): string[] {
    return [...this.#held.keys()]
  }

  has(name: string): boolean {
    return this.#held.has(name)
  }

  /** It stays ours. @throws CoracleError SANDBOX_FAILED where nothing of that name was handed over */
  get(name: string): Fd {
    const fd = this.#held.get(name)
    if (!fd) throw new CoracleError('SANDBOX_FAILED', `the sandbox was not handed '${name}'`)
    return fd
  }

  /** The caller's to close from now on. @throws as {@link get} */
  take(name: string): Fd {
    const fd = this.get(name)
    this.#held.delete(name)
    return fd
  }

  /** `/proc/self/fd/N`, valid while it is held. @throws as {@link get} */
  path(name: string): string {
    return `/proc/self/fd/${this.get(name).number}`
  }

  [Symbol.dispose](): void {
    for (const fd of this.#held.values()) fd.close()
    this.#held.clear()
  }
}

/**
 * Sends all of it; the receiver gets duplicates. It fits a socket's buffer, so that nothing is waited for.
 * @throws SysError EPIPE where the receiver is gone; CoracleError SANDBOX_FAILED where its buffer is full
 */
export function sendHandover(socket: Fd, handover: Handover): void {
  const names = handover.names
  const send = (message: object, fds: readonly Fd[]): void => {
    const line = Buffer.from(`${JSON.stringify(message)}\n`)
    if (sendWithFds(socket, line, fds) !== line.length)
      throw new CoracleError('SANDBOX_FAILED', 'the sandbox does not take what it is handed')
  }
  for (let at = 0; at < names.length; at += MESSAGE) {
    const some = names.slice(at, at + MESSAGE)
    send(
      { names: some },
      some.map((name) => handover.get(name)),
    )
  }
  send({ end: true }, [])
}

/**
 * Waits for a hand-over, on the calling thread.
 * @param timeout ms without a word, -1: for ever
 * @returns undefined where the socket ends before the first word of one
 * @throws CoracleError SANDBOX_FAILED for one that is not as it should be; nothing of it is kept then
 */
export function receiveHandover(socket: Fd, timeout = -1): Handover | undefined {
  const handover = new Handover()
  try {
    return receive(socket, handover, timeout) ? handover : undefined
  } catch (error) {
    handover[Symbol.dispose]()
    throw error
  }
}

const broken = (why: string): CoracleError => new CoracleError('SANDBOX_FAILED', `a broken hand-over: ${why}`)

function receive(socket: Fd, handover: Handover, timeout: number): boolean {
  using loop = new Epoll()
  loop.add(socket, EPOLLIN, () => undefined)
  const chunk = new Uint8Array(4096)
  const waiting: Fd[] = []
  let text = ''
  let total = 0
  try {
    for (;;) {
      const { length, fds } = receiveWithFds(socket, chunk)
      waiting.push(...fds)
      if (length === -1) {
        if (loop.wait(timeout) === 0 && timeout >= 0) throw broken('it does not go on')
        continue
      }
      if (length === 0) {
        if (total > 0) throw broken('it ends too early')
        return false
      }
      total += length
      if (total > MAX_BYTES) throw broken('it is too long')
      const lines = (text + Buffer.from(chunk.subarray(0, length)).toString('latin1')).split('\n')
      text = lines.pop()!
      for (const line of lines) {
        const names = namesOf(line)
        if (names === undefined) {
          if (waiting.length > 0 || text !== '' || line !== lines.at(-1)) throw broken('more behind its end')
          return true
        }
        if (names.length > waiting.length) throw broken('fewer descriptors than names')
        for (const name of names) {
          handover.add(name, waiting[0]!)
          waiting.shift()
        }
      }
    }
  } finally {
    for (const fd of waiting) fd.close()
  }
}

/** @returns undefined for the last line */
function namesOf(line: string): string[] | undefined {
  let message: { names?: unknown; end?: unknown } | null
  try {
    message = JSON.parse(line) as typeof message
  } catch {
    throw broken('it is no JSON')
  }
  if (message?.end === true) return undefined
  const names = message?.names
  if (!Array.isArray(names) || !names.every((name) => typeof name === 'string'))
    throw broken('a message without names')
  return names
}
