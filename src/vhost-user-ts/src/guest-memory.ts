import type { Fd, IoVector, Mapping } from '@coracle/sys'
import { VirtioError } from './virtio-error.js'

/** One range of guest-physical addresses backed by host memory: a KVM memslot or a vhost-user memory region. */
export interface MemoryRegion {
  /** First guest-physical address. */
  readonly guestAddress: number
  /** Length in bytes. */
  readonly size: number
  readonly mapping: Mapping
  /** Where in the mapping the region starts, in bytes. */
  readonly mappingOffset: number
  /**
   * Mapped without PROT_WRITE, such as virtio-pmem: a driver may have a device read from there (DAX pages), never
   * write. @default false
   */
  readonly readOnly?: boolean
  /** The file that is mapped, where another process may map it too (vhost-user), and where in it the region starts. */
  readonly file?: { readonly fd: Fd; readonly offset: number }
}

/**
 * Views are at most this long, in bytes, and made when they are first used: V8 counts what they cover as memory that
 * it might free, and would collect garbage for a view of a whole guest.
 */
const WINDOW = 2 ** 24
/** No user-space or guest-physical address is above; below it a number is exact. */
const MAX_ADDRESS = 2 ** 52

/** A part of a region, where its numbers and bytes are read and written. */
class Window {
  #view: DataView | undefined
  #bytes: Uint8Array | undefined
  readonly #offset: number
  /** The host address of `start`; a user-space address is exact in a number. */
  readonly host: number

  constructor(
    readonly start: number,
    readonly end: number,
    readonly region: MemoryRegion,
  ) {
    this.#offset = region.mappingOffset + start - region.guestAddress
    this.host = Number(region.mapping.address) + this.#offset
  }

