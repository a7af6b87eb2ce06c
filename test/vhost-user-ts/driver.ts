import { Epoll, type Fd, Mapping, PROT_NONE, memfd } from '@coracle/sys'
import {
  GuestMemory,
  type MemoryRegion,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_VERSION_1,
  VRING_DESC_F_INDIRECT,
  VRING_DESC_F_NEXT,
  VRING_DESC_F_WRITE,
  Virtqueue,
  type VirtioDevice,
} from 'vhost-user-ts'

/** Where the tests' guest memory starts: not at zero, so that an offset taken for an address is noticed. */
export const BASE = 0x10_0000

export const RING_FEATURES = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX

/** A piece of guest memory that the driver offers: readable with these bytes, or writable of this length. */
export type DriverBuffer = Uint8Array | number

export interface Used {
  head: number
  written: number
}

/** Bytes before and after a test guest's memory that end the process when they are touched. */
export const GUARD = 1 << 20

/**
 * The guest of a test: a stretch of memory at {@link BASE} with a bump allocator. What lies around it on the host is
 * mapped without any right, so an access that leaves it is a crash of the test.
 */
export class TestGuest implements Disposable {
  readonly mapping: Mapping
  readonly region: MemoryRegion
  readonly memory: GuestMemory
  readonly #file: Fd
  #next = BASE

