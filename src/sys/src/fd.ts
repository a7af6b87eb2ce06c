import { libc, type Pointer } from './libc.js'
import { SysError, check, checkAgain } from './error.js'
import type { IoVector } from './iovec.js'

export const O_RDONLY = 0
export const O_WRONLY = 1
export const O_RDWR = 2
export const O_CREAT = 0o100
export const O_TRUNC = 0o1000
export const O_APPEND = 0o2000
export const O_EXCL = 0o200
export const O_NONBLOCK = 0o4000
export const O_DIRECTORY = 0o200000
export const O_NOFOLLOW = 0o400000
export const O_CLOEXEC = 0o2000000
export const FALLOC_FL_KEEP_SIZE = 1
export const FALLOC_FL_PUNCH_HOLE = 2
export const FALLOC_FL_ZERO_RANGE = 16
export const LOCK_SH = 1
export const LOCK_EX = 2
export const LOCK_NB = 4
/** linux/fcntl.h: the file never becomes shorter, or longer. */
export const F_SEAL_SHRINK = 2
export const F_SEAL_GROW = 4
const F_ADD_SEALS = 1033
const F_DUPFD_CLOEXEC = 1030
const SEEK_DATA = 3
const SEEK_HOLE = 4
const F_GETFL = 3
const F_SETFL = 4

/**
 * An open file descriptor with one owner: `using fd = Fd.open(…)` closes it at the end of the block.
 * Every method throws {@link SysError} when its system call fails. Buffers are typed arrays or BigInt addresses
 * in mapped memory; then `length` must be given.
 */
export class Fd implements Disposable {
  #number: number
  constructor(number: number) {
    this.#number = number
  }

  /** @param flags `O_*`; O_CLOEXEC is always added. */
  static open(path: string, flags: number, mode = 0o600): Fd {
    return new Fd(check(libc.open(path, flags | O_CLOEXEC, mode), 'open', path))
  }

  /**
   * As {@link open}, but `/proc/self/fd/N` is the open descriptor N itself, duplicated: what a process was handed it
   * may use, also where it could not open the file again.
   */
  static openOrDuplicate(path: string, flags: number, mode = 0o600): Fd {
    const number = /^\/proc\/self\/fd\/(\d{1,9})$/.exec(path)?.[1]
    if (number === undefined) return Fd.open(path, flags, mode)
    return new Fd(check(libc.dup(Number(number), F_DUPFD_CLOEXEC, 3), 'fcntl', path))
  }

  /** The descriptor's number, or -1 once closed. */
  get number(): number {
    return this.#number
  }

  get closed(): boolean {
    return this.#number < 0
  }

  /** Gives the number away: this object no longer closes it. */
  release(): number {
    const number = this.#number
    this.#number = -1
    return number
  }

  duplicate(): Fd {
    return new Fd(check(libc.dup(this.#number, F_DUPFD_CLOEXEC, 3), 'fcntl'))
  }

  /** Makes `number` mean this file too, in place of what it meant; it is inherited by programs (dup2(2)). */
  placeAt(number: number): void {
    check(libc.dup2(this.#number, number), 'dup2')
  }

  setNonBlocking(): void {
    const flags = check(libc.dup(this.#number, F_GETFL, 0), 'fcntl')
    check(libc.dup(this.#number, F_SETFL, flags | O_NONBLOCK), 'fcntl')
  }

  /**
   * Seals a memory file for good (fcntl(2), "File Sealing").
   * @param seals `F_SEAL_*`
   * @throws SysError EINVAL where it is no memory file, EPERM where it takes no more seals
   */
  seal(seals: number): void {
    check(libc.dup(this.#number, F_ADD_SEALS, seals), 'fcntl')
  }

  /** @returns bytes read, 0 at the end, -1 where it would block. */
  read(into: Pointer, length = lengthOf(into)): number {
    return checkAgain(libc.read(this.#number, into, length), 'read')
  }

  /** @returns bytes written, -1 where it would block. */
  write(from: Pointer, length = lengthOf(from)): number {
    return checkAgain(libc.write(this.#number, from, length), 'write')
  }

  pread(into: Pointer, offset: number, length = lengthOf(into)): number {
    return check(libc.pread(this.#number, into, length, offset), 'pread')
  }

  pwrite(from: Pointer, offset: number, length = lengthOf(from)): number {
    return check(libc.pwrite(this.#number, from, length, offset), 'pwrite')
  }

  /** @returns bytes read into the vector's parts, 0 at the end, -1 where it would block. */
  readv(vector: IoVector): number {
    return checkAgain(libc.readv(this.#number, vector.bytes, vector.count), 'readv')
  }

  writev(vector: IoVector): number {
    return checkAgain(libc.writev(this.#number, vector.bytes, vector.count), 'writev')
  }

  preadv(vector: IoVector, offset: number): number {
    return check(libc.preadv(this.#number, vector.bytes, vector.count, offset), 'preadv')
  }

  pwritev(vector: IoVector, offset: number): number {
    return check(libc.pwritev(this.#number, vector.bytes, vector.count, offset), 'pwritev')
  }

  truncate(length: number): void {
    check(libc.ftruncate(this.#number, length), 'ftruncate')
  }

  /**
   * The next part of a sparse file that is no hole, from `offset` on; moves the file's position.
   * @returns its start and end in bytes, or undefined where only a hole is left
   */
  nextData(offset: number): [number, number] | undefined {
    try {
      const start = check(libc.lseek(this.#number, offset, SEEK_DATA), 'lseek')
      return [start, check(libc.lseek(this.#number, start, SEEK_HOLE), 'lseek')]
    } catch (error) {
      if (error instanceof SysError && error.code === 'ENXIO') return undefined
      throw error
    }
  }

  dataSync(): void {
    check(libc.fdatasync(this.#number), 'fdatasync')
  }

  /** Data and all that is needed to find them again reach the disk. */
  sync(): void {
    check(libc.fsync(this.#number), 'fsync')
  }

  /** @param mode `FALLOC_FL_*` */
  allocate(mode: number, offset: number, length: number): void {
    check(libc.fallocate(this.#number, mode, offset, length), 'fallocate')
  }

  /** @returns whether the lock was taken; false only with LOCK_NB while another holds it. */
  lock(operation: number): boolean {
    return checkAgain(libc.flock(this.#number, operation), 'flock') === 0
  }

  /**
   * @param argument a structure (typed array or address), or a number passed as it is
   * @returns the call's non-negative result
   */
  ioctl(request: number, argument: Pointer | number = 0, name = 'ioctl'): number {
    const result =
      typeof argument === 'number'
        ? libc.ioctlValue(this.#number, request, argument)
        : libc.ioctl(this.#number, request, argument)
    return check(result, name)
  }

  /** Like {@link ioctl}, but -1 for EINTR and EAGAIN: the form of KVM_RUN. */
  ioctlAgain(request: number, argument: number, name = 'ioctl'): number {
    return checkAgain(libc.ioctlValue(this.#number, request, argument), name)
  }

  close(): void {
    if (this.#number < 0) return
    const number = this.#number
    this.#number = -1
    check(libc.close(number), 'close')
  }

  [Symbol.dispose](): void {
    this.close()
  }
}

function lengthOf(data: Pointer): number {
  if (data === null || typeof data === 'bigint') throw new TypeError('a length is needed with an address')
  return data.byteLength
}
