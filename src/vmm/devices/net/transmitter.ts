import { IoVector, SysError } from '@coracle/sys'
import type { Virtqueue } from 'vhost-user-ts'
import { MAX_FRAME, type Wire } from './wire.js'

/**
 * Puts the driver's frames on the wire (virtio 1.2 §5.1.6.2), each by one writev straight from guest memory. The
 * kernel checks the header, as it does for any program with a tap: a frame that it does not take is dropped.
 */
export class Transmitter {
  readonly #queue: Virtqueue
  readonly #wire: Wire
  readonly #dropped: (reason: string) => void
  readonly #vector = new IoVector()

  constructor(queue: Virtqueue, wire: Wire, dropped: (reason: string) => void) {
    this.#queue = queue
    this.#wire = wire
    this.#dropped = dropped
  }

  /**
   * Sends one frame, if the driver has one and the wire takes it.
   * @returns its length; 0 for one that was dropped; -1 where there is none; -2 where the wire is full
   * @throws VirtioError
   */
  transmit(): number {
    const chain = this.#queue.pop()
    if (!chain) return -1
    const { length } = chain.reader
    const sent = this.#write(length, chain.reader.vector(this.#vector.clear()) === length)
    if (sent < 0) {
      this.#queue.undo(chain)
      return -2
    }
    this.#queue.push(chain, 0)
    return sent
  }

  #write(length: number, whole: boolean): number {
    if (length === 0 || length > MAX_FRAME || !whole) {
      this.#dropped(`a frame of ${length} bytes`)
      return 0
    }
    try {
      return this.#wire.fd.writev(this.#vector)
    } catch (error) {
      if (!(error instanceof SysError)) throw error
      this.#dropped(`a frame of ${length} bytes: ${error.code}`)
      return 0
    }
  }
}
