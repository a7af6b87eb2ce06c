import { fstatSync } from 'node:fs'
import {
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  FALLOC_FL_ZERO_RANGE,
  Fd,
  type IoVector,
  O_RDONLY,
  O_RDWR,
  SysError,
} from '@coracle/sys'

/** Bytes a sector, the unit of every address and capacity of a block device (virtio 1.2 §5.2). */
export const SECTOR_SIZE = 512

/**
 * What stands behind a block device. Offsets and lengths are bytes, checked against {@link size} by the caller.
 * @throws SysError from every method
 */
export interface Disk {
  /** Bytes, a multiple of the sector size. */
  readonly size: number
  readonly readOnly: boolean
  /** @returns bytes moved, at least one; 0 where the disk ends early */
  read(into: IoVector, offset: number): number
  write(from: IoVector, offset: number): number
  /** Makes what was written outlast a crash of the host. */
  flush(): void
  /** Gives the room back; the bytes read as zeroes from then on. */
  discard(offset: number, length: number): void
  /** Zeroes the bytes and keeps their room. */
  zero(offset: number, length: number): void
  close(): void
}

/** A disk in a file, sparse where nothing was written. */
export class FileDisk implements Disk {
  readonly #fd: Fd
  readonly size: number
  readonly readOnly: boolean

  /** @param fd becomes ours */
  constructor(fd: Fd, readOnly: boolean) {
    this.#fd = fd
    this.readOnly = readOnly
    const { size } = fstatSync(fd.number)
    this.size = size - (size % SECTOR_SIZE)
  }

  /** @throws SysError */
  static open(path: string, readOnly = false): FileDisk {
    return new FileDisk(Fd.openOrDuplicate(path, readOnly ? O_RDONLY : O_RDWR), readOnly)
  }

  read(into: IoVector, offset: number): number {
    return this.#fd.preadv(into, offset)
  }

  write(from: IoVector, offset: number): number {
    return this.#fd.pwritev(from, offset)
  }

  flush(): void {
    this.#fd.dataSync()
  }

  discard(offset: number, length: number): void {
    this.#fd.allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
  }

  zero(offset: number, length: number): void {
    try {
      this.#fd.allocate(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length)
    } catch (error) {
      // tmpfs has no ZERO_RANGE; a hole reads as zeroes just the same.
      if (!(error instanceof SysError) || error.code !== 'EOPNOTSUPP') throw error
      this.discard(offset, length)
    }
  }

  close(): void {
    this.#fd.close()
  }
}
