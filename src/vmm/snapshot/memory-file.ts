import { crc32 } from 'node:zlib'
import { Fd, O_RDONLY } from '@coracle/sys'
import { CoracleError } from '../../errors.js'
import { PAGE } from '../memory/layout.js'
import type { Ram } from '../memory/ram.js'

/** How much is looked at, and written, at a time. */
export const CHUNK = 2 ** 20
/** A run of zero pages shorter than this is written along: one more extent costs more than it saves. */
const MIN_HOLE = 16 * PAGE
const ZERO = Buffer.alloc(MIN_HOLE)
/** /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst): 8 bytes a page. */
const PAGEMAP_ENTRY = 8
const PM_FILE = 1 << 29
const PM_SWAP_OR_PRESENT = 0xc000_0000

/** A part of a memory file that is no hole, in bytes, with the CRC-32 of its content. */
export type Extent = readonly [offset: number, length: number, crc: number]

/**
 * Writes a guest's memory into an empty file: only what is not zero, the rest are holes. Bytes go from the mapping to
 * the file in the kernel.
 */
export function writeMemory(ram: Ram, file: Fd): Extent[] {
  file.truncate(ram.layout.size)
  const extents: Extent[] = []
  for (const { start, end, extent } of memoryPieces(ram)) {
    for (let at = start; at < end;) at += file.pwrite(ram.mapping.address + BigInt(at), at, end - at)
    extents.push(extent)
  }
  return extents
}

/** What of the memory is not zero, in order, in pieces of at most {@link CHUNK} bytes. It must stand still. */
export function* memoryPieces(ram: Ram): Generator<{ start: number; end: number; extent: Extent }> {
  for (const [start, end] of written(touched(ram), ram))
    yield { start, end, extent: [start, end - start, crc32(ram.mapping.bytes(start, end - start))] }
}

/** Reads a whole memory file to see whether it still is what was written. @throws CoracleError SNAPSHOT_INVALID */
export function verifyMemory(file: Fd, extents: readonly Extent[]): void {
  for (const [offset, length, expected] of extents) {
    let crc = 0
    const piece = Buffer.alloc(Math.min(length, CHUNK))
    for (let done = 0; done < length;) {
      const got = file.pread(piece, offset + done, Math.min(piece.length, length - done))
      if (got === 0) break
      crc = crc32(piece.subarray(0, got), crc)
      done += got
    }
    if (crc !== expected)
      throw new CoracleError('SNAPSHOT_INVALID', `the snapshot's memory is damaged at ${offset}`)
  }
}

/** What of the memory may be other than zero: in order, in whole pages. */
function* touched(ram: Ram): Generator<[start: number, end: number]> {
  const { size } = ram.layout
  const file: [number, number][] = []
  for (let at = 0; at < size;) {
    const data = ram.fd.nextData(at)
    if (!data) break
    file.push([Math.floor(data[0] / PAGE) * PAGE, Math.min(size, Math.ceil(data[1] / PAGE) * PAGE)])
    at = data[1]
  }
  yield* ram.isPrivate ? merged([...file, ...copied(ram)].sort((a, b) => a[0] - b[0])) : file
}

/** Of a private mapping: the pages that the guest has written, and so are ours and not the file's. */
function* copied(ram: Ram): Generator<[number, number]> {
  const pages = ram.layout.size / PAGE
  using pagemap = Fd.open('/proc/self/pagemap', O_RDONLY)
  const first = Number(ram.mapping.address) / PAGE
  const entries = new Uint32Array((Math.min(pages, CHUNK) * PAGEMAP_ENTRY) / 4)
  let start = -1
  for (let page = 0; page < pages;) {
    const count = Math.min(pages - page, entries.length / 2)
    const got = pagemap.pread(entries, (first + page) * PAGEMAP_ENTRY, count * PAGEMAP_ENTRY) / PAGEMAP_ENTRY
    if (got <= 0) throw new CoracleError('INTERNAL', '/proc/self/pagemap ends before the memory')
    for (let i = 0; i < got; i++) {
      const high = entries[i * 2 + 1]!
      const ours = (high & PM_SWAP_OR_PRESENT) !== 0 && (high & PM_FILE) === 0
      if (ours && start < 0) start = page + i
      if (ours || start < 0) continue
      yield [start * PAGE, (page + i) * PAGE]
      start = -1
    }
    page += got
  }
  if (start >= 0) yield [start * PAGE, pages * PAGE]
}

function* merged(ranges: readonly [number, number][]): Generator<[number, number]> {
  let last: [number, number] | undefined
  for (const [start, end] of ranges) {
    if (last && start <= last[1]) last[1] = Math.max(last[1], end)
    else {
      if (last) yield last
      last = [start, end]
    }
  }
  if (last) yield last
}

/** Cuts what is touched at its runs of zeros, and into pieces of {@link CHUNK}. */
function* written(ranges: Iterable<[number, number]>, ram: Ram): Generator<[number, number]> {
  for (const [start, end] of ranges) {
    let from = -1
    for (let at = start; at < end; at += MIN_HOLE) {
      const length = Math.min(MIN_HOLE, end - at)
      // Compared by the C library, 64 KiB a call.
      const zero = ZERO.compare(ram.mapping.bytes(at, length), 0, length, 0, length) === 0
      if (from >= 0 && (zero || at - from >= CHUNK)) {
        yield [from, at]
        from = -1
      }
      if (!zero && from < 0) from = at
    }
    if (from >= 0) yield [from, end]
  }
}
