import { once } from 'node:events'
import type { Duplex, Readable, Writable } from 'node:stream'
import { DetachKeys } from '../engine/detach-keys.js'
import { FrameParser, STDERR } from '../engine/frames.js'
import type { Client } from './client.js'

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

/** The option of all that joins a container's streams. @see parseDetachKeys */
export const DETACH_KEYS = {
  type: 'string',
  requiresArg: true,
  describe: 'Keys that leave a terminal, such as ctrl-x,d (default ctrl-p,ctrl-q)',
} as const

/**
 * Sends this process's stdin to a container; its end is the container's.
 * @param detach what leaves the session when it is typed; without it all bytes are alike
 */
export function copyInput(
  socket: Duplex,
  detach: { readonly keys: Buffer; readonly then: () => void } | undefined,
): void {
  process.stdin.on('error', () => socket.end())
  if (detach) process.stdin.pipe(new DetachKeys(detach.keys, detach.then)).pipe(socket)
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
