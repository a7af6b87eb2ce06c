import { once } from 'node:events'
import { Transform, type Duplex, type Readable, type TransformCallback, type Writable } from 'node:stream'
import { FrameParser, STDERR } from '../engine/frames.js'
import type { Client } from './client.js'

const CTRL_P = 0x10
const CTRL_Q = 0x11

/**
 * Writes what comes from an attached container to this process's stdout and stderr, no faster than they take it.
 * Resolves at the end of the output, or when the connection is gone.
 */
export async function copyOutput(socket: Readable, multiplexed: boolean): Promise<void> {
  const parser = new FrameParser()
  const full = new Set<Writable>()
  const write = (target: Writable, data: Buffer): void => {
    if (target.write(data) || full.has(target)) return
    full.add(target)
    socket.pause()
    target.once('drain', () => {
      full.delete(target)
      if (full.size === 0) socket.resume()
    })
  }
  socket.on('data', (chunk: Buffer) => {
    if (!multiplexed) write(process.stdout, chunk)
    else
      parser.push(chunk, (stream, payload) =>
        write(stream === STDERR ? process.stderr : process.stdout, payload),
      )
  })
  socket.on('error', () => undefined)
  await new Promise<void>((resolve) => {
    socket.on('end', resolve)
    socket.on('close', resolve)
  })
  for (const target of full) await once(target, 'drain')
}

/**
 * Sends this process's stdin to a container; its end is the container's.
 * @param onDetach called when ctrl-p ctrl-q was typed; without it these are bytes like any other
 */
export function copyInput(socket: Duplex, onDetach: (() => void) | undefined): void {
  process.stdin.on('error', () => socket.end())
  if (onDetach) process.stdin.pipe(new DetachKeys(onDetach)).pipe(socket)
  else process.stdin.pipe(socket)
}

/**
 * Puts this process's terminal in raw mode, and keeps the other as large.
 * @param path of the container or the exec whose terminal that is
 * @returns what undoes it
 */
export function ownTerminal(client: Client, path: string, interactive: boolean): () => void {
  const resize = (): void => {
    const { rows: h, columns: w } = process.stdout
    if (h && w) client.json('POST', `${path}/resize`, { query: { h, w } }).catch(() => undefined)
  }
  resize()
  process.stdout.on('resize', resize)
  const raw = interactive && process.stdin.isTTY
  if (raw) process.stdin.setRawMode(true)
  return () => {
    process.stdout.off('resize', resize)
    if (raw) process.stdin.setRawMode(false)
  }
}

/** Ends a session: stdin is let go, and the connection ended. */
export function closeInput(socket: Duplex): void {
  process.stdin.unpipe()
  process.stdin.pause()
  socket.destroy()
}

/** Finds ctrl-p ctrl-q; a ctrl-p alone is held back until the next byte. */
export class DetachKeys extends Transform {
  readonly #onDetach: () => void
  #held = false

  constructor(onDetach: () => void) {
    super()
    this.#onDetach = onDetach
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback): void {
    const bytes = this.#held ? Buffer.concat([Buffer.of(CTRL_P), chunk]) : chunk
    const at = bytes.indexOf(Buffer.of(CTRL_P, CTRL_Q))
    this.#held = at < 0 && bytes.at(-1) === CTRL_P
    if (at >= 0) this.#onDetach()
    else this.push(this.#held ? bytes.subarray(0, -1) : bytes)
    done()
  }

  override _flush(done: TransformCallback): void {
    if (this.#held) this.push(Buffer.of(CTRL_P))
    done()
  }
}
