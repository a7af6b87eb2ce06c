/**
 * The little that we read of 64-bit little-endian ELF files (System V ABI, chapter 4 and 5): the sections of kernel
 * modules and the libraries that a program needs. The files come from Debian's signed packages; offsets are checked
 * by Buffer's own bounds, which throw RangeError.
 */
const MAGIC = 0x7f454c46
const SHT_STRTAB = 3
const SHT_DYNAMIC = 6
const DT_NEEDED = 1n
const PT_INTERP = 3

interface Section {
  readonly name: string
  readonly type: number
  readonly data: Buffer
  readonly link: number
}

/** @throws RangeError for a file that is no ELF file, or is damaged */
export function sections(file: Buffer): Section[] {
  if (file.length < 64 || file.readUInt32BE(0) !== MAGIC || file[4] !== 2 || file[5] !== 1)
    throw new RangeError('not a 64-bit little-endian ELF file')
  const start = Number(file.readBigUInt64LE(40))
  const [entry, count, names] = [file.readUInt16LE(58), file.readUInt16LE(60), file.readUInt16LE(62)]
  const raw = Array.from({ length: count }, (_, index) => {
    const at = start + index * entry
    const [offset, size] = [Number(file.readBigUInt64LE(at + 24)), Number(file.readBigUInt64LE(at + 32))]
    return {
      nameAt: file.readUInt32LE(at),
      type: file.readUInt32LE(at + 4),
      data: file.subarray(offset, offset + size),
      link: file.readUInt32LE(at + 40),
    }
  })
  const table = raw[names]?.data ?? Buffer.alloc(0)
  return raw.map(({ nameAt, ...rest }) => ({ name: stringAt(table, nameAt), ...rest }))
}

/** The names of the libraries that the dynamic linker must find for this file (DT_NEEDED). */
export function neededLibraries(file: Buffer): string[] {
  const all = sections(file)
  const dynamic = all.find(({ type }) => type === SHT_DYNAMIC)
  const strings = dynamic && all[dynamic.link]
  if (!dynamic || strings?.type !== SHT_STRTAB) return []
  const needed: string[] = []
  for (let at = 0; at + 16 <= dynamic.data.length; at += 16)
    if (dynamic.data.readBigUInt64LE(at) === DT_NEEDED)
      needed.push(stringAt(strings.data, Number(dynamic.data.readBigUInt64LE(at + 8))))
  return needed
}

/** The path of the dynamic linker that the file names (PT_INTERP), or undefined where it is static or a library. */
export function interpreter(file: Buffer): string | undefined {
  const start = Number(file.readBigUInt64LE(32))
  const [entry, count] = [file.readUInt16LE(54), file.readUInt16LE(56)]
  for (let at = start; at < start + entry * count; at += entry)
    if (file.readUInt32LE(at) === PT_INTERP) return stringAt(file, Number(file.readBigUInt64LE(at + 8)))
  return undefined
}

function stringAt(table: Buffer, at: number): string {
  const end = table.indexOf(0, at)
  return table.toString('latin1', at, end < 0 ? table.length : end)
}
