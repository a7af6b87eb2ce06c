import { type Fd, F_SEAL_SHRINK, Mapping, memfd } from '@coracle/sys'
import { VhostUserError } from './message.js'
import { checkFileRange, sealAgainstShrinking } from './shared-memory.js'

/*
 * vhost-user.rst, "Inflight I/O tracking", split virtqueues. One part a queue:
 *
 *     features u64, version u16: 1, desc_num u16, last_batch_head u16, used_idx u16
 *     desc_num × { inflight u8, padding 5 bytes, next u16, counter u64 }
 */
const HEADER = 16
const ENTRY = 16
const VERSION_AT = 8
const DESC_NUM = 10
const LAST_BATCH_HEAD = 12
const USED_IDX = 14
const NEXT = 6
const COUNTER = 8
const VERSION = 1
const ALIGNMENT = 64
/** More than any frontend asks for. */
const MAX_SIZE = 32768
const MAX_QUEUES = 256

/** What VHOST_USER_GET_INFLIGHT_FD and SET_INFLIGHT_FD say beside the descriptor. Lengths are bytes. */
export interface InflightShape {
  readonly length: number
  readonly offset: number
  readonly queues: number
  readonly queueSize: number
}

/**
 * Which requests of which queue are in flight, in a memory file that the frontend keeps while backends come and go.
 * Its content is as trustworthy as the frontend: what is read from it is checked.
 */
export class InflightRegion implements Disposable {
  readonly fd: Fd
  readonly shape: InflightShape
  readonly #mapping: Mapping

  private constructor(fd: Fd, shape: InflightShape, mapping: Mapping) {
    this.fd = fd
    this.shape = shape
    this.#mapping = mapping
  }

  /** A new one, with nothing in flight. @throws VhostUserError, SysError */
  static create(queues: number, queueSize: number): InflightRegion {
    const shape = { length: partSize(queueSize) * queues, offset: 0, queues, queueSize }
    checkShape(shape)
    const fd = memfd('vhost-user-inflight', shape.length)
    try {
      fd.seal(F_SEAL_SHRINK)
      return InflightRegion.map(fd, shape)
    } catch (error) {
      fd.close()
      throw error
    }
  }

  /** @param fd becomes ours where this succeeds @throws VhostUserError, SysError */
  static map(fd: Fd, shape: InflightShape): InflightRegion {
    checkShape(shape)
    sealAgainstShrinking(fd)
    checkFileRange(fd, shape.offset, shape.length)
    const mapping = Mapping.create({ fd, offset: shape.offset, length: shape.length })
    return new InflightRegion(fd, shape, mapping)
  }

