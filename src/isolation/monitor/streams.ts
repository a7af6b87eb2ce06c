import type { Socket } from 'node:net'
import type { Readable, Writable } from 'node:stream'
import { STDERR, STDOUT, frameHeader, type OutputStream } from '../protocol.js'
import type { AttachOptions, SandboxSpec } from '../sandbox.js'
import type { JsonLog } from './log.js'
import type { WorkloadStreams } from './workload.js'

/** Bytes that may wait in an attachment before the workload's output waits for its reader. */
const HIGH_WATER = 1 << 20
/** How long nothing may come of a stream after the process ended, in ms: something else holds the pipe's end. */
const LINGER = 5_000
/** How long clients that say nothing may take to close their side after they were given the end, in ms. */
const PARTING = 1_000

interface Attachment {
  readonly socket: Socket
  readonly options: AttachOptions
}

/**
 * Carries a workload's streams: output goes to the log and to every attachment, as Docker's frames; input comes
 * from every attachment. A reader that stalls makes the workload wait, as with Docker: no byte is lost, and no
 * memory fills. One that goes away is forgotten at once.
 */
export class Streams {
  readonly #log: JsonLog | undefined
  readonly #stdinOnce: boolean
  readonly #attachments = new Set<Attachment>()
  #stdin: Writable | undefined
  #started = false
  #closed = false
  /** Chunks carried, and streams that wait for an attachment. */
  #progress = 0
  #blocked = 0
  /** Chunks of input that came. */
  #heard = 0
  #inputs: Socket[] = []
  #outputs: Promise<void>[] = []

  /**
   * @param log undefined where nothing is kept
   * @param stdinOnce the end of one attachment's input is the end of stdin; a terminal has none
   */
  constructor(log: JsonLog | undefined, { stdinOnce, tty }: Pick<SandboxSpec, 'stdinOnce' | 'tty'>) {
    this.#log = log
    this.#stdinOnce = stdinOnce && !tty
  }

  /** Joins a client's connection: it takes part from now on, also before {@link start}. */
  attach(socket: Socket, options: AttachOptions): void {
    const attachment = { socket, options }
    if (this.#closed) {
      socket.end()
      return
    }
    this.#attachments.add(attachment)
    socket.on('error', () => socket.destroy())
    socket.on('close', () => this.#attachments.delete(attachment))
    if (options.stdin) {
      this.#inputs.push(socket)
      if (this.#started) this.#takeInput(socket)
    } else socket.resume()
  }

  /** Connects the workload's ends. */
  start(streams: WorkloadStreams): void {
    this.#started = true
    this.#stdin = streams.stdin
    streams.stdin?.on('error', () => (this.#stdin = undefined))
    this.#outputs = [this.#carry(STDOUT, streams.stdout)]
    if (streams.stderr) this.#outputs.push(this.#carry(STDERR, streams.stderr))
    for (const socket of this.#inputs) this.#takeInput(socket)
    this.#inputs = []
  }

  /**
   * Resolves when all output has reached the log and the attachments, after the process ended. A client that reads
   * slowly is waited for; {@link abandon} ends that.
   */
  async finish(): Promise<void> {
    const carried = Promise.all(this.#outputs).then(() => true)
    for (let seen = -1; seen !== this.#progress || this.#blocked > 0;) {
      seen = this.#progress
      if ((await within(LINGER, carried)) === true) break
    }
    this.#closed = true
    await Promise.all([...this.#attachments].map(({ socket }) => drained(socket)))
  }

  /** Drops every attachment, with what waits in it. */
  abandon(): void {
    for (const { socket } of this.#attachments) socket.destroy()
  }

  /**
   * Gives clients a moment to close their side once they have seen the end: were the monitor gone with input
   * unread, they would meet ECONNRESET in place of it. One that still sends has not read so far: with its next word it
   * would lose the rest.
   */
  async part(): Promise<void> {
    const sockets = [...this.#attachments].map(({ socket }) => socket)
    for (const socket of sockets) socket.resume()
    const closed = sockets.map((socket) => new Promise((resolve) => socket.on('close', resolve)))
    const all = Promise.all(closed).then(() => true)
    for (let heard = -1; heard !== this.#heard;) {
      heard = this.#heard
      if ((await within(PARTING, all)) === true) return
    }
  }

  #takeInput(socket: Socket): void {
    let over = false
    const end = (): void => {
      if (over) return
      over = true
      if (this.#stdinOnce) this.#stdin?.end()
    }
    socket.on('data', (chunk: Buffer) => {
      this.#heard++
      const stdin = this.#stdin
      if (stdin === undefined || stdin.writableEnded || stdin.destroyed) return
      if (stdin.write(chunk) || stdin.destroyed) return
      socket.pause()
      const go = (): void => {
        stdin.off('drain', go)
        stdin.off('close', go)
        socket.resume()
      }
      stdin.on('drain', go)
      stdin.on('close', go)
    })
    socket.on('end', end)
    socket.on('close', end)
    if (socket.readableEnded || socket.destroyed) end()
    else socket.resume()
  }

  async #carry(stream: OutputStream, source: Readable): Promise<void> {
    source.on('error', () => undefined)
    try {
      for await (const chunk of source) {
        this.#progress++
        this.#log?.write(stream, chunk as Buffer)
        const waits: Promise<void>[] = []
        for (const { socket, options } of this.#attachments) {
          if (!(stream === STDOUT ? options.stdout : options.stderr) || socket.destroyed) continue
          socket.cork()
          socket.write(frameHeader(stream, (chunk as Buffer).length))
          socket.write(chunk as Buffer)
          socket.uncork()
          if (socket.writableLength > HIGH_WATER) waits.push(roomIn(socket))
        }
        if (waits.length === 0) continue
        this.#blocked++
        await Promise.all(waits)
        this.#blocked--
      }
    } catch {
      // A terminal ends with an error (EIO) in place of an end.
    }
    this.#log?.end(stream)
  }
}

/** Resolves when the socket has taken what waits in it, or is gone. */
function roomIn(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      socket.off('drain', done)
      socket.off('close', done)
      resolve()
    }
    socket.on('drain', done)
    socket.on('close', done)
  })
}

/** Ends the socket; resolves when its reader has everything, or is gone. */
function drained(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    socket.on('close', resolve)
    socket.end(resolve)
    if (socket.destroyed) resolve()
  })
}

/** What `work` came to, or undefined where it takes longer. */
function within<T>(milliseconds: number, work: Promise<T>): Promise<T | undefined> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds, undefined)
    const done = (value?: T): void => {
      clearTimeout(timer)
      resolve(value)
    }
    work.then(done, () => done())
  })
}
