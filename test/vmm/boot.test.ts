import fc from 'fast-check'
import t from 'tap'
import { CoracleError } from '../../src/errors.js'
import { KernelFile } from '../../src/vmm/boot/elf.js'
import { loadLinux } from '../../src/vmm/boot/linux.js'
import { GIB, MIB } from '../../src/vmm/memory/layout.js'
import { Ram } from '../../src/vmm/memory/ram.js'
import { ENTRY, kernelImage, scratch } from './kernels.js'

const CODE = Uint8Array.of(0xf4, 0xeb, 0xfe)
const RSDP = 0xe_0000

const open = (path: string): void => KernelFile.open(path).close()

t.test('a kernel is read as its headers say', async (t) => {
  const file = scratch(t)
  using kernel = KernelFile.open(file('vmlinux', kernelImage(CODE, 4096)))
  t.equal(kernel.entry, ENTRY)
  t.equal(kernel.end, ENTRY + 4096)
  using ram = Ram.create(64 * MIB)
  kernel.load(ram)
  t.same([...ram.bytes(ENTRY, 4)], [...CODE, 0])
})

t.test('what is no kernel is refused by name', async (t) => {
  const file = scratch(t)
  const image = kernelImage(CODE)
  const changed = (change: (image: Buffer) => void): Buffer => {
    const copy = Buffer.from(image)
    change(copy)
    return copy
  }
  const bad: Record<string, Buffer> = {
    empty: Buffer.alloc(0),
    'a text': Buffer.from('#!/bin/sh\n'),
    'half a header': image.subarray(0, 40),
    'a truncated segment': image.subarray(0, image.length - 1),
    'truncated program headers': image.subarray(0, 80),
    '32 bits': changed((b) => b.writeUInt8(1, 4)),
    'big-endian': changed((b) => b.writeUInt8(2, 5)),
    'a library': changed((b) => b.writeUInt16LE(3, 16)),
    'another processor': changed((b) => b.writeUInt16LE(183, 18)),
    'no segments': changed((b) => b.writeUInt16LE(0, 56)),
    'too many segments': changed((b) => b.writeUInt16LE(0xffff, 56)),
    'nothing to load': changed((b) => b.writeUInt32LE(4, 64)),
    'an entry elsewhere': changed((b) => b.writeBigUInt64LE(0x30_0000n, 24)),
    'more in the file than in memory': changed((b) => b.writeBigUInt64LE(1n, 104)),
    'a segment in the first MiB': changed((b) => {
      b.writeBigUInt64LE(0x1000n, 88)
      b.writeBigUInt64LE(0x1000n, 24)
    }),
    'a segment in the PCI hole': changed((b) => {
      b.writeBigUInt64LE(BigInt(3 * GIB), 88)
      b.writeBigUInt64LE(BigInt(3 * GIB), 24)
    }),
    'an offset beyond everything': changed((b) => b.writeBigUInt64LE(1n << 63n, 72)),
  }
  for (const [name, content] of Object.entries(bad))
    t.throws(() => open(file('bad', content)), { name: 'CoracleError', code: 'KERNEL_INVALID' }, name)
  t.throws(() => open('/nonexistent/vmlinux'), { code: 'KERNEL_INVALID', message: /ENOENT/ })
  t.throws(() => open('/'), { code: 'KERNEL_INVALID' })
})

t.test('no bytes make it fail otherwise', async (t) => {
  const file = scratch(t)
  const image = kernelImage(CODE)
  const edit = fc.record({ at: fc.nat(119), value: fc.nat(255) })
  fc.assert(
    fc.property(fc.array(edit, { minLength: 1, maxLength: 6 }), (edits) => {
      const copy = Buffer.from(image)
      for (const { at, value } of edits) copy[at] = value
      try {
        open(file('fuzz', copy))
      } catch (error) {
        return error instanceof CoracleError && error.code === 'KERNEL_INVALID'
      }
      return true
    }),
    { numRuns: 500 },
  )
  t.pass()
})

t.test('Linux finds its parameters', async (t) => {
  const file = scratch(t)
  const kernel = file('vmlinux', kernelImage(CODE))
  const initramfs = file('initramfs', Buffer.from('070701 and so on'))
  using ram = Ram.create(4 * GIB)
  const entry = loadLinux(ram, { kernel, initramfs, commandLine: 'console=ttyS0 quiet' }, RSDP)
  t.equal(entry.instructionPointer, ENTRY)
  const bytes = ram.bytes(entry.bootParameters, 4096)
  const page = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  t.equal(page.getUint32(0x202, true), 0x53726448)
  t.equal(page.getBigUint64(0x70, true), BigInt(RSDP))
  const text = Buffer.from(ram.bytes(page.getUint32(0x228, true), 20)).toString()
  t.equal(text, 'console=ttyS0 quiet\0')
  const [at, length] = [page.getUint32(0x218, true), page.getUint32(0x21c, true)]
  t.equal(Buffer.from(ram.bytes(at, length)).toString(), '070701 and so on')
  t.equal(at % 4096, 0)

  const count = page.getUint8(0x1e8)
  const map = Array.from({ length: count }, (_, i) => ({
    start: Number(page.getBigUint64(0x2d0 + i * 20, true)),
    size: Number(page.getBigUint64(0x2d0 + i * 20 + 8, true)),
    type: page.getUint32(0x2d0 + i * 20 + 16, true),
  }))
  const usable = map.filter(({ type }) => type === 1)
  t.equal(
    usable.reduce((sum, { size }) => sum + size, 0),
    4 * GIB - (MIB - 0xa_0000),
  )
  t.same(usable.at(-1), { start: 4 * GIB, size: GIB, type: 1 })
  for (let i = 1; i < map.length; i++)
    t.ok(map[i]!.start >= map[i - 1]!.start + map[i - 1]!.size, 'in order, none over another')

  const seed = page.getUint32(0x250, true)
  t.not(Buffer.from(ram.bytes(seed + 16, 32)).compare(Buffer.alloc(32)), 0, 'a seed')
})

t.test('what does not fit is refused by name', async (t) => {
  const file = scratch(t)
  const kernel = file('vmlinux', kernelImage(CODE, 40 * MIB))
  using ram = Ram.create(48 * MIB)
  t.throws(() => loadLinux(ram, { kernel, commandLine: '' }, RSDP), {
    code: 'MEMORY_SIZE',
    message: /48 MiB .* 66 MiB or more/,
  })
  const small = file('small', kernelImage(CODE))
  for (const commandLine of ['x'.repeat(2048), 'a\0b'])
    t.throws(() => loadLinux(ram, { kernel: small, commandLine }, RSDP), { code: 'INVALID_ARGUMENT' })
  t.throws(() => loadLinux(ram, { kernel: small, initramfs: '/nonexistent', commandLine: '' }, RSDP), {
    code: 'KERNEL_INVALID',
    message: /initramfs .*ENOENT/,
  })
})
