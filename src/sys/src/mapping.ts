import { libc, viewAt } from './libc.js'
import { SysError, check } from './error.js'
import { errno } from './libc.js'
import { Fd } from './fd.js'

export const PROT_NONE = 0
export const PROT_READ = 1
export const PROT_WRITE = 2
export const MAP_SHARED = 1
export const MAP_PRIVATE = 2
export const MAP_FIXED = 0x10
export const MAP_ANONYMOUS = 0x20
export const MAP_NORESERVE = 0x4000
export const MAP_POPULATE = 0x8000
export const MADV_DONTNEED = 4
export const MADV_REMOVE = 9
export const MADV_HUGEPAGE = 14
const MFD_CLOEXEC = 1
const MFD_ALLOW_SEALING = 2
const MAP_FAILED = 0xffff_ffff_ffff_ffffn

/** Where and how {@link Mapping.create} maps. Offsets and lengths are bytes, multiples of the page size. */
export interface MappingOptions {
  fd?: Fd
  offset?: number
  length: number
  /** @default PROT_READ | PROT_WRITE */
  prot?: number
  /** @default MAP_SHARED with a descriptor, MAP_PRIVATE | MAP_ANONYMOUS without */
  flags?: number
}

/**
 * A region of mapped memory with one owner. Views of it dangle after {@link unmap}, so whoever hands them out
 * keeps the mapping alive: a read through a dangling view kills the process.
 */
export class Mapping implements Disposable {
  #address: bigint
  readonly length: number
  readonly #owned: boolean

  private constructor(address: bigint, length: number, owned = true) {
    this.#address = address
    this.length = length
    this.#owned = owned
  }

  /** @throws {@link SysError} */
  static create(options: MappingOptions): Mapping {
    return new Mapping(map(0n, options), options.length)
  }

  /**
   * The use of a mapping that another thread of this process owns, which must outlive this: unmapping the result
   * leaves the memory mapped.
   */
  static borrow(address: bigint, length: number): Mapping {
    return new Mapping(address, length, false)
  }

  /** The host address of the first byte; 0n once unmapped. */
  get address(): bigint {
    return this.#address
  }

  /** Maps something else over a part of this region (MAP_FIXED): the way to lay files side by side. */
  overlay(at: number, options: MappingOptions): void {
    this.#checkRange('overlay', at, options.length)
    const flags = options.flags ?? (options.fd ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS)
    map(this.#address + BigInt(at), { ...options, flags: flags | MAP_FIXED })
  }

  /**
   * The bytes from `offset` on, without a copy, shared with whoever else maps them.
   * @param length at most buffer.constants.MAX_LENGTH (4 GiB on Node 20)
   */
  view(offset = 0, length = this.length - offset): ArrayBuffer {
    this.#checkRange('view', offset, length)
    return viewAt(this.#address + BigInt(offset), length)
  }

  bytes(offset = 0, length = this.length - offset): Uint8Array {
    return new Uint8Array(this.view(offset, length))
  }

  /** @param advice `MADV_*` */
  advise(advice: number, offset = 0, length = this.length - offset): void {
    this.#checkRange('advice', offset, length)
    check(libc.madvise(this.#address + BigInt(offset), length, advice), 'madvise')
  }

  unmap(): void {
    if (this.#address === 0n) return
    const address = this.#address
    this.#address = 0n
    if (this.#owned) check(libc.munmap(address, this.length), 'munmap')
  }

  [Symbol.dispose](): void {
    this.unmap()
  }

  /** A wrong address crashes the process or corrupts it, so nothing but whole numbers inside gets through. */
  #checkRange(what: string, offset: number, length: number): void {
    if (this.#address === 0n) throw new RangeError('the mapping is gone')
    const whole = Number.isSafeInteger(offset) && Number.isSafeInteger(length)
    if (!whole || offset < 0 || length < 0 || offset + length > this.length)
      throw new RangeError(`${what} of ${length} bytes at ${offset} leaves the mapping`)
  }
}

function map(at: bigint, { fd, offset = 0, length, prot, flags }: MappingOptions): bigint {
  const address: bigint = libc.mmap(
    at,
    length,
    prot ?? PROT_READ | PROT_WRITE,
    flags ?? (fd ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS),
    fd ? fd.number : -1,
    offset,
  )
  if (address === MAP_FAILED) throw new SysError(errno(), 'mmap', `${length} bytes`)
  return address
}

/** An anonymous file in memory (memfd_create(2)) of `length` bytes; `name` shows in /proc/PID/maps. */
export function memfd(name: string, length: number): Fd {
  const fd = new Fd(check(libc.memfdCreate(name, MFD_CLOEXEC | MFD_ALLOW_SEALING), 'memfd_create'))
  fd.truncate(length)
  return fd
}
