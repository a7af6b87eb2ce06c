import { DescriptorChain } from './descriptor-chain.js'
import type { GuestMemory } from './guest-memory.js'
import type { InflightQueue } from './inflight.js'
import {
  QUEUE_BYTES_IN,
  QUEUE_BYTES_OUT,
  QUEUE_DEPTH,
  QUEUE_ERRORS,
  QUEUE_IN_FLIGHT,
  QUEUE_LATENCY,
  QUEUE_REQUESTS,
  latencyBucket,
} from './queue-counters.js'
import { VirtioError } from './virtio-error.js'

/** linux/virtio_ring.h */
export const VRING_DESC_F_NEXT = 1
export const VRING_DESC_F_WRITE = 2
export const VRING_DESC_F_INDIRECT = 4
export const VRING_USED_F_NO_NOTIFY = 1
export const VRING_AVAIL_F_NO_INTERRUPT = 1
const DESCRIPTOR_SIZE = 16

/** Feature bits of the ring itself (virtio 1.2 §6), which a transport offers for every device. */
export const VIRTIO_F_INDIRECT_DESC = 1n << 28n
export const VIRTIO_F_EVENT_IDX = 1n << 29n
export const VIRTIO_F_VERSION_1 = 1n << 32n
/** What {@link Virtqueue} can do: on offer unless the device says otherwise ({@link VirtioDevice.ringFeatures}). */
export const RING_FEATURES = VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX

/** What the driver wrote into the queue's registers, or a vhost-user frontend sent. Addresses are guest-physical. */
export interface VirtqueueInit {
  /** Which of the device's queues this is, for messages. */
  readonly index: number
  readonly size: number
  /** {@link VirtioDevice.queueSizes} of this queue. */
  readonly maxSize: number
  readonly descriptorTable: number
  readonly availableRing: number
  readonly usedRing: number
  /** The negotiated features: VIRTIO_F_INDIRECT_DESC and VIRTIO_F_EVENT_IDX matter here. */
  readonly features: bigint
  /** Where to go on, for a queue that ran before. @default 0 */
  readonly nextAvailable?: number
  /** @default 0 */
  readonly nextUsed?: number
  /** Where to count: QUEUE_COUNTERS numbers, at the places `QUEUE_*`. @default nowhere */
  readonly counters?: Float64Array
  /**
   * Keeps which requests are in flight. What an earlier device left there is taken again before anything else, and
   * {@link nextAvailable} follows from it.
   */
  readonly inflight?: InflightQueue
}

/**
 * The device's side of a split virtqueue (virtio 1.2 §2.7):
 *
 *     descriptor table  size × { addr u64, len u32, flags u16, next u16 }     driver writes
 *     available ring    flags u16, idx u16, size × u16, used_event u16        driver writes
 *     used ring         flags u16, idx u16, size × { id u32, len u32 }, avail_event u16   device writes
 *
 * The driver may change all of it at any time, from another processor. So: each field is read once, checked and
 * then used from the copy. `avail.idx` is read and `used.idx` written with Atomics, which on this (plain) memory
 * are sequentially consistent all the same: entries are read after the index that announces them, written before
 * it, and the index is written before the other side's wish for an event is read.
 *
 * A device takes chains with {@link pop}, gives each back with {@link push}, and after a batch calls {@link flush}.
 */
export class Virtqueue {
  readonly index: number
  readonly size: number
  /** Guest-physical addresses of the three parts. */
  readonly descriptorTable: number
  readonly availableRing: number
  readonly usedRing: number
  readonly #memory: GuestMemory
  readonly #mask: number
  readonly #descriptors: Uint32Array
  readonly #available: Uint16Array
  readonly #used: Uint32Array
  readonly #used16: Uint16Array
  readonly #eventIndex: boolean
  readonly #indirect: boolean
  readonly #free: DescriptorChain[] = []
  readonly #counters: Float64Array | undefined
  readonly #inflightQueue: InflightQueue | undefined
  /** Heads that were taken before our time and never given back: they come first. */
  readonly #again: number[] = []
  #nextAvailable: number
  #nextUsed: number
  /** What `used.idx` shows to the driver. */
  #published: number
  #inFlight = 0

