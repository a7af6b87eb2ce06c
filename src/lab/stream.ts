import type { Socket } from 'node:net'
import type { Writable } from 'node:stream'

/**
 * Copies what comes out of a port until the end mark. A serial port has no end of its own: the machine
 * writes `mark`, random for each run, behind the last byte. What may be the start of the mark is held back, the rest
 * passes at once.
 * @returns resolves when the mark came, `false` when the port closed without
 */
export function copyUntilMark(port: Socket, out: Writable, mark: Buffer): Promise<boolean> {
  return new Promise((resolve) => {
    let held = Buffer.alloc(0)
    const end = (complete: boolean): void => {
      port.off('data', take)
      if (!complete && held.length > 0) out.write(held)
      held = Buffer.alloc(0)
      resolve(complete)
    }
    const take = (chunk: Buffer): void => {
      const bytes = held.length > 0 ? Buffer.concat([held, chunk]) : chunk
      const keep = markStart(bytes, mark)
      const pass = bytes.subarray(0, bytes.length - keep)
      held = Buffer.from(bytes.subarray(bytes.length - keep))
      if (pass.length > 0 && !out.write(pass)) {
        port.pause()
        out.once('drain', () => port.resume())
      }
      if (keep === mark.length) end(true)
    }
    port.on('data', take)
    port.on('close', () => {
      end(false)
    })
    // Whoever read us has gone: the command is not to stop for that, as little as with a pipe to `head`.
    out.on('error', () => port.resume())
  })
}

/** How many bytes at the end of `bytes` are a start of `mark`. */
export function markStart(bytes: Buffer, mark: Buffer): number {
  for (let length = Math.min(bytes.length, mark.length); length > 0; length--)
    if (bytes.subarray(bytes.length - length).equals(mark.subarray(0, length))) return length
  return 0
}
