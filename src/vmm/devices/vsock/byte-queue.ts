import type { Fd } from '@coracle/sys'
import type { ChainReader } from 'vhost-user-ts'

/** A ring of bytes of fixed capacity: what a socket would not take yet. */
export class ByteQueue {
  readonly #bytes: Uint8Array
  #start = 0
  #length = 0

  constructor(capacity: number) {
    this.#bytes = new Uint8Array(capacity)
  }

  get length(): number {
    return this.#length
  }

  /** Copies `length` bytes out of the guest. @throws RangeError when they do not fit */
  fill(from: ChainReader, length: number): void {
    const capacity = this.#bytes.length
    if (this.#length + length > capacity) throw new RangeError('byte queue is full')
    for (let left = length; left > 0;) {
      const at = (this.#start + this.#length) % capacity
      const piece = Math.min(left, capacity - at)
      from.bytes(this.#bytes.subarray(at, at + piece))
      this.#length += piece
      left -= piece
    }
  }

  /** Writes as much as `fd` takes. @returns bytes written @throws SysError */
  drain(fd: Fd): number {
    let done = 0
    while (this.#length > 0) {
      const piece = Math.min(this.#length, this.#bytes.length - this.#start)
      const written = fd.write(this.#bytes.subarray(this.#start, this.#start + piece))
      if (written <= 0) break
      this.#start = (this.#start + written) % this.#bytes.length
      this.#length -= written
      done += written
    }
    return done
  }
}
