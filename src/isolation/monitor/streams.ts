import type { Socket } from 'node:net'
import type { Readable, Writable } from 'node:stream'
import { STDERR, STDOUT, frameHeader, type OutputStream } from '../protocol.js'
import type { AttachOptions, SandboxSpec } from '../sandbox.js'
import type { JsonLog } from './log.js'
import type { WorkloadStreams } from './workload.js'

/** Bytes that may wait in an attachment before the workload's output waits for its reader. */
const HIGH_WATER = 1 << 20
/** How long an attachment that takes nothing may hold up the end, in ms. */
const STALL = 10_000
/** How long output may go on after the process ended, in ms: something else holds the pipe's end. */
const LINGER = 5_000

/** How long clients may take to close their side after they were given the end, in ms. */
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
  readonly #log: JsonLog
  readonly #stdinOnce: boolean
  readonly #attachments = new Set<Attachment>()
  #stdin: Writable | undefined
  #started = false
  #closed = false
  #inputs: Socket[] = []
  #outputs: Promise<void>[] = []

  /** @param stdinOnce the end of one attachment's input is the end of stdin; a terminal has none */
  constructor(log: JsonLog, { stdinOnce, tty }: Pick<SandboxSpec, 'stdinOnce' | 'tty'>) {
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

  /** Resolves when all output has reached the log and the attachments, after the process ended. */
  async finish(): Promise<void> {
    await within(LINGER, Promise.all(this.#outputs))
    this.#closed = true
    await Promise.all([...this.#attachments].map(({ socket }) => drainAndEnd(socket)))
  }

  /**
   * Gives clients a moment to close their side once they have seen the end: were the monitor gone with input
   * unread, they would meet ECONNRESET in place of it.
   */
  async part(): Promise<void> {
    const sockets = [...this.#attachments].map(({ socket }) => socket)
    for (const socket of sockets) socket.resume()
    const closed = sockets.map((socket) => new Promise((resolve) => socket.on('close', resolve)))
    await within(PARTING, Promise.all(closed))
  }

  #takeInput(socket: Socket): void {
    let over = false
    const end = (): void => {
      if (over) return
      over = true
      const stdin = this.#stdin
      // A pipe cannot be shut down; its end is that it is closed.
      if (this.#stdinOnce) stdin?.end(() => stdin.destroy())
    }
    socket.on('data', (chunk: Buffer) => {
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
        this.#log.write(stream, chunk as Buffer)
        const waits: Promise<void>[] = []
        for (const { socket, options } of this.#attachments) {
          if (!(stream === STDOUT ? options.stdout : options.stderr) || socket.destroyed) continue
          socket.cork()
          socket.write(frameHeader(stream, (chunk as Buffer).length))
          socket.write(chunk as Buffer)
          socket.uncork()
          if (socket.writableLength > HIGH_WATER) waits.push(roomIn(socket))
        }
        if (waits.length > 0) await Promise.all(waits)
      }
    } catch {
      // A terminal ends with an error (EIO) in place of an end.
    }
    this.#log.end(stream)
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

/** Ends the socket once its reader has everything; gives up on one that takes nothing for {@link STALL} ms. */
function drainAndEnd(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    let left = -1
    const timer = setInterval(() => {
      if (socket.writableLength === left) socket.destroy()
      left = socket.writableLength
    }, STALL)
    const done = (): void => {
      clearInterval(timer)
      resolve()
    }
    socket.on('close', done)
    socket.end(done)
    if (socket.destroyed) done()
  })
}

function within(milliseconds: number, work: Promise<unknown>): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds)
    const done = (): void => {
      clearTimeout(timer)
      resolve()
    }
    work.then(done, done)
  })
}