  /** One queue's part; undefined where the region has none for it. */
  queue(index: number): InflightQueue | undefined {
    const { queues, queueSize } = this.shape
    if (index >= queues) return undefined
    const size = partSize(queueSize)
    return new InflightQueue(new DataView(this.#mapping.view(index * size, size)), queueSize)
  }

  [Symbol.dispose](): void {
    this.#mapping.unmap()
    this.fd.close()
  }
}

/** The requests in flight of one split virtqueue: the device's side keeps it, a later one starts from it. */
export class InflightQueue {
  readonly #view: DataView
  readonly #size: number
  #batch: number[] = []
  #counter = 1

  constructor(view: DataView, size: number) {
    this.#view = view
    this.#size = size
  }

  /**
   * Where a backend before us stopped.
   * @param used the used ring's index
   * @returns the heads to carry out again, in the order in which they were taken
   * @throws VhostUserError where the memory says what cannot be
   */
  recover(used: number): number[] {
    const view = this.#view
    const version = view.getUint16(VERSION_AT, true)
    if (version === 0) {
      view.setUint16(DESC_NUM, this.#size, true)
      view.setUint16(USED_IDX, used, true)
      view.setUint16(VERSION_AT, VERSION, true)
      return []
    }
    if (version !== VERSION) throw new VhostUserError(`in-flight memory of version ${version}`)
    // A batch that the driver was shown, but that is not struck off here.
    let shown = (used - view.getUint16(USED_IDX, true)) & 0xffff
    if (shown > this.#size) throw new VhostUserError(`in-flight memory: a last batch of ${shown} requests`)
    for (let head = view.getUint16(LAST_BATCH_HEAD, true); shown > 0; shown--) {
      view.setUint8(this.#at(head), 0)
      head = view.getUint16(this.#at(head) + NEXT, true)
    }
    view.setUint16(USED_IDX, used, true)
    const heads = Array.from({ length: this.#size }, (_, head) => head).filter(
      (head) => view.getUint8(this.#at(head)) === 1,
    )
    const counters = new Map(heads.map((head) => [head, view.getBigUint64(this.#at(head) + COUNTER, true)]))
    heads.sort((a, b) => (counters.get(a)! < counters.get(b)! ? -1 : 1))
    const last = heads.at(-1)
    // Where the counter is beyond what a number holds, order starts anew: it is the frontend's own doing.
    if (last !== undefined) this.#counter = Number(BigInt.asUintN(52, counters.get(last)!)) + 1
    return heads
  }

  /** A request was taken from the available ring. */
  take(head: number): void {
    const at = this.#at(head)
    const counter = this.#counter++
    this.#view.setUint32(at + COUNTER, counter % 2 ** 32, true)
    this.#view.setUint32(at + COUNTER + 4, Math.floor(counter / 2 ** 32), true)
    this.#view.setUint8(at, 1)
  }

  /** A request was written into the used ring, whose index does not show it yet. */
  give(head: number): void {
    this.#view.setUint16(this.#at(head) + NEXT, this.#view.getUint16(LAST_BATCH_HEAD, true), true)
    this.#view.setUint16(LAST_BATCH_HEAD, head, true)
    this.#batch.push(head)
  }

  /** The used ring's index shows all that were given. */
  publish(used: number): void {
    for (const head of this.#batch) this.#view.setUint8(this.#at(head), 0)
    this.#batch.length = 0
    this.#view.setUint16(USED_IDX, used, true)
  }

  #at(head: number): number {
    if (head >= this.#size) throw new VhostUserError(`in-flight memory: request ${head} of ${this.#size}`)
    return HEADER + head * ENTRY
  }
}

/** Bytes of VhostUserInflight that matter; its C structure is padded to 24. */
export const INFLIGHT_SIZE = 20

/** VhostUserInflight, as a message's payload. */
export function describeInflight({ length, offset, queues, queueSize }: InflightShape): Uint8Array {
  const payload = new DataView(new ArrayBuffer(24))
  payload.setBigUint64(0, BigInt(length), true)
  payload.setBigUint64(8, BigInt(offset), true)
  payload.setUint16(16, queues, true)
  payload.setUint16(18, queueSize, true)
  return new Uint8Array(payload.buffer)
}

export function inflightShape(payload: DataView): InflightShape {
  return {
    length: Number(payload.getBigUint64(0, true)),
    offset: Number(payload.getBigUint64(8, true)),
    queues: payload.getUint16(16, true),
    queueSize: payload.getUint16(18, true),
  }
}

function partSize(queueSize: number): number {
  return Math.ceil((HEADER + queueSize * ENTRY) / ALIGNMENT) * ALIGNMENT
}

function checkShape({ length, offset, queues, queueSize }: InflightShape): void {
  const sizes = queues >= 1 && queues <= MAX_QUEUES && queueSize >= 1 && queueSize <= MAX_SIZE
  if (!sizes || length < partSize(queueSize) * queues || length > 2 ** 31 || offset % 4096 !== 0)
    throw new VhostUserError(
      `in-flight memory of ${length} bytes at ${offset} for ${queues} queues of ${queueSize}`,
    )
}
