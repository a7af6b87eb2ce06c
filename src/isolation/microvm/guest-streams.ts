import { randomBytes, timingSafeEqual } from 'node:crypto'
import { type Duplex, PassThrough } from 'node:stream'
import * as protocol from './agent-protocol.js'
import type { BodyWriter } from './agent-protocol.js'
import { type Pending, pending } from './pending.js'

/** The workload's streams: each ends (half-closes) on its own. With a terminal all is in `stdout`, both ways. */
export interface AgentStreams {
  /** Write to it; `end()` is the workload's end of file. With a terminal this is `stdout` itself. */
  readonly stdin?: Duplex
  readonly stdout: Duplex
  readonly stderr?: Duplex
}

/** One that somebody waits for, by the token that it brings. */
interface Expected extends Pending<Duplex> {
  readonly token: Buffer
}

/** Connections to the stream port that have not sent their header: the workload itself can make them. */
const MAX_NAMELESS = 16
/** How long a stream may take to say whose it is: a host with many guests gives each little time. */
const STREAM_HEADER_MS = 60_000

/** The connections that a guest makes to the stream port, and who waits for them. */
export class GuestStreams {
  readonly #expected = new Set<Expected>()
  readonly #nameless = new Set<Duplex>()
  #failed = false

  /**
   * Takes a connection to the stream port: reads its header, then whoever waits for that token gets it. One that
   * nobody waits for is destroyed, without harm: any process of the guest can make it.
   */
  accept(socket: Duplex): void {
    // A connection that breaks says so by 'close' as well; without a listener an error would end this process.
    socket.on('error', () => undefined)
    if (this.#failed || this.#nameless.size >= MAX_NAMELESS) {
      socket.destroy()
      return
    }
    this.#nameless.add(socket)
    const timer = setTimeout(() => {
      done()
      socket.destroy()
    }, STREAM_HEADER_MS)
    const readable = (): void => {
      const header = socket.read(protocol.STREAM_HEADER_SIZE) as Buffer | null
      if (header === null) return
      done()
      const stream = this.#match(header)
      if (header.length < protocol.STREAM_HEADER_SIZE || !stream) socket.destroy()
      else stream.resolve(socket)
    }
    const done = (): void => {
      clearTimeout(timer)
      this.#nameless.delete(socket)
      socket.off('readable', readable).off('end', ended).off('close', ended).off('error', ended)
    }
    const ended = (): void => {
      done()
      socket.destroy()
    }
    socket.on('readable', readable).on('end', ended).on('close', ended).on('error', ended)
    readable()
  }

  /** Writes the tokens of a process's streams, and waits for those streams until disposed. */
  expectAll(
    body: BodyWriter,
    tty: boolean,
    stdin: boolean,
  ): Disposable & { connected(which?: number): Promise<AgentStreams> } {
    const input = stdin && !tty ? this.expect() : undefined
    const output = this.expect()
    const error = tty ? undefined : this.expect()
    for (const stream of [input, output, error])
      body.fixed(stream?.token ?? Buffer.alloc(protocol.TOKEN_SIZE))
    return {
      connected: async (which = ~0) => {
        const { REATTACHED_STDIN, REATTACHED_STDOUT, REATTACHED_STDERR } = protocol
        const of = (bits: number, stream?: Expected): Promise<Duplex> | undefined =>
          stream && ((which & bits) !== 0 ? stream.promise : Promise.resolve(new PassThrough().end()))
        const [stdinEnd, stdout, stderr] = await Promise.all([
          of(REATTACHED_STDIN, input),
          of(tty ? REATTACHED_STDIN | REATTACHED_STDOUT : REATTACHED_STDOUT, output),
          of(REATTACHED_STDERR, error),
        ])
        return {
          stdout: stdout!,
          ...(stdin && { stdin: stdinEnd ?? stdout! }),
          ...(stderr && { stderr }),
        }
      },
      [Symbol.dispose]: () => {
        for (const stream of [input, output, error]) if (stream) this.#expected.delete(stream)
      },
    }
  }

  /** Waits for one until {@link forget}: its token is the caller's to send. */
  expect(): Expected {
    const stream = { ...pending<Duplex>(), token: randomBytes(protocol.TOKEN_SIZE) }
    this.#expected.add(stream)
    return stream
  }

  forget(stream: Expected): void {
    this.#expected.delete(stream)
  }

  /** Nobody is waited for any more: who waits hears why. */
  fail(error: Error): void {
    this.#failed = true
    for (const socket of this.#nameless) socket.destroy()
    for (const stream of this.#expected) stream.reject(error)
    this.#expected.clear()
  }

  #match(header: Buffer): Expected | undefined {
    if (header.length < protocol.STREAM_HEADER_SIZE || header.readUInt32LE(0) !== protocol.STREAM_MAGIC)
      return
    for (const stream of this.#expected)
      if (timingSafeEqual(stream.token, header.subarray(4))) {
        this.#expected.delete(stream)
        return stream
      }
    return
  }
}
