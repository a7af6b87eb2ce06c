import { IoVector, SysError } from '@coracle/sys'
import {
  type ChainReader,
  type ChainWriter,
  type DescriptorChain,
  type DeviceContext,
  VirtioError,
  type VirtioDevice,
  type Virtqueue,
} from 'vhost-user-ts'
import { RateLimiter, type RateLimits, isLimited } from '../rate-limiter.js'
import { Turn } from '../turn.js'
import { type Disk, SECTOR_SIZE } from './disk.js'

/** linux/virtio_blk.h */
const VIRTIO_ID_BLOCK = 2
const VIRTIO_BLK_F_SEG_MAX = 1n << 2n
const VIRTIO_BLK_F_RO = 1n << 5n
const VIRTIO_BLK_F_BLK_SIZE = 1n << 6n
const VIRTIO_BLK_F_FLUSH = 1n << 9n
const VIRTIO_BLK_F_DISCARD = 1n << 13n
const VIRTIO_BLK_F_WRITE_ZEROES = 1n << 14n
const VIRTIO_BLK_T_IN = 0
const VIRTIO_BLK_T_OUT = 1
const VIRTIO_BLK_T_FLUSH = 4
const VIRTIO_BLK_T_GET_ID = 8
const VIRTIO_BLK_T_DISCARD = 11
const VIRTIO_BLK_T_WRITE_ZEROES = 13
const VIRTIO_BLK_S_OK = 0
const VIRTIO_BLK_S_IOERR = 1
const VIRTIO_BLK_S_UNSUPP = 2
const VIRTIO_BLK_ID_BYTES = 20
const VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1
/** sizeof(struct virtio_blk_req) before its data */
const HEADER_SIZE = 16
/** sizeof(struct virtio_blk_discard_write_zeroes) */
const RANGE_SIZE = 16
const MAX_RANGES = 32
/** Sectors of one discard or write-zeroes: 2 GiB. */
const MAX_RANGE_SECTORS = 1 << 22
const QUEUE_SIZE = 256
/** Requests handled before other devices get their turn. */
const BUDGET = 64

/** What the guest reads and writes. Discarding and zeroing count as writing, of their lists alone; flushing is free. */
export interface BlkLimits {
  readonly read?: RateLimits
  readonly write?: RateLimits
}

export interface BlkInit {
  /** For logs, such as `root`. */
  readonly name: string
  readonly disk: Disk
  /** What the guest finds in /sys/block/vdX/serial: at most 20 bytes. @default '' */
  readonly serial?: string
  readonly limits?: BlkLimits
  /** Hears of I/O errors, which the guest gets as such. */
  readonly log?: (message: string) => void
}

interface Active {
  readonly context: DeviceContext
  readonly turn: Turn
  readonly writeThrough: boolean
  readonly reading: RateLimiter | undefined
  readonly writing: RateLimiter | undefined
}

/**
 * The block device (virtio 1.2 §5.2), one queue. Data moves by preadv and pwritev on guest memory.
 *
 * A request is carried out at once, on the device's thread: {@link Blk.notify} takes a chain and `#finish` gives it
 * back, and nothing else knows that no time passes in between; an asynchronous disk would call `#finish` later.
 */
export class Blk implements VirtioDevice {
  readonly name: string
  readonly type = VIRTIO_ID_BLOCK
  readonly queueSizes = [QUEUE_SIZE]
  readonly features: bigint
  readonly config = new Uint8Array(60)
  readonly #disk: Disk
  readonly #serial: Uint8Array
  readonly #log: ((message: string) => void) | undefined
  readonly #vector = new IoVector()
  readonly #limits: BlkLimits
  #active: Active | undefined

