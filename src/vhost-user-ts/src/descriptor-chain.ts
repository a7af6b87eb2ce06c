import type { IoVector } from '@coracle/sys'
import type { GuestMemory } from './guest-memory.js'
import { VirtioError } from './virtio-error.js'

/** The buffers of one direction of a chain: guest addresses and lengths, copied out of the driver's reach. */
class Segments {
  addresses = new Float64Array(8)
  lengths = new Float64Array(8)
  count = 0
  total = 0

  clear(): void {
    this.count = 0
    this.total = 0
  }

  add(address: number, length: number): void {
    if (this.count === this.addresses.length) {
      const grown = this.count * 2
      const { addresses, lengths } = this
      ;(this.addresses = new Float64Array(grown)).set(addresses)
      ;(this.lengths = new Float64Array(grown)).set(lengths)
    }
    this.addresses[this.count] = address
    this.lengths[this.count] = length
    this.count++
    this.total += length
  }
}

/** A position in the bytes of one direction of a chain. */
abstract class Cursor {
  protected readonly memory: GuestMemory
  readonly #segments: Segments
  #segment = 0
  #offset = 0
  #done = 0

  constructor(memory: GuestMemory, segments: Segments) {
    this.memory = memory
    this.#segments = segments
  }

  /** Bytes left. */
  get length(): number {
    return this.#segments.total - this.#done
  }

  /** Bytes passed so far. */
  get position(): number {
    return this.#done
  }

  /** Back to the first byte. */
  rewind(): void {
    this.#segment = 0
    this.#offset = 0
    this.#done = 0
  }

  /** Passes over `length` bytes. @throws {@link VirtioError} CHAIN_SHORT */
  skip(length: number): void {
    this.#require(length)
    for (let left = length; left > 0;) left -= this.#advance(left)
  }

  /**
   * Appends the next `limit` bytes as entries of `vector` for readv(2) or writev(2), without passing over them:
   * {@link skip} what the call has moved.
   * @returns bytes covered: less than asked where the chain ends or the vector is full
   */
  vector(vector: IoVector, limit = this.length): number {
    const { addresses, lengths, count } = this.#segments
    const wanted = Math.min(limit, this.length)
    let covered = 0
    let offset = this.#offset
    for (let i = this.#segment; i < count && covered < wanted && !vector.full; i++) {
      const piece = Math.min(lengths[i]! - offset, wanted - covered)
      const got = this.memory.gather(addresses[i]! + offset, piece, vector, this.writable)
      covered += got
      if (got < piece) break
      offset = 0
    }
    return covered
  }

  /** Calls `call` for each buffer that is left, by its guest-physical address, and passes over it. */
  each(call: (address: number, length: number) => void): void {
    this.pieces(this.length, (address, _, length) => call(address, length))
  }

  protected abstract readonly writable: boolean

  /** The guest address of the next `size` bytes where they lie in one buffer, which are passed over; else -1. */
  protected take(size: number): number {
    this.#require(size)
    while (this.#offset === this.#segments.lengths[this.#segment]) this.#next()
    if (this.#segments.lengths[this.#segment]! - this.#offset < size) return -1
    const address = this.#segments.addresses[this.#segment]! + this.#offset
    this.#advance(size)
    return address
  }

  /** Calls `copy` for each piece of the next `length` bytes, and passes over them. */
  protected pieces(length: number, copy: (address: number, at: number, length: number) => void): void {
    this.#require(length)
    for (let at = 0; at < length;) {
      const address = this.#segments.addresses[this.#segment]! + this.#offset
      const piece = Math.min(length - at, this.#segments.lengths[this.#segment]! - this.#offset)
      copy(address, at, piece)
      this.#advance(piece)
      at += piece
    }
  }

  #require(length: number): void {
    if (!(length >= 0 && length <= this.length))
      throw new VirtioError('CHAIN_SHORT', `${length} bytes wanted of ${this.length} left in the chain`)
  }

  #advance(length: number): number {
    const left = this.#segments.lengths[this.#segment]! - this.#offset
    const piece = Math.min(left, length)
    this.#offset += piece
    this.#done += piece
    if (piece === left) this.#next()
    return piece
  }

  #next(): void {
    this.#segment++
    this.#offset = 0
  }
}

/** The device-readable bytes of a chain, in order. Numbers are little-endian. @throws VirtioError CHAIN_SHORT */
export class ChainReader extends Cursor {
  protected readonly writable = false
  readonly #scratch = new DataView(new ArrayBuffer(8))