  get bytes(): Uint8Array {
    return (this.#bytes ??= this.region.mapping.bytes(this.#offset, this.end - this.start))
  }

  get view(): DataView {
    return (this.#view ??= new DataView(this.bytes.buffer, this.bytes.byteOffset, this.bytes.length))
  }
}

/**
 * The guest's physical memory as the host sees it. Every address and length from the driver passes through here:
 * nothing outside the regions is ever touched. Numbers are little-endian, at any alignment. Addresses are bytes.
 *
 * The mappings stay with their owner, who keeps each mapped until its region is removed, or nobody holds this object.
 */
export class GuestMemory {
  #regions: readonly MemoryRegion[] = []
  #windows: Window[] = []
  /** Accesses cluster: the window of the last one is tried first. */
  #last: Window | undefined
  readonly #watchers = new Set<() => void>()

  /** @throws {@link VirtioError} MEMORY_LAYOUT */
  constructor(regions: readonly MemoryRegion[]) {
    this.#set(regions)
  }

  /** By their addresses. */
  get regions(): readonly MemoryRegion[] {
    return this.#regions
  }

  /** @throws {@link VirtioError} MEMORY_LAYOUT, or what a watcher throws; nothing has changed then */
  add(region: MemoryRegion): void {
    const before = this.#regions
    this.#set([...before, region])
    try {
      this.#tell()
    } catch (error) {
      this.#set(before)
      this.#tell()
      throw error
    }
  }

  /**
   * Takes a region away, after whoever uses it by other ways than this object, such as the views of a virtqueue's
   * rings, has let go of it. Only then may its mapping go.
   */
  remove(region: MemoryRegion): void {
    this.#set(this.#regions.filter((each) => each !== region))
    this.#tell()
  }

  /**
   * Tells those who hand the memory on (vhost, VFIO, another process) that {@link regions} changed. They let go of
   * what is gone before they return; what they cannot add they throw.
   * @returns what ends it
   */
  watch(changed: () => void): () => void {
    this.#watchers.add(changed)
    return () => this.#watchers.delete(changed)
  }

  #tell(): void {
    for (const changed of this.#watchers) changed()
  }

  #set(regions: readonly MemoryRegion[]): void {
    const sorted = [...regions].sort((a, b) => a.guestAddress - b.guestAddress)
    const windows: Window[] = []
    let end = 0
    for (const region of sorted) {
      const { guestAddress, size, mapping, mappingOffset } = region
      const whole = [guestAddress, size, mappingOffset].every(
        (each) => Number.isSafeInteger(each) && each >= 0,
      )
      if (!whole || size === 0 || guestAddress + size > MAX_ADDRESS)
        throw new VirtioError('MEMORY_LAYOUT', `no region: ${size} bytes at ${guestAddress}`)
      if (guestAddress < end) throw new VirtioError('MEMORY_LAYOUT', `regions overlap at ${guestAddress}`)
      if (mappingOffset + size > mapping.length)
        throw new VirtioError('MEMORY_LAYOUT', `the region at ${guestAddress} leaves its mapping`)
      end = guestAddress + size
      for (let at = guestAddress; at < end; at += WINDOW)
        windows.push(new Window(at, Math.min(end, at + WINDOW), region))
    }
    this.#regions = sorted
    this.#windows = windows
    this.#last = undefined
  }

  /** Whether all `length` bytes at `address` are guest memory, in one region or in several that touch. */
  contains(address: number, length: number, writable = false): boolean {
    if (!(address >= 0 && length >= 0 && address + length <= MAX_ADDRESS)) return false
    if (length === 0) return true
    const end = address + length
    for (let at = address; at < end;) {
      const window = this.#find(at)
      if (!window || (writable && window.region.readOnly === true)) return false
      at = window.end
    }
    return true
  }

  /**
   * The host address of `length` bytes that lie within one region.
   * @throws {@link VirtioError} MEMORY_ADDRESS, MEMORY_READ_ONLY
   */
  translate(address: number, length: number, writable = false): bigint {
    const region = this.#within(address, length, writable)
    return region.mapping.address + BigInt(region.mappingOffset + address - region.guestAddress)
  }

  /**
   * `length` bytes that lie within one region, without a copy.
   * @param length at most buffer.constants.MAX_LENGTH
   * @throws {@link VirtioError} MEMORY_ADDRESS, MEMORY_READ_ONLY
   */
  view(address: number, length: number, writable = false): ArrayBuffer {
    const region = this.#within(address, length, writable)
    return region.mapping.view(region.mappingOffset + address - region.guestAddress, length)
  }

  /**
   * Appends the host addresses of guest memory to `vector`, one entry a piece, until the vector is full.
   * @returns how many of the `length` bytes it covers
   * @throws {@link VirtioError} MEMORY_ADDRESS, MEMORY_READ_ONLY
   */
  gather(address: number, length: number, vector: IoVector, writable = false): number {
    let at = address
    const end = address + length
    while (at < end && !vector.full) {
      const window = this.#window(at, writable)
      const piece = Math.min(end, window.end) - at
      vector.push(window.host + (at - window.start), piece)
      at += piece
    }
    return at - address
  }

  readU8(address: number): number {
    const window = this.#window(address, false)
    return window.view.getUint8(address - window.start)
  }

  readU16(address: number): number {
    const window = this.#window(address, false)
    if (address + 2 > window.end) return this.readU8(address) + this.readU8(address + 1) * 0x100
    return window.view.getUint16(address - window.start, true)
  }

  readU32(address: number): number {
    const window = this.#window(address, false)
    if (address + 4 > window.end) return this.readU16(address) + this.readU16(address + 2) * 0x1_0000
    return window.view.getUint32(address - window.start, true)
  }

  readU64(address: number): bigint {
    return BigInt(this.readU32(address)) | (BigInt(this.readU32(address + 4)) << 32n)
  }

  writeU8(address: number, value: number): void {
    const window = this.#window(address, true)
    window.view.setUint8(address - window.start, value)
  }

  writeU16(address: number, value: number): void {
    const window = this.#window(address, true)
    if (address + 2 <= window.end) return window.view.setUint16(address - window.start, value, true)
    this.writeU8(address, value)
    this.writeU8(address + 1, value >>> 8)
  }

  writeU32(address: number, value: number): void {
    const window = this.#window(address, true)
    if (address + 4 <= window.end) return window.view.setUint32(address - window.start, value, true)
    this.writeU16(address, value)
    this.writeU16(address + 2, value >>> 16)
  }

  writeU64(address: number, value: bigint): void {
    this.writeU32(address, Number(value & 0xffff_ffffn))
    this.writeU32(address + 4, Number((value >> 32n) & 0xffff_ffffn))
  }

  /** Copies guest memory into `into`. */
  read(address: number, into: Uint8Array): void {
    for (let done = 0; done < into.length;) {
      const window = this.#window(address + done, false)
      const from = address + done - window.start
      const piece = Math.min(into.length - done, window.bytes.length - from)
      into.set(window.bytes.subarray(from, from + piece), done)
      done += piece
    }
  }

  /** Copies `from` into guest memory. */
  write(address: number, from: Uint8Array): void {
    for (let done = 0; done < from.length;) {
      const window = this.#window(address + done, true)
      const to = address + done - window.start
      const piece = Math.min(from.length - done, window.bytes.length - to)
      window.bytes.set(from.subarray(done, done + piece), to)
      done += piece
    }
  }

  #find(address: number): Window | undefined {
    const last = this.#last
    if (last && address >= last.start && address < last.end) return last
    let [low, high] = [0, this.#windows.length]
    while (low < high) {
      const middle = (low + high) >> 1
      const window = this.#windows[middle]!
      if (address >= window.start && address < window.end) return (this.#last = window)
      if (address < window.start) high = middle
      else low = middle + 1
    }
    return undefined
  }

  #window(address: number, writable: boolean): Window {
    const window = this.#find(address)
    if (!window) throw new VirtioError('MEMORY_ADDRESS', `no guest memory at ${hex(address)}`)
    if (writable && window.region.readOnly === true)
      throw new VirtioError('MEMORY_READ_ONLY', `guest memory at ${hex(address)} is read-only`)
    return window
  }

  #within(address: number, length: number, writable: boolean): MemoryRegion {
    const { region } = this.#window(address, writable)
    if (!(length >= 0 && address + length <= region.guestAddress + region.size))
      throw new VirtioError('MEMORY_ADDRESS', `${length} bytes at ${hex(address)} leave guest memory`)
    return region
  }
}

const hex = (address: number): string => `0x${address.toString(16)}`