  /** @throws {@link VirtioError} QUEUE_SIZE, QUEUE_ALIGNMENT, QUEUE_ADDRESS */
  constructor(memory: GuestMemory, init: VirtqueueInit) {
    const { index, size, maxSize, descriptorTable, availableRing, usedRing } = init
    if (!Number.isInteger(size) || size < 1 || size > Math.min(maxSize, 32768) || (size & (size - 1)) !== 0)
      throw new VirtioError('QUEUE_SIZE', `queue ${index}: size ${size} is no power of two up to ${maxSize}`)
    this.#memory = memory
    this.index = index
    this.size = size
    this.descriptorTable = descriptorTable
    this.availableRing = availableRing
    this.usedRing = usedRing
    this.#mask = size - 1
    const part = (address: number, length: number, alignment: number, writable: boolean): ArrayBuffer => {
      if (address % alignment !== 0)
        throw new VirtioError('QUEUE_ALIGNMENT', `queue ${index}: 0x${address.toString(16)} is not aligned`)
      try {
        return memory.view(address, length, writable)
      } catch (error) {
        if (!(error instanceof VirtioError)) throw error
        throw new VirtioError('QUEUE_ADDRESS', `queue ${index}: ${error.message}`)
      }
    }
    this.#descriptors = new Uint32Array(part(descriptorTable, size * DESCRIPTOR_SIZE, 16, false))
    this.#available = new Uint16Array(part(availableRing, 6 + size * 2, 2, false))
    const used = part(usedRing, 6 + size * 8, 4, true)
    this.#used = new Uint32Array(used, 0, 1 + size * 2)
    this.#used16 = new Uint16Array(used)
    this.#counters = init.counters
    if (this.#counters) this.#counters[QUEUE_IN_FLIGHT] = 0
    this.#indirect = (init.features & VIRTIO_F_INDIRECT_DESC) !== 0n
    this.#eventIndex = (init.features & VIRTIO_F_EVENT_IDX) !== 0n
    this.#nextAvailable = (init.nextAvailable ?? 0) & 0xffff
    this.#nextUsed = (init.nextUsed ?? 0) & 0xffff
    this.#published = this.#nextUsed
    this.#inflightQueue = init.inflight
    if (!init.inflight) return
    this.#again = init.inflight.recover(this.#nextUsed)
    this.#nextAvailable = (this.#nextUsed + this.#again.length) & 0xffff
  }

  /** The index of the next available entry to take: what a vhost-user frontend asks for when it stops the ring. */
  get nextAvailable(): number {
    return this.#nextAvailable
  }

  get nextUsed(): number {
    return this.#nextUsed
  }

  /** Where somebody else who served the queue has left it; nothing is in flight. */
  moveTo(nextAvailable: number, nextUsed: number): void {
    this.#nextAvailable = nextAvailable & 0xffff
    this.#nextUsed = this.#published = nextUsed & 0xffff
  }

  /** Chains taken and not given back. */
  get inFlight(): number {
    return this.#inFlight
  }

  /**
   * Whether a chain waits.
   * @throws {@link VirtioError} AVAILABLE_INDEX
   */
  get ready(): boolean {
    return this.#again.length > 0 || this.#waiting() > 0
  }

  /**
   * Takes the next chain, wholly validated; undefined where none waits.
   * @throws {@link VirtioError} with the code of the rule that the driver broke
   */
  pop(): DescriptorChain | undefined {
    const again = this.#again.length > 0
    if (!again && this.#waiting() === 0) return undefined
    const head = again ? this.#again[0]! : this.#available[2 + (this.#nextAvailable & this.#mask)]!
    if (head >= this.size)
      throw new VirtioError('DESCRIPTOR_INDEX', `queue ${this.index}: head ${head} of ${this.size}`)
    const chain = this.#free.pop() ?? new DescriptorChain(this.#memory)
    chain.start(head)
    this.#collect(chain, head)
    if (again) this.#again.shift()
    else this.#nextAvailable = (this.#nextAvailable + 1) & 0xffff
    this.#inflightQueue?.take(head)
    this.#inFlight++
    const counters = this.#counters
    if (counters) {
      chain.taken = performance.now()
      counters[QUEUE_IN_FLIGHT] = this.#inFlight
      if (this.#inFlight > counters[QUEUE_DEPTH]!) counters[QUEUE_DEPTH] = this.#inFlight
    }
    return chain
  }

  /** Puts the chain that {@link pop} returned last back, unused: the next pop finds it again. */
  undo(chain: DescriptorChain): void {
    const { head } = chain
    this.#release(chain)
    // With its place in the order it stays in flight, and is simply the next to be taken again.
    if (this.#inflightQueue) return void this.#again.unshift(head)
    this.#nextAvailable = (this.#nextAvailable - 1) & 0xffff
  }

  /**
   * Gives a chain back as used. The driver learns of it with the next {@link flush}.
   * @param written bytes written into its writable part, from the start of that
   */
  push(chain: DescriptorChain, written: number): void {
    const slot = 1 + (this.#nextUsed & this.#mask) * 2
    this.#used[slot] = chain.head
    this.#used[slot + 1] = written
    this.#inflightQueue?.give(chain.head)
    this.#release(chain)
    this.#nextUsed = (this.#nextUsed + 1) & 0xffff
    const counters = this.#counters
    if (!counters) return
    counters[QUEUE_REQUESTS]!++
    counters[QUEUE_BYTES_OUT]! += chain.readable
    counters[QUEUE_BYTES_IN]! += written
    counters[QUEUE_LATENCY + latencyBucket(performance.now() - chain.taken)]!++
  }

  /** Counts a request that the device answers with an error. */
  noteError(): void {
    if (this.#counters) this.#counters[QUEUE_ERRORS]!++
  }

  /**
   * Shows the driver what was given back since the last time.
   * @returns whether the driver wants an interrupt for it (virtio 1.2 §2.7.7)
   */
  flush(): boolean {
    const before = this.#published
    const now = this.#nextUsed
    if (before === now) return false
    Atomics.store(this.#used16, 1, now)
    this.#published = now
    this.#inflightQueue?.publish(now)
    if (!this.#eventIndex) return (Atomics.load(this.#available, 0) & VRING_AVAIL_F_NO_INTERRUPT) === 0
    const event = Atomics.load(this.#available, 2 + this.size)
    return ((now - event - 1) & 0xffff) < ((now - before) & 0xffff)
  }

  /** Tells the driver that its doorbell is not needed: the device looks at the queue by itself. A hint only. */
  disableNotifications(): void {
    if (!this.#eventIndex) Atomics.store(this.#used16, 0, VRING_USED_F_NO_NOTIFY)
  }

  /**
   * Asks for the doorbell at the next chain.
   * @returns whether a chain came in between: then take it, since no doorbell may ring for it
   * @throws {@link VirtioError} AVAILABLE_INDEX
   */
  enableNotifications(): boolean {
    if (this.#eventIndex) Atomics.store(this.#used16, 2 + this.size * 4, this.#nextAvailable)
    else Atomics.store(this.#used16, 0, 0)
    return this.ready
  }

  #waiting(): number {
    const waiting = (Atomics.load(this.#available, 1) - this.#nextAvailable) & 0xffff
    if (waiting + this.#inFlight > this.size)
      throw new VirtioError(
        'AVAILABLE_INDEX',
        `queue ${this.index}: ${waiting} chains available and ${this.#inFlight} in flight in a queue of ${this.size}`,
      )
    return waiting
  }

  #release(chain: DescriptorChain): void {
    if (chain.head < 0) throw new VirtioError('CHAIN_STATE', `queue ${this.index}: chain given back twice`)
    chain.head = -1
    this.#inFlight--
    if (this.#counters) this.#counters[QUEUE_IN_FLIGHT] = this.#inFlight
    this.#free.push(chain)
  }

  #collect(chain: DescriptorChain, head: number): void {
    const table = this.#descriptors
    let count = 0
    for (let next = head; ;) {
      if (next >= this.size) throw this.#error('DESCRIPTOR_INDEX', chain, `descriptor ${next}`)
      if (++count > this.size) throw this.#error('DESCRIPTOR_LOOP', chain, 'longer than the queue')
      const low = table[next * 4]!
      const high = table[next * 4 + 1]!
      const length = table[next * 4 + 2]!
      const last = table[next * 4 + 3]!
      const flags = last & 0xffff
      const address = high * 2 ** 32 + low
      if ((flags & VRING_DESC_F_INDIRECT) !== 0) {
        if ((flags & VRING_DESC_F_NEXT) !== 0)
          throw this.#error('INDIRECT_NESTED', chain, 'indirect with a next descriptor')
        return this.#collectIndirect(chain, address, length, count - 1)
      }
      chain.add(address, length, (flags & VRING_DESC_F_WRITE) !== 0)
      if ((flags & VRING_DESC_F_NEXT) === 0) return
      next = last >>> 16
    }
  }

  #collectIndirect(chain: DescriptorChain, table: number, length: number, before: number): void {
    if (!this.#indirect) throw this.#error('INDIRECT_NOT_NEGOTIATED', chain, 'indirect descriptor')
    const size = length / DESCRIPTOR_SIZE
    if (size < 1 || !Number.isInteger(size) || size > this.size)
      throw this.#error('INDIRECT_LENGTH', chain, `indirect table of ${length} bytes`)
    const memory = this.#memory
    if (!memory.contains(table, length)) throw this.#error('INDIRECT_ADDRESS', chain, 'indirect table')
    let count = before
    for (let next = 0; ;) {
      if (next >= size) throw this.#error('DESCRIPTOR_INDEX', chain, `indirect descriptor ${next}`)
      if (++count > this.size) throw this.#error('DESCRIPTOR_LOOP', chain, 'longer than the queue')
      const at = table + next * DESCRIPTOR_SIZE
      const address = memory.readU32(at + 4) * 2 ** 32 + memory.readU32(at)
      const bytes = memory.readU32(at + 8)
      const last = memory.readU32(at + 12)
      if ((last & VRING_DESC_F_INDIRECT) !== 0)
        throw this.#error('INDIRECT_NESTED', chain, 'indirect inside indirect')
      chain.add(address, bytes, (last & VRING_DESC_F_WRITE) !== 0)
      if ((last & VRING_DESC_F_NEXT) === 0) return
      next = last >>> 16
    }
  }

  #error(code: VirtioError['code'], chain: DescriptorChain, what: string): VirtioError {
    return new VirtioError(code, `queue ${this.index}, chain ${chain.head}: ${what}`)
  }
}