  u8(): number {
    return this.memory.readU8(this.take(1))
  }
  u16(): number {
    const at = this.take(2)
    return at >= 0 ? this.memory.readU16(at) : this.#gather(2).getUint16(0, true)
  }
  u32(): number {
    const at = this.take(4)
    return at >= 0 ? this.memory.readU32(at) : this.#gather(4).getUint32(0, true)
  }
  u64(): bigint {
    const at = this.take(8)
    return at >= 0 ? this.memory.readU64(at) : this.#gather(8).getBigUint64(0, true)
  }

  /** Copies the next `into.length` bytes out of the guest. */
  bytes(into: Uint8Array): void {
    this.pieces(into.length, (address, at, length) =>
      this.memory.read(address, into.subarray(at, at + length)),
    )
  }

  #gather(size: number): DataView {
    this.bytes(new Uint8Array(this.#scratch.buffer, 0, size))
    return this.#scratch
  }
}

/** The device-writable bytes of a chain, in order. Numbers are little-endian. @throws VirtioError CHAIN_SHORT */
export class ChainWriter extends Cursor {
  protected readonly writable = true
  readonly #scratch = new DataView(new ArrayBuffer(8))

  u8(value: number): void {
    this.memory.writeU8(this.take(1), value)
  }
  u16(value: number): void {
    const at = this.take(2)
    if (at >= 0) return this.memory.writeU16(at, value)
    this.#scratch.setUint16(0, value, true)
    this.#scatter(2)
  }
  u32(value: number): void {
    const at = this.take(4)
    if (at >= 0) return this.memory.writeU32(at, value)
    this.#scratch.setUint32(0, value, true)
    this.#scatter(4)
  }
  u64(value: bigint): void {
    const at = this.take(8)
    if (at >= 0) return this.memory.writeU64(at, value)
    this.#scratch.setBigUint64(0, value, true)
    this.#scatter(8)
  }

  /** Copies `from` into the guest. */
  bytes(from: Uint8Array): void {
    this.pieces(from.length, (address, at, length) =>
      this.memory.write(address, from.subarray(at, at + length)),
    )
  }

  #scatter(size: number): void {
    this.bytes(new Uint8Array(this.#scratch.buffer, 0, size))
  }
}

/**
 * One request of the driver: first the buffers that the device reads, then those it writes (virtio 1.2 §2.7.4.2).
 * The {@link Virtqueue} fills it after checking all of it, out of a copy that the driver cannot change any more;
 * from then on every byte that {@link reader} and {@link writer} reach is guest memory of the right direction.
 *
 * Chains are recycled: once given back to its queue, a chain must not be touched.
 */
export class DescriptorChain {
  readonly reader: ChainReader
  readonly writer: ChainWriter
  readonly #readable = new Segments()
  readonly #writable = new Segments()
  readonly #memory: GuestMemory
  /** The index of the head descriptor, which names the request in the used ring; -1 while the queue has it. */
  head = -1
  /** When the queue handed it out, in ms of performance.now(); for a queue that counts. */
  taken = 0

  constructor(memory: GuestMemory) {
    this.#memory = memory
    this.reader = new ChainReader(memory, this.#readable)
    this.writer = new ChainWriter(memory, this.#writable)
  }

  /** Bytes that the device may read. */
  get readable(): number {
    return this.#readable.total
  }

  /** Forgets its buffers. For the queue. */
  start(head: number): void {
    this.head = head
    this.#readable.clear()
    this.#writable.clear()
    this.reader.rewind()
    this.writer.rewind()
  }

  /**
   * Appends a buffer. For the queue.
   * @throws {@link VirtioError} DESCRIPTOR_ORDER, DESCRIPTOR_ADDRESS, CHAIN_LENGTH
   */
  add(address: number, length: number, writable: boolean): void {
    if (!writable && this.#writable.count > 0)
      throw new VirtioError('DESCRIPTOR_ORDER', `chain ${this.head}: a readable buffer after a writable one`)
    if (!this.#memory.contains(address, length, writable))
      throw new VirtioError(
        'DESCRIPTOR_ADDRESS',
        `chain ${this.head}: ${length} bytes at 0x${address.toString(16)} are not ${writable ? 'writable ' : ''}guest memory`,
      )
    ;(writable ? this.#writable : this.#readable).add(address, length)
    if (this.#readable.total + this.#writable.total >= 2 ** 32)
      throw new VirtioError('CHAIN_LENGTH', `chain ${this.head}: 4 GiB or more`)
  }
}
