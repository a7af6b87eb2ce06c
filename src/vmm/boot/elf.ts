import { Fd, O_RDONLY, SysError } from '@coracle/sys'
import { CoracleError } from '../../errors.js'
import { ONE_MIB, PCI_WINDOW } from '../memory/layout.js'
import type { Ram } from '../memory/ram.js'

/** Names and offsets of elf.h, for ELF64. */
const EHDR_SIZE = 64
const PHDR_SIZE = 56
const ELFCLASS64 = 2
const ELFDATA2LSB = 1
const ET_EXEC = 2
const EM_X86_64 = 62
const PT_LOAD = 1
/** A kernel has five; the limit bounds what a broken file makes us read. */
const MAX_SEGMENTS = 64

/** A part of the file that is to lie in guest memory. Bytes and guest-physical addresses. */
export interface Segment {
  readonly fileOffset: number
  readonly fileSize: number
  readonly address: number
  /** At least `fileSize`; what is beyond it is zero. */
  readonly memorySize: number
}

/** A Linux kernel as an uncompressed ELF file (`vmlinux`), opened and checked. */
export class KernelFile implements Disposable {
  private constructor(
    readonly fd: Fd,
    readonly segments: readonly Segment[],
    /** Guest-physical address of the 64-bit entry point, `startup_64`. */
    readonly entry: number,
  ) {}

  /** @throws CoracleError KERNEL_INVALID, also where the file cannot be read */
  static open(path: string): KernelFile {
    let fd: Fd
    try {
      fd = Fd.openOrDuplicate(path, O_RDONLY)
    } catch (error) {
      const why = error instanceof SysError ? error.code : String(error)
      throw new CoracleError('KERNEL_INVALID', `cannot read the kernel ${path}: ${why}`, { cause: error })
    }
    try {
      return KernelFile.#parse(fd, path)
    } catch (error) {
      fd.close()
      if (error instanceof SysError)
        throw new CoracleError('KERNEL_INVALID', `cannot read the kernel ${path}: ${error.code}`, {
          cause: error,
        })
      throw error
    }
  }

  /** The first guest-physical address behind the kernel. */
  get end(): number {
    return Math.max(...this.segments.map(({ address, memorySize }) => address + memorySize))
  }

  /** Copies the segments into the guest's RAM, which is zero. */
  load(ram: Ram): void {
    for (const { fileOffset, fileSize, address } of this.segments)
      if (fileSize > 0) ram.copyFile(this.fd, fileOffset, fileSize, address)
  }

  close(): void {
    this.fd.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  static #parse(fd: Fd, path: string): KernelFile {
    const invalid = (why: string): CoracleError =>
      new CoracleError(
        'KERNEL_INVALID',
        `${path} is no kernel for this machine: ${why}; it needs an uncompressed vmlinux for x86-64`,
      )
    const header = new DataView(new ArrayBuffer(EHDR_SIZE))
    if (fd.pread(header, 0) < EHDR_SIZE || header.getUint32(0) !== 0x7f454c46) throw invalid('no ELF file')
    if (header.getUint8(4) !== ELFCLASS64 || header.getUint8(5) !== ELFDATA2LSB)
      throw invalid('no 64-bit ELF')
    if (header.getUint16(16, true) !== ET_EXEC) throw invalid('not an executable')
    if (header.getUint16(18, true) !== EM_X86_64) throw invalid('for another processor')
    const count = header.getUint16(56, true)
    if (header.getUint16(54, true) !== PHDR_SIZE || count === 0 || count > MAX_SEGMENTS)
      throw invalid('a program header table that makes no sense')
    const table = new DataView(new ArrayBuffer(count * PHDR_SIZE))
    if (fd.pread(table, safe(header.getBigUint64(32, true), invalid)) < table.byteLength)
      throw invalid('it is truncated')
    const segments: Segment[] = []
    for (let at = 0; at < table.byteLength; at += PHDR_SIZE) {
      if (table.getUint32(at, true) !== PT_LOAD) continue
      const field = (offset: number): number => safe(table.getBigUint64(at + offset, true), invalid)
      const segment = { fileOffset: field(8), address: field(24), fileSize: field(32), memorySize: field(40) }
      if (segment.memorySize === 0) continue
      if (segment.fileSize > segment.memorySize) throw invalid('a segment longer in the file than in memory')
      segments.push(segment)
    }
    if (segments.length === 0) throw invalid('nothing to load')
    const entry = safe(header.getBigUint64(24, true), invalid)
    if (!segments.some(({ address, memorySize }) => entry >= address && entry < address + memorySize))
      throw invalid('its entry point is not in it')
    if (segments.some(({ address }) => address < ONE_MIB))
      throw invalid('a segment below 1 MiB, where firmware lies')
    if (segments.some(({ address, memorySize }) => address + memorySize > PCI_WINDOW))
      throw invalid('a segment above 3 GiB, where devices lie')
    const last = new Uint8Array(1)
    for (const { fileOffset, fileSize } of segments)
      if (fileSize > 0 && fd.pread(last, fileOffset + fileSize - 1) !== 1) throw invalid('it is truncated')
    return new KernelFile(fd, segments, entry)
  }
}

/** An ELF offset, size or address as a number; what is beyond 2^40 cannot be real. */
function safe(value: bigint, invalid: (why: string) => CoracleError): number {
  if (value >= 1n << 40n) throw invalid('an address or offset out of every bound')
  return Number(value)
}
