import { constants } from 'node:os'
import { IoVector, Mapping, SysError } from '@coracle/sys'
import { type DescriptorChain, VirtioError, type Virtqueue } from 'vhost-user-ts'
import { HEADER, type Wire } from './wire.js'

const { ECONNRESET } = constants.errno
/** Where struct virtio_net_hdr_v1 counts buffers. */
const NUM_BUFFERS = 10
const OVERFLOW = 128 << 10
/** Buffers that are held ready for one frame at most; a frame of 64 KiB needs 43 of Linux's smallest. */
const MAX_HELD = 64
/** Pieces of one readv: IOV_MAX, less the overflow's. */
const MAX_PIECES = 1023

/**
 * Takes frames from the wire into the driver's buffers (virtio 1.2 §5.1.6.3), without knowing how long the next one is:
 * each read goes into the buffers that are held ready and, behind them, into an overflow of our own. So no frame is
 * cut, only few buffers are looked at for a short one, and a long one costs a copy once: then more are held for a while.
 */
export class Receiver implements Disposable {
  readonly #queue: Virtqueue
  readonly #wire: Wire
  /** VIRTIO_NET_F_MRG_RXBUF: a frame may lie in several buffers. */
  readonly #mergeable: boolean
  readonly #vector = new IoVector()
  readonly #overflow = Mapping.create({ length: OVERFLOW })
  readonly #overflowAddress = Number(this.#overflow.address)
  readonly #held: DescriptorChain[] = []
  /** Bytes that the held buffers take. */
  #room = 0
  /** So much is held for the next frame. */
  #wanted = 1
  /** The length of a frame that has been read, and is not with the driver yet for want of buffers; else 0. */
  #pending = 0
  /** What of it is in the held buffers, and how many of them there were. */
  #direct = 0
  #directCount = 0

  constructor(queue: Virtqueue, wire: Wire, mergeable: boolean) {
    this.#queue = queue
    this.#wire = wire
    this.#mergeable = mergeable
  }

  /**
   * Takes one frame, if the wire has one and the driver has room for it.
   * @returns its length; 0 for one that was dropped; -1 where none waits; -2 where buffers are wanting
   * @throws VirtioError, SysError where the wire is gone
   */
  receive(): number {
    if (this.#pending > 0) return this.#place()
    this.#hold(this.#wanted)
    if (this.#held.length === 0) return -2
    const length = this.#wire.fd.readv(this.#gather())
    if (length < 0) return -1
    if (length === 0) throw new SysError(ECONNRESET, 'readv')
    // Of a frame that filled all of it some may be missing.
    if (length < HEADER || length === this.#room + OVERFLOW) return 0
    this.#pending = length
    this.#direct = Math.min(length, this.#room)
    this.#directCount = this.#held.length
    return this.#place()
  }

  /** Gives back what is held, as if it had never been taken; a frame that waits for buffers is lost. */
  release(): void {
    for (let chain = this.#held.pop(); chain; chain = this.#held.pop()) this.#queue.undo(chain)
    this.#room = 0
    this.#pending = 0
  }

  [Symbol.dispose](): void {
    this.#overflow.unmap()
  }

  /** The held buffers and the overflow. Buffers in so many pieces that one call cannot take them go back. */
  #gather(): IoVector {
    const vector = this.#vector.clear()
    for (let i = 0; i < this.#held.length; i++) {
      const { writer } = this.#held[i]!
      writer.rewind()
      if (writer.vector(vector) === writer.length && vector.count <= MAX_PIECES) continue
      while (this.#held.length > Math.max(i, 1)) {
        const chain = this.#held.pop()!
        this.#room -= chain.writer.length
        this.#queue.undo(chain)
      }
      vector.clear()
      for (const { writer: each } of this.#held) each.vector(vector)
    }
    vector.push(this.#overflowAddress, OVERFLOW)
    return vector
  }

  /** Holds buffers for `bytes`, or for as much as there are. */
  #hold(bytes: number): void {
    while (this.#held.length === 0 || (this.#mergeable && this.#room < bytes)) {
      if (this.#held.length === MAX_HELD && this.#pending === 0) return
      const chain = this.#queue.pop()
      if (!chain) return
      const { writer } = chain
      if (writer.length < HEADER)
        throw new VirtioError(
          'DEVICE_REQUEST',
          `a buffer of ${writer.length} bytes for a frame and its header`,
        )
      this.#held.push(chain)
      this.#room += writer.length
    }
  }

  /** Gives the driver the frame that has been read. */
  #place(): number {
    const length = this.#pending
    if (length > this.#room && !this.#spread(length)) {
      if (this.#mergeable) return -2
      this.#pending = 0
      return 0
    }
    let count = 0
    for (let left = length; left > 0; count++) {
      const { writer } = this.#held[count]!
      writer.rewind()
      left -= writer.length
    }
    const first = this.#held[0]!.writer
    first.skip(NUM_BUFFERS)
    first.u16(count)
    this.#give(length, count)
    this.#pending = 0
    this.#wanted = Math.max(length, this.#wanted - (this.#wanted >> 3))
    return length
  }

  #give(length: number, count: number): void {
    const held = this.#held
    let left = length
    for (let i = 0; i < count; i++) {
      const { writer } = held[i]!
      writer.rewind()
      const size = writer.length
      this.#queue.push(held[i]!, Math.min(left, size))
      left -= size
      this.#room -= size
    }
    // In place: an array for each frame would be garbage.
    held.copyWithin(0, count)
    held.length -= count
  }

  /** Holds buffers for the whole frame, and copies into them what is in the overflow. @returns whether they sufficed */
  #spread(length: number): boolean {
    this.#hold(length)
    if (length > this.#room) return false
    const rest = this.#overflow.bytes(0, length - this.#direct)
    for (let i = this.#directCount, at = 0; at < rest.length; i++) {
      const { writer } = this.#held[i]!
      writer.rewind()
      const piece = Math.min(writer.length, rest.length - at)
      writer.bytes(rest.subarray(at, at + piece))
      at += piece
    }
    return true
  }
}
