import { crc32 } from 'node:zlib'

/** Bytes a sector: the logical block size of Linux's pmem disks. */
export const GPT_SECTOR = 512
/** "EFI PART" (UEFI 2.10 §5.3.2) */
const SIGNATURE = 0x5452415020494645n
const REVISION = 0x0001_0000
const HEADER_SIZE = 92
const ENTRY_SIZE = 128
/** The fewest entries a table must have room for. */
const MIN_ENTRIES = 128
/** Linux gives a disk at most this many partitions (DISK_MAX_PARTS less the whole disk). */
export const MAX_PARTITIONS = 255
/** Linux file system data: 0fc63daf-8483-4772-8e79-3d69d8477de4, as the bytes lie on disk. */
const LINUX_DATA = Buffer.from('af3dc60f838472478e793d69d8477de4', 'hex')
const READ_ONLY = 1n << 60n
const NAME_BYTES = 72

/** One partition. Bytes, multiples of the sector size. */
export interface Partition {
  readonly name: string
  readonly start: number
  readonly size: number
}

/** Bytes that the table takes at each end of the disk, the protective MBR included. */
export function gptSize(partitions: number): number {
  return (2 + entrySectors(partitions)) * GPT_SECTOR
}

/**
 * A GUID partition table (UEFI 2.10 §5.3) for a disk of `size` bytes. Equal arguments give equal bytes: its GUIDs are
 * derived, not drawn.
 * @returns what belongs at the start of the disk (protective MBR, header, entries) and at its very end (entries, header)
 * @throws RangeError when a partition does not fit
 */
export function makeGpt(
  size: number,
  partitions: readonly Partition[],
): { head: Uint8Array; tail: Uint8Array } {
  if (partitions.length > MAX_PARTITIONS) throw new RangeError(`${partitions.length} partitions are too many`)
  const table = entrySectors(partitions.length)
  const last = size / GPT_SECTOR - 1
  const first = 2 + table
  const end = last - table - 1
  const entries = Buffer.alloc(table * GPT_SECTOR)
  let free = first * GPT_SECTOR
  partitions.forEach(({ name, start, size: length }, i) => {
    const whole = start % GPT_SECTOR === 0 && length % GPT_SECTOR === 0
    if (!whole || length <= 0 || start < free || start + length > (end + 1) * GPT_SECTOR)
      throw new RangeError(`partition ${i + 1} does not fit`)
    free = start + length
    const at = i * ENTRY_SIZE
    LINUX_DATA.copy(entries, at)
    guid(i + 1, `${name} ${start} ${length}`).copy(entries, at + 16)
    entries.writeBigUInt64LE(BigInt(start / GPT_SECTOR), at + 32)
    entries.writeBigUInt64LE(BigInt((start + length) / GPT_SECTOR - 1), at + 40)
    entries.writeBigUInt64LE(READ_ONLY, at + 48)
    entries.write(name.slice(0, NAME_BYTES / 2 - 1), at + 56, NAME_BYTES, 'utf16le')
  })
  const count = Math.max(MIN_ENTRIES, table * (GPT_SECTOR / ENTRY_SIZE))
  const entriesCrc = crc32(entries.subarray(0, count * ENTRY_SIZE))
  const disk = guid(0, `${size} ${entriesCrc}`)
  const header = (own: number, other: number, entriesAt: number): Buffer => {
    const sector = Buffer.alloc(GPT_SECTOR)
    sector.writeBigUInt64LE(SIGNATURE, 0)
    sector.writeUInt32LE(REVISION, 8)
    sector.writeUInt32LE(HEADER_SIZE, 12)
    sector.writeBigUInt64LE(BigInt(own), 24)
    sector.writeBigUInt64LE(BigInt(other), 32)
    sector.writeBigUInt64LE(BigInt(first), 40)
    sector.writeBigUInt64LE(BigInt(end), 48)
    disk.copy(sector, 56)
    sector.writeBigUInt64LE(BigInt(entriesAt), 72)
    sector.writeUInt32LE(count, 80)
    sector.writeUInt32LE(ENTRY_SIZE, 84)
    sector.writeUInt32LE(entriesCrc, 88)
    sector.writeUInt32LE(crc32(sector.subarray(0, HEADER_SIZE)), 16)
    return sector
  }
  return {
    head: Buffer.concat([protectiveMbr(last), header(1, last, 2), entries]),
    tail: Buffer.concat([entries, header(last, 1, last - table)]),
  }
}

/** One partition of type 0xee over the whole disk (UEFI 2.10 §5.2.3), for tools that know no GPT. */
function protectiveMbr(last: number): Buffer {
  const sector = Buffer.alloc(GPT_SECTOR)
  Buffer.from([0x00, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff]).copy(sector, 446)
  sector.writeUInt32LE(1, 454)
  sector.writeUInt32LE(Math.min(last, 0xffff_ffff), 458)
  sector.writeUInt16LE(0xaa55, 510)
  return sector
}

function entrySectors(partitions: number): number {
  return Math.ceil((Math.max(MIN_ENTRIES, partitions) * ENTRY_SIZE) / GPT_SECTOR)
}

/**
 * A GUID of version 8 (RFC 9562 §5.8), in the byte order of the disk, that no other `number` on the disk has. Without
 * a cryptographic hash, for which each start of a thread would load Node's modules of them all.
 */
function guid(number: number, text: string): Buffer {
  const bytes = Buffer.alloc(16)
  bytes.writeUInt32LE(crc32(text), 0)
  bytes[7] = 0x80
  bytes[8] = 0x80
  bytes.writeUInt32LE(number, 12)
  return bytes
}
