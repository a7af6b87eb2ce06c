/**
 * ACPI Machine Language (ACPI 6.5 §20), as little of it as our tables need. Each function returns the bytes of one
 * term; terms nest by concatenation.
 */
export type Aml = Uint8Array

const ZERO_OP = 0x00
const ONE_OP = 0x01
const NAME_OP = 0x08
const BYTE_PREFIX = 0x0a
const WORD_PREFIX = 0x0b
const DWORD_PREFIX = 0x0c
const STRING_PREFIX = 0x0d
const QWORD_PREFIX = 0x0e
const SCOPE_OP = 0x10
const BUFFER_OP = 0x11
const PACKAGE_OP = 0x12
const METHOD_OP = 0x14
const DUAL_NAME_PREFIX = 0x2e
const EXT_OP_PREFIX = 0x5b
const DEVICE_OP = 0x82
const NOTIFY_OP = 0x86
const ROOT_CHAR = 0x5c

const join = (...parts: readonly (Uint8Array | readonly number[])[]): Uint8Array =>
  Uint8Array.from(parts.flatMap((part) => [...part]))

/** An integer in its shortest form (§20.2.3). */
export function integer(value: number | bigint): Aml {
  const n = BigInt(value)
  if (n < 0n || n >= 1n << 64n) throw new RangeError(`no AML integer: ${value}`)
  if (n === 0n) return Uint8Array.of(ZERO_OP)
  if (n === 1n) return Uint8Array.of(ONE_OP)
  if (n < 1n << 8n) return join([BYTE_PREFIX], little(n, 1))
  if (n < 1n << 16n) return join([WORD_PREFIX], little(n, 2))
  if (n < 1n << 32n) return join([DWORD_PREFIX], little(n, 4))
  return join([QWORD_PREFIX], little(n, 8))
}

export function string(text: string): Aml {
  return join([STRING_PREFIX], Buffer.from(text, 'latin1'), [0])
}

/** A hardware id such as `PNP0A08` in its packed form (§19.3.4, EISAID). */
export function eisaId(id: string): Aml {
  const match = /^([A-Z])([A-Z])([A-Z])([0-9A-F]{4})$/.exec(id)
  if (!match) throw new RangeError(`no EISA id: ${id}`)
  const letter = (i: number): number => match[i]!.charCodeAt(0) - 0x40
  const vendor = (letter(1) << 10) | (letter(2) << 5) | letter(3)
  const product = parseInt(match[4]!, 16)
  return join([DWORD_PREFIX, vendor >> 8, vendor & 0xff, product >> 8, product & 0xff])
}

/** `Name (name, value)` (§19.6.89). @param name at most four characters */
export function name(name: string, value: Aml): Aml {
  return join([NAME_OP], nameSegment(name), value)
}

/** `Scope (\name)` (§19.6.122). */
export function scope(name: string, ...terms: readonly Aml[]): Aml {
  return withLength([SCOPE_OP], join([ROOT_CHAR], nameSegment(name), ...terms))
}

/** `Device (name)` (§19.6.31). */
export function device(name: string, ...terms: readonly Aml[]): Aml {
  return withLength([EXT_OP_PREFIX, DEVICE_OP], join(nameSegment(name), ...terms))
}

/** `Method (name, arguments, NotSerialized)` (§19.6.85). @param arguments_ how many it takes, 0 to 7 */
export function method(name: string, arguments_: number, ...terms: readonly Aml[]): Aml {
  return withLength([METHOD_OP], join(nameSegment(name), [arguments_], ...terms))
}

/** `Notify (\scope.name, value)` (§19.6.96). */
export function notify(scope: string, name: string, value: number): Aml {
  const path = [[ROOT_CHAR, DUAL_NAME_PREFIX], nameSegment(scope), nameSegment(name)]
  return join([NOTIFY_OP], ...path, integer(value))
}

export function pack(...elements: readonly Aml[]): Aml {
  return withLength([PACKAGE_OP], join([elements.length], ...elements))
}

export function buffer(bytes: Uint8Array): Aml {
  return withLength([BUFFER_OP], join(integer(bytes.length), bytes))
}

/** `ResourceTemplate () {…}`: resource descriptors and the end tag, in a buffer (§6.4). */
export function resources(...descriptors: readonly Uint8Array[]): Aml {
  // End tag with checksum 0: "treat as if the checksum operation succeeded" (§6.4.2.9).
  return buffer(join(...descriptors, [0x79, 0]))
}

/** Ports that the device decodes, with 16 address bits (§6.4.2.5). */
export function io(base: number, length: number): Uint8Array {
  return join([0x47, 1], little(base, 2), little(base, 2), [1, length])
}

/** A fixed 32-bit memory range (§6.4.3.4). */
export function memory32Fixed(base: number, length: number): Uint8Array {
  return join([0x86], little(9, 2), [1], little(base, 4), little(length, 4))
}

/** An edge-triggered, active-high interrupt of the device's own (§6.4.3.6). */
export function interrupt(gsi: number): Uint8Array {
  return join([0x89], little(6, 2), [0b0011, 1], little(gsi, 4))
}

/** Bus numbers that a bridge produces (§6.4.3.5.3). */
export function busNumbers(first: number, last: number): Uint8Array {
  return join([0x88], little(13, 2), [2, 0b1100, 0], addresses(2, first, last))
}

/** Memory below 4 GiB that a bridge produces, not cacheable, writable (§6.4.3.5.2). */
export function memoryWindow32(start: number, size: number): Uint8Array {
  return join([0x87], little(23, 2), [0, 0b1100, 1], addresses(4, start, start + size - 1))
}

/** Memory anywhere that a bridge produces, not cacheable, writable (§6.4.3.5.1). */
export function memoryWindow64(start: number, size: number): Uint8Array {
  return join([0x8a], little(43, 2), [0, 0b1100, 1], addresses(8, start, start + size - 1))
}

/** Granularity, minimum, maximum, translation, length: the tail of every address space descriptor. */
function addresses(width: number, first: number, last: number): Uint8Array {
  return join(...[0, first, last, 0, last - first + 1].map((each) => little(each, width)))
}

/** Four characters, padded with underscores (§20.2.2, NameSeg). */
function nameSegment(name: string): Uint8Array {
  if (!/^[A-Z_][A-Z0-9_]{0,3}$/.test(name)) throw new RangeError(`no AML name: ${name}`)
  return Buffer.from(name.padEnd(4, '_'), 'latin1')
}

/** PkgLength (§20.2.4) counts itself: one byte up to 63, else four bits in the first and the rest behind. */
function withLength(opcode: readonly number[], body: Uint8Array): Uint8Array {
  if (body.length + 1 <= 0x3f) return join(opcode, [body.length + 1], body)
  for (const extra of [1, 2, 3]) {
    const length = body.length + 1 + extra
    if (length >= 1 << (4 + 8 * extra)) continue
    return join(opcode, [(extra << 6) | (length & 0xf)], little(length >> 4, extra), body)
  }
  throw new RangeError('an AML package of 256 MiB')
}

function little(value: number | bigint, width: number): Uint8Array {
  const bytes = new Uint8Array(width)
  let rest = BigInt(value)
  for (let i = 0; i < width; i++, rest >>= 8n) bytes[i] = Number(rest & 0xffn)
  return bytes
}