  constructor({ name, disk, serial = '', limits = {}, log }: BlkInit) {
    this.name = `blk ${name}`
    this.#disk = disk
    this.#limits = limits
    this.#log = log
    this.#serial = new Uint8Array(VIRTIO_BLK_ID_BYTES)
    this.#serial.set(Buffer.from(serial).subarray(0, VIRTIO_BLK_ID_BYTES))
    this.features =
      VIRTIO_BLK_F_SEG_MAX |
      VIRTIO_BLK_F_BLK_SIZE |
      VIRTIO_BLK_F_FLUSH |
      (disk.readOnly ? VIRTIO_BLK_F_RO : VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES)
    // struct virtio_blk_config
    const config = new DataView(this.config.buffer)
    config.setBigUint64(0, BigInt(disk.size / SECTOR_SIZE), true)
    config.setUint32(12, QUEUE_SIZE - 2, true)
    config.setUint32(20, SECTOR_SIZE, true)
    config.setUint16(34, 1, true)
    config.setUint32(36, MAX_RANGE_SECTORS, true)
    config.setUint32(40, MAX_RANGES, true)
    config.setUint32(44, 4096 / SECTOR_SIZE, true)
    config.setUint32(48, MAX_RANGE_SECTORS, true)
    config.setUint32(52, MAX_RANGES, true)
    config.setUint8(56, 1)
  }