  constructor(readonly size = 16 << 20) {
    this.mapping = Mapping.create({ length: size + 2 * GUARD, prot: PROT_NONE })
    const fd = (this.#file = memfd('test-guest', size))
    this.mapping.overlay(GUARD, { fd, length: size })
    const file = { fd, offset: 0 }
    this.region = { guestAddress: BASE, size, mapping: this.mapping, mappingOffset: GUARD, file }
    this.memory = new GuestMemory([this.region])
  }

  /** Empties the memory and forgets what was allocated. */
  clear(): void {
    this.mapping.bytes(GUARD, this.size).fill(0)
    this.#next = BASE
  }

  allocate(length: number, alignment = 16): number {
    const at = Math.ceil(this.#next / alignment) * alignment
    this.#next = at + length
    if (this.#next > BASE + this.size) throw new RangeError('the test guest is out of memory')
    return at
  }

  bytes(address: number, length: number): Uint8Array {
    const copy = new Uint8Array(length)
    this.memory.read(address, copy)
    return copy
  }

  [Symbol.dispose](): void {
    this.mapping.unmap()
    this.#file.close()
  }
}

/** The driver's side of one split virtqueue, as simple as can be: it reuses descriptors once their chain is used. */
export class DriverQueue {
  readonly descriptorTable: number
  readonly availableRing: number
  readonly usedRing: number
  readonly #free: number[] = []
  readonly #chains = new Map<
    number,
    { descriptors: number[]; writable: { address: number; length: number }[] }
  >()
  #available = 0
  #seen = 0

  constructor(
    readonly guest: TestGuest,
    readonly size: number,
    readonly features = RING_FEATURES,
  ) {
    this.descriptorTable = guest.allocate(size * 16, 16)
    this.availableRing = guest.allocate(6 + size * 2, 2)
    this.usedRing = guest.allocate(6 + size * 8, 4)
    for (let i = size - 1; i >= 0; i--) this.#free.push(i)
  }

  device(index = 0, maxSize = this.size): Virtqueue {
    const { size, descriptorTable, availableRing, usedRing, features } = this
    return new Virtqueue(this.guest.memory, {
      index,
      size,
      maxSize,
      descriptorTable,
      availableRing,
      usedRing,
      features,
    })
  }

  /** Writes one descriptor, as it is given. */
  describe(table: number, i: number, address: number, length: number, flags: number, next = 0): void {
    const at = table + i * 16
    this.guest.memory.writeU64(at, BigInt(address))
    this.guest.memory.writeU32(at + 8, length)
    this.guest.memory.writeU16(at + 12, flags)
    this.guest.memory.writeU16(at + 14, next)
  }

  /** Makes the chain at `head` available, whatever it is. */
  offer(head: number): void {
    this.guest.memory.writeU16(this.availableRing + 4 + (this.#available % this.size) * 2, head)
    this.#available = (this.#available + 1) & 0xffff
    this.guest.memory.writeU16(this.availableRing + 2, this.#available)
  }

  /** Offers a request of readable buffers, then writable ones. @returns its head */
  submit(buffers: readonly DriverBuffer[], indirect = false): number {
    const { memory } = this.guest
    const parts = buffers.map((each) => {
      const length = typeof each === 'number' ? each : each.length
      const address = this.guest.allocate(Math.max(length, 1), 1)
      if (typeof each !== 'number') memory.write(address, each)
      return { address, length, flags: typeof each === 'number' ? VRING_DESC_F_WRITE : 0 }
    })
    const writable = parts.filter((each) => each.flags !== 0)
    const needed = indirect ? 1 : parts.length
    if (this.#free.length < needed) throw new RangeError('the driver queue is full')
    const descriptors = Array.from({ length: needed }, () => this.#free.pop()!)
    const head = descriptors[0]!
    const table = indirect ? this.guest.allocate(parts.length * 16) : this.descriptorTable
    parts.forEach((part, i) => {
      const last = i === parts.length - 1
      const next = last ? 0 : indirect ? i + 1 : descriptors[i + 1]!
      const flags = part.flags | (last ? 0 : VRING_DESC_F_NEXT)
      this.describe(table, indirect ? i : descriptors[i]!, part.address, part.length, flags, next)
    })
    if (indirect) this.describe(this.descriptorTable, head, table, parts.length * 16, VRING_DESC_F_INDIRECT)
    this.#chains.set(head, { descriptors, writable })
    this.offer(head)
    return head
  }

  /** What the device has used since the last call. */
  used(): Used[] {
    const { memory } = this.guest
    const index = memory.readU16(this.usedRing + 2)
    const used: Used[] = []
    for (; this.#seen !== index; this.#seen = (this.#seen + 1) & 0xffff) {
      const at = this.usedRing + 4 + (this.#seen % this.size) * 8
      used.push({ head: memory.readU32(at), written: memory.readU32(at + 4) })
    }
    return used
  }

  /** The bytes of a used request's writable part, and its descriptors back into the free list. */
  collect({ head, written }: Used): Uint8Array {
    const chain = this.#chains.get(head)
    if (!chain) throw new Error(`the device used chain ${head}, which was not offered`)
    this.#chains.delete(head)
    this.#free.push(...chain.descriptors)
    const out = new Uint8Array(written)
    let at = 0
    for (const { address, length } of chain.writable) {
      const piece = Math.min(length, written - at)
      out.set(this.guest.bytes(address, piece), at)
      at += piece
    }
    return out
  }

  /** Every used request's bytes since the last call. */
  results(): Uint8Array[] {
    return this.used().map((each) => this.collect(each))
  }
}

/** A transport for tests: it activates a device, and notes its interrupts and failures. */
export class TestTransport implements Disposable {
  readonly guest: TestGuest
  readonly queues: DriverQueue[]
  readonly loop = new Epoll()
  readonly interrupts: number[] = []
  readonly failures: Error[] = []
  configChanges = 0

  constructor(
    readonly device: VirtioDevice,
    features = device.features,
    memory?: number,
  ) {
    const guest = (this.guest = new TestGuest(memory))
    const agreed = features | RING_FEATURES
    this.queues = device.queueSizes.map((size) => new DriverQueue(guest, size, agreed))
    device.activate({
      memory: guest.memory,
      queues: this.queues.map((queue, i) => queue.device(i)),
      features: agreed,
      loop: this.loop,
      interrupt: (index) => this.interrupts.push(index),
      configChanged: () => this.configChanges++,
      fail: (reason) => this.failures.push(reason),
    })
  }

  /** Rings a doorbell as a transport does: what the device throws becomes a failure. */
  notify(index: number): void {
    try {
      this.device.notify(index)
    } catch (error) {
      this.failures.push(error as Error)
    }
  }

  /** Offers a request on a queue, rings, and returns the bytes that the device answered at once. */
  request(index: number, buffers: readonly DriverBuffer[], indirect = false): Uint8Array | undefined {
    const queue = this.queues[index]!
    queue.submit(buffers, indirect)
    this.notify(index)
    return queue.results()[0]
  }

  /** Handles what is ready on the device's own descriptors. */
  turn(timeout = 0): void {
    while (this.loop.wait(timeout) > 0) timeout = 0
  }

  [Symbol.dispose](): void {
    this.device.reset()
    this.loop.close()
    this.guest[Symbol.dispose]()
  }
}
