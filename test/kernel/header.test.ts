import { gzipSync } from 'node:zlib'
import t from 'tap'
import fc from 'fast-check'
import { CoracleError } from '../../src/errors.js'
import { parseBzImage, parseElf, unpackPayload } from '../../src/kernel/index.js'

/** A bzImage of five sectors of set-up code around `payload`. */
function bzImage(payload: Buffer): Buffer {
  const image = Buffer.alloc(5 * 512 + 16)
  image[0x1f1] = 4
  image.writeUInt16LE(0xaa55, 0x1fe)
  image.write('HdrS', 0x202, 'latin1')
  image.writeUInt16LE(0x020f, 0x206)
  image.writeUInt16LE(0x300, 0x20e)
  image.write('6.1.0-test (us) #1 SMP\0', 0x500, 'latin1')
  image.writeUInt16LE(1, 0x236)
  image.writeUInt32LE(2047, 0x238)
  image.writeUInt32LE(16, 0x248)
  image.writeUInt32LE(payload.length, 0x24c)
  image.writeBigUInt64LE(0x1000000n, 0x258)
  return Buffer.concat([image, payload])
}

/** An ELF image with one segment at 16 MiB and a PVH note. */
function elf(): Buffer {
  const image = Buffer.alloc(256)
  image.write('\x7fELF\x02\x01\x01', 0, 'latin1')
  image.writeUInt16LE(62, 18)
  image.writeBigUInt64LE(0x1000000n, 24)
  image.writeBigUInt64LE(64n, 32)
  image.writeUInt16LE(56, 54)
  image.writeUInt16LE(2, 56)
  const header = (at: number, type: number, offset: number, size: number): void => {
    image.writeUInt32LE(type, at)
    image.writeBigUInt64LE(BigInt(offset), at + 8)
    image.writeBigUInt64LE(0x1000000n, at + 24)
    image.writeBigUInt64LE(BigInt(size), at + 32)
    image.writeBigUInt64LE(BigInt(size), at + 40)
  }
  header(64, 1, 192, 64)
  header(120, 4, 192, 20)
  image.writeUInt32LE(4, 192)
  image.writeUInt32LE(4, 196)
  image.writeUInt32LE(18, 200)
  image.write('Xen\0', 204, 'latin1')
  image.writeUInt32LE(0x1234567, 208)
  return image
}

const KERNEL = gzipSync(elf())
const isOurs = (error: unknown): boolean => error instanceof CoracleError && error.code === 'KERNEL_INVALID'

t.test('the header says what is inside', async (t) => {
  const image = bzImage(KERNEL)
  const header = parseBzImage(image, 'x')
  t.match(header, {
    protocol: 0x020f,
    setupSize: 2560,
    version: '6.1.0-test (us) #1 SMP',
    xloadFlags: 1,
    commandLineSize: 2047,
    preferredAddress: 0x1000000n,
    payload: { offset: 2576, length: KERNEL.length, format: 'gzip' },
  })
  const vmlinux = await unpackPayload(image, header, 'x')
  t.strictSame(vmlinux, elf())
  t.match(parseElf(vmlinux, 'x'), {
    entry: 0x1000000n,
    pvhEntry: 0x1234567,
    segments: [{ offset: 192, fileSize: 64, memorySize: 64, physicalAddress: 0x1000000 }],
  })
})

t.test('what is no kernel is refused with the reason', async (t) => {
  const cases: [string, Buffer, RegExp][] = [
    ['an empty file', Buffer.alloc(0), /only 0 bytes/],
    ['text', Buffer.alloc(4096, 'hello '), /no setup header/],
    ['a kernel cut short', bzImage(KERNEL).subarray(0, 2600), /cut short/],
    ['an unknown compression', bzImage(Buffer.alloc(64, 0xee)), /unknown way \(eeee/],
  ]
  for (const [name, image, reason] of cases)
    t.throws(() => parseBzImage(image, '/k'), { code: 'KERNEL_INVALID', message: reason }, name)
  const old = bzImage(KERNEL)
  old.writeUInt16LE(0x0203, 0x206)
  t.throws(() => parseBzImage(old, '/k'), { message: /2\.3 is older/ })
  const damaged = bzImage(Buffer.concat([KERNEL.subarray(0, 20), Buffer.alloc(40), KERNEL.subarray(-4)]))
  await t.rejects(unpackPayload(damaged, parseBzImage(damaged, '/k'), '/k'), { code: 'KERNEL_INVALID' })
  const lying = Buffer.from(KERNEL)
  lying.writeUInt32LE(10, lying.length - 4)
  const bomb = bzImage(lying)
  await t.rejects(unpackPayload(bomb, parseBzImage(bomb, '/k'), '/k'), { code: 'KERNEL_INVALID' })
  lying.writeUInt32LE(0xffffffff, lying.length - 4)
  const huge = bzImage(lying)
  await t.rejects(unpackPayload(huge, parseBzImage(huge, '/k'), '/k'), { message: /4294967295 bytes/ })
})

t.test('no bytes upset the parsers', async (t) => {
  const refuses = (parse: (image: Buffer, path: string) => unknown, image: Buffer): void => {
    try {
      parse(image, 'x')
    } catch (error) {
      if (!isOurs(error)) throw error
    }
  }
  const change = fc.array(fc.tuple(fc.nat(700), fc.nat(255)), { maxLength: 12 })
  for (const [parse, good] of [
    [parseBzImage, bzImage(KERNEL)],
    [parseElf, elf()],
  ] as const)
    fc.assert(
      fc.property(change, fc.nat(3000), fc.boolean(), (changes, length, cut) => {
        const image = Buffer.from(good)
        for (const [at, byte] of changes) if (at < image.length) image[at] = byte
        refuses(parse, cut ? image.subarray(0, length) : image)
      }),
      { numRuns: 2000 },
    )
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 2000 }), (bytes) => {
      refuses(parseBzImage, Buffer.from(bytes))
      refuses(parseElf, Buffer.from(bytes))
    }),
  )
  t.pass('each gave a header or KERNEL_INVALID')
})