  activate(context: DeviceContext): void {
    const turn = Turn.of(context, () => this.notify())
    const limiter = (rates: RateLimits | undefined): RateLimiter | undefined =>
      isLimited(rates) ? new RateLimiter(rates, context.loop, () => turn.later()) : undefined
    const { read, write } = this.#limits
    this.#active = {
      context,
      turn,
      writeThrough: (context.features & VIRTIO_BLK_F_FLUSH) === 0n,
      reading: limiter(read),
      writing: limiter(write),
    }
  }

  notify(): void {
    const queue = this.#active?.context.queues[0]
    if (!this.#active || !queue) return
    const { context, turn } = this.#active
    let budget = BUDGET
    let held = false
    queue.disableNotifications()
    do {
      for (let chain = queue.pop(); chain; chain = budget > 0 && !held ? queue.pop() : undefined) {
        budget--
        held = !this.#request(queue, chain)
      }
    } while (!held && queue.enableNotifications() && budget > 0)
    if (budget <= 0 && !held) turn.later()
    if (queue.flush()) context.interrupt(0)
  }

  reset(): void {
    this.#active?.turn[Symbol.dispose]()
    this.#active?.reading?.[Symbol.dispose]()
    this.#active?.writing?.[Symbol.dispose]()
    this.#active = undefined
  }

  /** The disk is copied beside the snapshot: what is in it by now must be what the copy gets. */
  save(): null {
    if (!this.#disk.readOnly) this.#disk.flush()
    return null
  }

  /** @returns whether it was carried out: else it is back in the queue, and the limiter calls when it may be */
  #request(queue: Virtqueue, chain: DescriptorChain): boolean {
    const { reader, writer } = chain
    if (writer.length === 0) throw new VirtioError('DEVICE_REQUEST', `${this.name}: no room for the status`)
    const type = reader.u32()
    const limiter = this.#limiter(type)
    if (limiter?.pass() === false) {
      queue.undo(chain)
      return false
    }
    reader.skip(4)
    const sector = reader.u32() + reader.u32() * 2 ** 32
    let status: number
    try {
      status = this.#perform(type, sector, reader, writer)
    } catch (error) {
      if (!(error instanceof SysError)) throw error
      status = error.code === 'EOPNOTSUPP' ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR
      this.#log?.(`${this.name}: request ${type} at sector ${sector}: ${error.message}`)
    }
    limiter?.charge(type === VIRTIO_BLK_T_IN ? writer.position : reader.position - HEADER_SIZE)
    this.#finish(queue, chain, status)
    return true
  }

  #limiter(type: number): RateLimiter | undefined {
    switch (type) {
      case VIRTIO_BLK_T_IN:
        return this.#active?.reading
      case VIRTIO_BLK_T_OUT:
      case VIRTIO_BLK_T_DISCARD:
      case VIRTIO_BLK_T_WRITE_ZEROES:
        return this.#active?.writing
      default:
        return undefined
    }
  }

  /** The status is the last writable byte, wherever the data ended. */
  #finish(queue: Virtqueue, chain: DescriptorChain, status: number): void {
    const { writer } = chain
    if (status !== VIRTIO_BLK_S_OK) queue.noteError()
    const moved = writer.position
    writer.skip(writer.length - 1)
    writer.u8(status)
    // Only a full answer counts up to the status: what lies before it must have been written.
    queue.push(chain, moved + 1 === writer.position ? writer.position : moved)
  }

  /** @returns VIRTIO_BLK_S_* */
  #perform(type: number, sector: number, reader: ChainReader, writer: ChainWriter): number {
    const disk = this.#disk
    const room = writer.length - 1
    switch (type) {
      case VIRTIO_BLK_T_IN:
        return this.#move(writer, room, sector, (vector, offset) => disk.read(vector, offset))
      case VIRTIO_BLK_T_OUT: {
        if (disk.readOnly) return VIRTIO_BLK_S_IOERR
        const status = this.#move(reader, reader.length, sector, (vector, offset) =>
          disk.write(vector, offset),
        )
        if (status === VIRTIO_BLK_S_OK && this.#active?.writeThrough === true) disk.flush()
        return status
      }
      case VIRTIO_BLK_T_FLUSH:
        if (!disk.readOnly) disk.flush()
        return VIRTIO_BLK_S_OK
      case VIRTIO_BLK_T_GET_ID:
        writer.bytes(this.#serial.subarray(0, Math.min(room, VIRTIO_BLK_ID_BYTES)))
        return VIRTIO_BLK_S_OK
      case VIRTIO_BLK_T_DISCARD:
      case VIRTIO_BLK_T_WRITE_ZEROES:
        return disk.readOnly ? VIRTIO_BLK_S_IOERR : this.#clear(type, reader)
      default:
        return VIRTIO_BLK_S_UNSUPP
    }
  }

  #move(
    cursor: ChainReader | ChainWriter,
    length: number,
    sector: number,
    step: (vector: IoVector, offset: number) => number,
  ): number {
    if (length % SECTOR_SIZE !== 0 || !this.#within(sector, length)) return VIRTIO_BLK_S_IOERR
    let offset = sector * SECTOR_SIZE
    for (let left = length; left > 0;) {
      cursor.vector(this.#vector.clear(), left)
      const moved = step(this.#vector, offset)
      // The file became shorter than its size at the start.
      if (moved <= 0) return VIRTIO_BLK_S_IOERR
      cursor.skip(moved)
      offset += moved
      left -= moved
    }
    return VIRTIO_BLK_S_OK
  }

  #clear(type: number, reader: ChainReader): number {
    const count = reader.length / RANGE_SIZE
    if (!Number.isInteger(count) || count < 1 || count > MAX_RANGES) return VIRTIO_BLK_S_IOERR
    for (let i = 0; i < count; i++) {
      const sector = reader.u32() + reader.u32() * 2 ** 32
      const sectors = reader.u32()
      const flags = reader.u32()
      const unmap = (flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) !== 0
      if ((flags & ~VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) !== 0 || (unmap && type === VIRTIO_BLK_T_DISCARD))
        return VIRTIO_BLK_S_UNSUPP
      const length = sectors * SECTOR_SIZE
      if (sectors > MAX_RANGE_SECTORS || !this.#within(sector, length)) return VIRTIO_BLK_S_IOERR
      if (sectors === 0) continue
      if (type === VIRTIO_BLK_T_DISCARD || unmap) this.#disk.discard(sector * SECTOR_SIZE, length)
      else this.#disk.zero(sector * SECTOR_SIZE, length)
    }
    return VIRTIO_BLK_S_OK
  }

  #within(sector: number, length: number): boolean {
    return sector <= this.#disk.size / SECTOR_SIZE && sector * SECTOR_SIZE + length <= this.#disk.size
  }
}
