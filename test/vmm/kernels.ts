import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** Where test kernels start: behind the first MiB. */
export const ENTRY = 0x20_0000

/** An ELF64 executable for x86-64 with one segment of `code`, as a kernel in the 64-bit boot protocol. */
export function kernelImage(code: Uint8Array, memorySize = code.length): Buffer {
  const image = Buffer.alloc(120 + code.length)
  image.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1])
  image.writeUInt16LE(2, 16)
  image.writeUInt16LE(62, 18)
  image.writeUInt32LE(1, 20)
  image.writeBigUInt64LE(BigInt(ENTRY), 24)
  image.writeBigUInt64LE(64n, 32)
  image.writeUInt16LE(64, 52)
  image.writeUInt16LE(56, 54)
  image.writeUInt16LE(1, 56)
  image.writeUInt32LE(1, 64)
  image.writeBigUInt64LE(120n, 72)
  image.writeBigUInt64LE(BigInt(ENTRY), 80)
  image.writeBigUInt64LE(BigInt(ENTRY), 88)
  image.writeBigUInt64LE(BigInt(code.length), 96)
  image.writeBigUInt64LE(BigInt(memorySize), 104)
  image.set(code, 120)
  return image
}

/** A folder of files that goes when the test ends. */
export function scratch(t: {
  teardown(end: () => void): void
}): (name: string, content: Uint8Array) => string {
  const folder = mkdtempSync(join(tmpdir(), 'coracle-vmm-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  return (name, content) => {
    const path = join(folder, name)
    writeFileSync(path, content)
    return path
  }
}

/** Machine code for 64-bit mode, a few instructions at a time. */
export const code = {
  /** `mov dx, port; mov al, value; out dx, al` */
  out: (port: number, value: number): number[] => [0x66, 0xba, port & 0xff, port >> 8, 0xb0, value, 0xee],
  /** `lea rsi, [rip + text]; mov ecx, length; mov dx, 0x3f8; cld; rep outsb; jmp over the text` */
  print: (text: string): number[] => {
    const bytes = [...Buffer.from(text, 'latin1')]
    return [
      ...[0x48, 0x8d, 0x35, 0x11, 0, 0, 0],
      ...[0xb9, bytes.length & 0xff, bytes.length >> 8, 0, 0],
      ...[0x66, 0xba, 0xf8, 0x03],
      0xfc,
      ...[0xf3, 0x6e],
      ...[0xe9, bytes.length & 0xff, bytes.length >> 8, 0, 0],
      ...bytes,
    ]
  },
  /** `mov eax, [address]`, below 2 GiB or sign-extended above: so by rbx */
  load32: (address: number): number[] => [0xbb, ...u32(address), 0x8b, 0x03],
  /** `mov dword [address], value` */
  store32: (address: number, value: number): number[] => [0xbb, ...u32(address), 0xc7, 0x03, ...u32(value)],
  /** Spins while the word there is `value`: `cmp dword [address], value; je` */
  waitWhile: (address: number, value: number): number[] => [
    ...[0xbb, ...u32(address)],
    ...[0x81, 0x3b, ...u32(value), 0x74, 0xf8],
  ],
  /** Spins until the word there is `value`. */
  waitUntil: (address: number, value: number): number[] => [
    ...[0xbb, ...u32(address)],
    ...[0x81, 0x3b, ...u32(value), 0x75, 0xf8],
  ],
  /** Sends the low 32 bits of EAX to the serial port, lowest byte first. */
  sendEax: [
    0x66, 0xba, 0xf8, 0x03, 0xee, 0xc1, 0xe8, 0x08, 0xee, 0xc1, 0xe8, 0x08, 0xee, 0xc1, 0xe8, 0x08, 0xee,
  ],
  /** `cli; hlt` */
  halt: [0xfa, 0xf4],
  /** `ud2`, with no interrupt table to handle it. */
  crash: [0x0f, 0x0b],
  /** `jmp $` */
  spin: [0xeb, 0xfe],
} as const

function u32(value: number): number[] {
  return [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24]
}
