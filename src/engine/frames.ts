import { Transform, type TransformCallback } from 'node:stream'

/** Length of a frame's header: `[stream, 0, 0, 0, length u32be]` (Docker Engine API, ContainerAttach). */
export const FRAME_HEADER = 8
export const STDOUT = 1
export const STDERR = 2
/** No sender of ours makes frames near this; a larger one is a stream that lost its step. */
const MAXIMUM_FRAME = 64 * 1024 * 1024

/** A payload with its header before it. @param stream STDOUT or STDERR */
export function frame(stream: number, payload: Uint8Array): Buffer {
  const bytes = Buffer.allocUnsafe(FRAME_HEADER + payload.length)
  bytes.writeUInt32BE((stream << 24) >>> 0, 0)
  bytes.writeUInt32BE(payload.length, 4)
  bytes.set(payload, FRAME_HEADER)
  return bytes
}

/** Finds the payloads in a stream of frames, whose pieces may be cut anywhere. Payloads are not copied or joined. */
export class FrameParser {
  readonly #header = Buffer.alloc(FRAME_HEADER)
  #have = 0
  #left = 0

  /**
   * @param sink gets each piece of payload with its stream's number
   * @throws Error where the bytes are no frames
   */
  push(chunk: Buffer, sink: (stream: number, payload: Buffer) => void): void {
    for (let at = 0; at < chunk.length;) {
      if (this.#left > 0) {
        const end = Math.min(chunk.length, at + this.#left)
        this.#left -= end - at
        sink(this.#header[0]!, chunk.subarray(at, end))
        at = end
        continue
      }
      const taken = chunk.copy(this.#header, this.#have, at, at + FRAME_HEADER - this.#have)
      at += taken
      this.#have += taken
      if (this.#have < FRAME_HEADER) return
      this.#have = 0
      this.#left = this.#header.readUInt32BE(4)
      if (this.#header[0]! > 3 || this.#left > MAXIMUM_FRAME) throw new Error('not a stream of frames')
    }
  }
}

/** Takes the headers off: the form that a terminal's stream has on the wire. */
export class Unframe extends Transform {
  readonly #parser = new FrameParser()

  override _transform(chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback): void {
    try {
      this.#parser.push(chunk, (_stream, payload) => this.push(payload))
      done()
    } catch (error) {
      done(error as Error)
    }
  }
}
