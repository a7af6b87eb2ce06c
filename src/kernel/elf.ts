import { CoracleError } from '../errors.js'

/** A loadable part of an ELF image: bytes of the file that go to a physical address. */
export interface Segment {
  readonly offset: number
  /** Bytes in the file. */
  readonly fileSize: number
  /** Bytes in memory: what exceeds `fileSize` is zero. */
  readonly memorySize: number
  readonly physicalAddress: number
}

/** An x86-64 kernel image that can be loaded directly. */
export interface KernelElf {
  /** 64-bit entry point (physical). */
  readonly entry: bigint
  /** 32-bit entry point of the PVH boot protocol (XEN_ELFNOTE_PHYS32_ENTRY), where it has one. */
  readonly pvhEntry?: number
  readonly segments: readonly Segment[]
}

const PT_LOAD = 1
const PT_NOTE = 4
const EM_X86_64 = 62
const XEN_ELFNOTE_PHYS32_ENTRY = 18
const MAXIMUM_HEADERS = 64

/**
 * Reads an uncompressed kernel's ELF headers.
 * @param image the whole file
 * @param path for the message
 * @throws {@link CoracleError} KERNEL_INVALID where it is no x86-64 executable or points outside itself
 */
export function parseElf(image: Buffer, path: string): KernelElf {
  const invalid = (why: string): CoracleError =>
    new CoracleError('KERNEL_INVALID', `${path} is no Linux kernel for x86-64: ${why}`)
  if (image.length < 64 || image.readUInt32BE(0) !== 0x7f454c46) throw invalid('it is no ELF file')
  if (image[4] !== 2 || image[5] !== 1 || image.readUInt16LE(18) !== EM_X86_64)
    throw invalid('it is built for another processor')
  const start = Number(image.readBigUInt64LE(32))
  const size = image.readUInt16LE(54)
  const count = image.readUInt16LE(56)
  if (size !== 56 || count === 0 || count > MAXIMUM_HEADERS || start + count * size > image.length)
    throw invalid('its program headers are damaged')
  const segments: Segment[] = []
  let pvhEntry: number | undefined
  for (let at = start; at < start + count * size; at += size) {
    const type = image.readUInt32LE(at)
    const offset = Number(image.readBigUInt64LE(at + 8))
    const physicalAddress = Number(image.readBigUInt64LE(at + 24))
    const fileSize = Number(image.readBigUInt64LE(at + 32))
    const memorySize = Number(image.readBigUInt64LE(at + 40))
    if (type !== PT_LOAD && type !== PT_NOTE) continue
    if (offset + fileSize > image.length) throw invalid('it is cut short')
    if (type === PT_NOTE) pvhEntry ??= findPvh(image.subarray(offset, offset + fileSize))
    else if (memorySize < fileSize || !Number.isSafeInteger(physicalAddress + memorySize))
      throw invalid('a segment is larger in the file than in memory')
    else if (memorySize > 0) segments.push({ offset, fileSize, memorySize, physicalAddress })
  }
  if (segments.length === 0) throw invalid('it has nothing to load')
  return { entry: image.readBigUInt64LE(24), segments, ...(pvhEntry !== undefined && { pvhEntry }) }
}

/** Walks ELF notes: name size, descriptor size, type, then name and descriptor, each padded to four bytes. */
function findPvh(notes: Buffer): number | undefined {
  let at = 0
  while (at + 12 <= notes.length) {
    const nameSize = notes.readUInt32LE(at)
    const size = notes.readUInt32LE(at + 4)
    const type = notes.readUInt32LE(at + 8)
    const name = at + 12
    const value = name + Math.ceil(nameSize / 4) * 4
    const end = value + Math.ceil(size / 4) * 4
    if (value + size > notes.length) return undefined
    if (type === XEN_ELFNOTE_PHYS32_ENTRY && notes.toString('latin1', name, name + 3) === 'Xen' && size >= 4)
      return notes.readUInt32LE(value)
    at = end
  }
  return undefined
}
