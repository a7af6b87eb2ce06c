import { fstatSync } from 'node:fs'
import {
  Fd,
  MAP_ANONYMOUS,
  MAP_NORESERVE,
  MAP_PRIVATE,
  MAP_SHARED,
  Mapping,
  O_RDONLY,
  PROT_READ,
  PROT_WRITE,
} from '@coracle/sys'
import { type Partition, gptSize, makeGpt } from './gpt.js'

/** The guest maps with huge pages: everything starts at a multiple of 2 MiB. */
const ALIGNMENT = 2 << 20
const PAGE_SIZE = 4096

/** A file that becomes a partition. */
export interface Blob {
  /** Shown as the partition's name, at most 35 characters. */
  readonly name: string
  readonly path: string
}

/**
 * Files laid side by side in one stretch of memory, as the partitions of one read-only disk: partition 1 is the first
 * file. The pages are the files' own in the host's page cache, shared with every VM that maps them.
 *
 *     2 MiB: protective MBR, GPT | file 1 | … | file N | 2 MiB: backup GPT at its end
 *
 * The files must not shrink while this exists: a read past the end of one kills the process.
 */
export class BlobSet implements Disposable {
  private constructor(
    readonly mapping: Mapping,
    readonly partitions: readonly Partition[],
  ) {}

  /** @throws SysError when a file cannot be mapped; RangeError when one is empty or there are too many */
  static map(blobs: readonly Blob[]): BlobSet {
    const files: Fd[] = []
    try {
      for (const { path } of blobs) files.push(Fd.openOrDuplicate(path, O_RDONLY))
      return BlobSet.#compose(blobs, files)
    } finally {
      // The mappings hold the files from here on.
      for (const file of files) file.close()
    }
  }

  static #compose(blobs: readonly Blob[], files: readonly Fd[]): BlobSet {
    const sizes = files.map((file) => fstatSync(file.number).size)
    let at = align(gptSize(blobs.length))
    const partitions = blobs.map(({ name, path }, i): Partition => {
      const size = sizes[i]!
      if (size === 0) throw new RangeError(`${path} is empty`)
      const start = at
      at += align(size)
      return { name, start, size: align(size) }
    })
    const length = at + align(gptSize(blobs.length))
    const { head, tail } = makeGpt(length, partitions)
    const mapping = Mapping.create({
      length,
      prot: PROT_READ | PROT_WRITE,
      flags: MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
    })
    try {
      mapping.bytes(0, head.length).set(head)
      mapping.bytes(length - tail.length, tail.length).set(tail)
      partitions.forEach(({ start }, i) => {
        mapping.overlay(start, {
          fd: files[i]!,
          length: Math.ceil(sizes[i]! / PAGE_SIZE) * PAGE_SIZE,
          prot: PROT_READ,
          flags: MAP_SHARED,
        })
      })
      return new BlobSet(mapping, partitions)
    } catch (error) {
      mapping.unmap()
      throw error
    }
  }

  /** Bytes, a multiple of 2 MiB. */
  get size(): number {
    return this.mapping.length
  }

  [Symbol.dispose](): void {
    this.mapping.unmap()
  }
}

const align = (size: number): number => Math.ceil(size / ALIGNMENT) * ALIGNMENT
