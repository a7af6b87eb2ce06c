import { execFileSync, spawnSync } from 'node:child_process'
import { closeSync, existsSync, fstatSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import fc from 'fast-check'
import t from 'tap'
import { type Fd, type IoVector, SysError, memfd } from '@coracle/sys'
import { GuestMemory } from 'vhost-user-ts'
import { Blk, type BlkInit } from '../../../src/vmm/devices/blk/blk.js'
import { FileDisk } from '../../../src/vmm/devices/blk/disk.js'
import { BlobSet } from '../../../src/vmm/devices/pmem/blob-set.js'
import { makeGpt } from '../../../src/vmm/devices/pmem/gpt.js'
import { Pmem } from '../../../src/vmm/devices/pmem/pmem.js'
import { RateLimiter, TokenBucket } from '../../../src/vmm/devices/rate-limiter.js'
import { Rng } from '../../../src/vmm/devices/rng/rng.js'
import { type DriverBuffer, TestTransport } from '../../vhost-user-ts/driver.js'

void t.test('rng', async (t) => {
  using guest = new TestTransport(new Rng())
  t.notSame(guest.request(0, [64]), new Uint8Array(64))
  t.equal(guest.request(0, [10, 20, 30])?.length, 60, 'over several buffers')
  t.equal(
    guest.request(0, [1 << 20])?.length,
    65536,
    'a large request is answered in part (Firecracker #5762)',
  )
  t.equal(guest.request(0, [new Uint8Array(4)])?.length, 0, 'nothing to write into')
  t.ok(guest.interrupts.length > 0)
  for (let i = 0; i < 60; i++) guest.queues[0]!.submit([100])
  guest.notify(0)
  const first = guest.queues[0]!.results().length
  t.ok(first > 0 && first < 60, 'others have their turn')
  guest.turn()
  t.equal(first + guest.queues[0]!.results().length, 60)
  guest.queues[0]!.offer(64)
  guest.notify(0)
  t.match(guest.failures, [{ code: 'DESCRIPTOR_INDEX' }])
})

const SECTOR = 512
const OK = 0
const IOERR = 1
const UNSUPP = 2

class BlkGuest extends TestTransport {
  readonly fd: Fd
  /** What the used ring said of the last request. */
  written = 0
  constructor(sectors = 64, readOnly = false, change?: (init: BlkInit) => BlkInit, features?: bigint) {
    const fd = memfd('disk', sectors * SECTOR + 100)
    const init = {
      name: 'test',
      disk: new FileDisk(fd.duplicate(), readOnly),
      serial: 'a serial of some length',
    }
    const device = new Blk(change ? change(init) : init)
    super(device, features ?? device.features)
    this.fd = fd
  }

  ask(type: number, sector: bigint | number, data: DriverBuffer[] = [], indirect = false): Uint8Array {
    const header = new DataView(new ArrayBuffer(16))
    header.setUint32(0, type, true)
    header.setBigUint64(8, BigInt(sector), true)
    const readable = data.filter((each) => typeof each !== 'number')
    const writable = data.filter((each) => typeof each === 'number')
    const buffers = [new Uint8Array(header.buffer), ...readable, ...writable, 1]
    const [queue] = this.queues
    queue!.submit(buffers, indirect)
    this.notify(0)
    const [used] = queue!.used()
    if (!used) throw this.failures[0] ?? new Error('no answer')
    this.written = used.written
    // The status is the last byte, also where less counts as written.
    const total = buffers.reduce<number>((sum, each) => sum + (typeof each === 'number' ? each : 0), 0)
    return queue!.collect({ head: used.head, written: total })
  }

  status(type: number, sector: bigint | number, data: DriverBuffer[] = []): number | undefined {
    return this.ask(type, sector, data).at(-1)
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]()
    this.fd.close()
  }
}

const range = (sector: number, sectors: number, flags = 0): Uint8Array => {
  const bytes = new DataView(new ArrayBuffer(16))
  bytes.setBigUint64(0, BigInt(sector), true)
  bytes.setUint32(8, sectors, true)
  bytes.setUint32(12, flags, true)
  return new Uint8Array(bytes.buffer)
}

void t.test('blk', async (t) => {
  const pattern = (length: number, seed: number): Uint8Array =>
    new Uint8Array(length).map((_, i) => (i * 31 + seed) & 0xff)

  await t.test('capacity, serial, reads and writes', async (t) => {
    using guest = new BlkGuest()
    const config = new DataView(guest.device.config.buffer)
    t.equal(config.getBigUint64(0, true), 64n, 'a last part of a sector does not count')
    t.equal(Buffer.from(guest.ask(8, 0, [20])).toString(), 'a serial of some len\0')
    for (const indirect of [false, true]) {
      const data = pattern(3 * SECTOR, indirect ? 1 : 2)
      t.same(guest.ask(1, 5, [data.subarray(0, 700), data.subarray(700)], indirect), new Uint8Array([OK]))
      t.same(guest.ask(0, 5, [1000, 536], indirect), new Uint8Array([...data, OK]))
    }
    const onDisk = new Uint8Array(SECTOR)
    guest.fd.pread(onDisk, 5 * SECTOR)
    t.same(onDisk, pattern(SECTOR, 1))
    t.equal(guest.status(4, 0), OK, 'flush')
    t.equal(guest.status(0, 64), OK, 'nothing, at the very end')
    t.same(guest.failures, [])
  })

  await t.test('what is out of bounds or unknown is an error for the guest alone', async (t) => {
    using guest = new BlkGuest()
    for (const [type, sector, data] of [
      [0, 64, [512]],
      [0, 63, [1024]],
      [0, 2n ** 64n - 1n, [512]],
      [0, 2n ** 55n, [512]],
      [1, 64, [pattern(512, 0)]],
      [1, 0, [pattern(100, 0)]],
      [0, 0, [511]],
    ] as [number, bigint | number, DriverBuffer[]][])
      t.equal(guest.status(type, sector, data), IOERR, `request ${type} at ${sector}`)
    t.equal(guest.status(77, 0, [512]), UNSUPP)
    t.equal(guest.status(0, 0, [512]), OK)
    t.same(guest.failures, [])
  })

  await t.test('discard and write zeroes', async (t) => {
    using guest = new BlkGuest()
    t.equal(guest.status(1, 0, [pattern(64 * SECTOR, 3)]), OK)
    const blocks = fstatSync(guest.fd.number).blocks
    t.equal(guest.status(11, 0, [range(0, 8), range(16, 16)]), OK)
    t.ok(fstatSync(guest.fd.number).blocks < blocks, 'room comes back')
    t.equal(guest.status(13, 0, [range(9, 1), range(40, 2, 1)]), OK)
    const zeroes = (sector: number): boolean => guest.ask(0, sector, [SECTOR]).every((each) => each === 0)
    t.same([0, 7, 8, 9, 10, 16, 31, 32, 40, 41, 42].filter(zeroes), [0, 7, 9, 16, 31, 40, 41])
    t.equal(guest.status(11, 0, [range(0, 8, 1)]), UNSUPP, 'unmap is for write zeroes')
    t.equal(guest.status(13, 0, [range(0, 8, 2)]), UNSUPP)
    t.equal(guest.status(13, 0, [range(60, 5)]), IOERR)
    t.equal(guest.status(13, 0, [range(0, 0xffff_ffff)]), IOERR)
    t.equal(guest.status(11, 0, [new Uint8Array(17)]), IOERR)
    t.equal(guest.status(11, 0), IOERR, 'no range')
    t.equal(guest.status(11, 0, [new Uint8Array(33 * 16)]), IOERR, 'too many ranges')
  })

  await t.test('read-only', async (t) => {
    using guest = new BlkGuest(8, true)
    t.equal(guest.status(0, 0, [512]), OK)
    t.equal(guest.status(1, 0, [pattern(512, 0)]), IOERR)
    t.equal(guest.status(11, 0, [range(0, 8)]), IOERR)
    t.equal(guest.status(13, 0, [range(0, 8)]), IOERR)
    t.equal(guest.status(4, 0), OK)
    t.equal(guest.device.features & (1n << 5n), 1n << 5n)
  })

  await t.test('errors of the host', async (t) => {
    const log: string[] = []
    let flushes = 0
    const failing = (init: BlkInit): BlkInit => ({
      ...init,
      log: (message) => log.push(message),
      disk: {
        size: 4096,
        readOnly: false,
        read: () => 0,
        write: (vector: IoVector) => vector.total,
        flush: () => void flushes++,
        discard: () => {
          throw new SysError(95, 'fallocate')
        },
        zero: () => {
          throw new SysError(28, 'fallocate')
        },
        close: () => undefined,
      },
    })
    using guest = new BlkGuest(8, false, failing, 0n)
    t.equal(guest.status(0, 0, [512]), IOERR, 'the file became shorter')
    t.equal(guest.written, 0, 'nothing counts as written')
    t.equal(guest.status(11, 0, [range(0, 1)]), UNSUPP)
    t.equal(guest.status(13, 0, [range(0, 1)]), IOERR)
    t.match(log[1], /blk test: request 13 at sector 0: ENOSPC/)
    t.equal(guest.status(1, 0, [pattern(512, 0)]), OK)
    t.equal(flushes, 1, 'a driver that knows no flush gets each write flushed')
  })

  await t.test('rates hold reading and writing back, and each other not', async (t) => {
    const limits = {
      read: { operations: { perSecond: 100, burst: 3 } },
      write: { bytes: { perSecond: 51_200, burst: 4096 } },
    }
    using guest = new BlkGuest(64, false, (init) => ({ ...init, limits }))
    const queue = guest.queues[0]!
    const header = (type: number): Uint8Array => Uint8Array.from([type, ...new Array<number>(15).fill(0)])
    /** Waits until so many requests are done, those behind the burst. @returns how many that was, and ms */
    const finish = (total: number): [first: number, ms: number] => {
      const began = performance.now()
      guest.notify(0)
      const first = queue.results().length
      for (let done = first; done < total; done += queue.results().length) guest.turn(1000)
      return [first, performance.now() - began]
    }
    for (let i = 0; i < 10; i++) queue.submit([header(0), 512, 1])
    const [reads, readTime] = finish(10)
    t.ok(reads >= 3 && reads < 10, `${reads} at once`)
    t.ok(readTime >= 60, 'seven behind the burst at a hundred a second')
    for (let i = 0; i < 5; i++) queue.submit([header(1), pattern(4096, i), 1])
    queue.submit([header(4), 1])
    const [writes, writeTime] = finish(6)
    t.ok(writes >= 1 && writes < 5, `${writes} at once`)
    t.ok(writeTime >= 230, 'twelve kilobytes behind the burst at fifty a second, and then the flush')
    t.same(guest.failures, [])
    t.throws(() => new RateLimiter({ bytes: { perSecond: 0 } }, guest.loop, () => undefined), RangeError)
  })

  await t.test('requests without header or status stop the device', async (t) => {
    using short = new BlkGuest()
    short.request(0, [new Uint8Array(15), 1])
    t.match(short.failures, [{ code: 'CHAIN_SHORT' }])
    using silent = new BlkGuest()
    silent.request(0, [new Uint8Array(16)])
    t.match(silent.failures, [{ code: 'DEVICE_REQUEST' }])
  })

  await t.test('any request gets a status', async (t) => {
    using guest = new BlkGuest()
    fc.assert(
      fc.property(
        fc.oneof(fc.nat(14), fc.nat(0xffff_ffff)),
        fc.oneof(fc.bigInt({ min: 0n, max: 70n }), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n })),
        fc.array(
          fc.oneof(
            fc.nat(64).map((n) => n * 512),
            fc.nat(2000),
            fc.uint8Array({ maxLength: 64 }),
          ),
          {
            maxLength: 4,
          },
        ),
        (type, sector, data) => {
          guest.ask(type, sector, data)
          guest.turn()
        },
      ),
      { numRuns: 200 },
    )
    t.same(guest.failures, [])
  })
})

void t.test('a token bucket keeps its average, whatever goes through it', async () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 100_000 }),
      fc.integer({ min: 1, max: 50_000 }),
      fc.array(fc.tuple(fc.integer({ min: 1, max: 20_000 }), fc.nat(500)), { minLength: 1 }),
      (perSecond, burst, operations) => {
        const bucket = new TokenBucket({ perSecond, burst }, 1000)
        let now = 1000
        let passed = 0
        let last = 0
        for (const [units, pause] of operations) {
          now += pause
          now += bucket.wait(now)
          // Rounding may leave a trace of a wait.
          now += bucket.wait(now)
          bucket.take(units)
          passed += units
          last = Math.max(last, units)
        }
        return passed <= burst + last + ((now - 1000) * perSecond) / 1000 + 1
      },
    ),
  )
})

void t.test('pmem', async (t) => {
  let flushes = 0
  const flush = (): void => void flushes++
  using guest = new TestTransport(new Pmem({ name: 'x', guestAddress: 2 ** 33, size: 2 << 20, flush }))
  const config = new DataView(guest.device.config.buffer)
  t.same([config.getBigUint64(0, true), config.getBigUint64(8, true)], [2n ** 33n, 2n << 20n])
  t.same(guest.request(0, [new Uint8Array(4), 4]), new Uint8Array(4))
  t.equal(flushes, 1)
  const [queue] = guest.queues
  const wanted = guest.guest.memory.readU16(queue!.usedRing + 4 + queue!.size * 8)
  t.equal(wanted, 1, 'it asks for the doorbell of the next request, else a driver of event indices is silent')
  t.same(guest.request(0, [new Uint8Array([9, 0, 0, 0]), 4]), new Uint8Array([1, 0, 0, 0]), 'unknown request')
  guest.request(0, [new Uint8Array(3), 4])
  t.match(guest.failures, [{ code: 'CHAIN_SHORT' }])
})

/** Reads a GPT as the UEFI specification says, from either end. */
function parseGpt(disk: Uint8Array, at: number): { start: number; size: number; name: string }[] {
  const bytes = Buffer.from(disk.buffer, disk.byteOffset, disk.length)
  const header = Buffer.from(bytes.subarray(at, at + 92))
  t.equal(header.toString('latin1', 0, 8), 'EFI PART')
  const crc = header.readUInt32LE(16)
  header.writeUInt32LE(0, 16)
  t.equal(crc32(header), crc, 'header checksum')
  t.equal(Number(header.readBigUInt64LE(24)) * 512, at, 'its own place')
  const count = header.readUInt32LE(80)
  const table = Number(header.readBigUInt64LE(72)) * 512
  const entries = bytes.subarray(table, table + count * 128)
  t.equal(crc32(entries), header.readUInt32LE(88), 'entries checksum')
  return Array.from({ length: count }, (_, i) => entries.subarray(i * 128, i * 128 + 128))
    .filter((entry) => entry.subarray(0, 16).some((each) => each !== 0))
    .map((entry) => {
      const start = Number(entry.readBigUInt64LE(32)) * 512
      const name = entry.toString('utf16le', 56).replace(/\0+$/, '')
      return { start, size: (Number(entry.readBigUInt64LE(40)) + 1) * 512 - start, name }
    })
}

void t.test('blob set', async (t) => {
  const dir = t.testdir()
  const sizes = [2 << 20, 5000, (2 << 20) + 4096, 4 << 20]
  const blobs = sizes.map((size, i) => {
    const path = join(dir, `${i}.erofs`)
    writeFileSync(path, new Uint8Array(size).fill(i + 1))
    return { name: i === 0 ? 'tools' : `layer ${i}`, path }
  })
  using set = BlobSet.map(blobs)
  const bytes = set.mapping.bytes()
  t.equal(set.size % (2 << 20), 0)
  t.same(
    set.partitions.map(({ name, start, size }) => [name, start / (2 << 20), size / (2 << 20)]),
    [
      ['tools', 1, 1],
      ['layer 1', 2, 1],
      ['layer 2', 3, 2],
      ['layer 3', 5, 2],
    ],
  )
  const partitions = set.partitions.map(({ name, start, size }) => ({ name, start, size }))
  t.same(parseGpt(bytes, 512), partitions)
  t.same(parseGpt(bytes, set.size - 512), partitions, 'the backup says the same')
  t.same([...bytes.subarray(510, 512), bytes[450]], [0x55, 0xaa, 0xee], 'protective MBR')
  set.partitions.forEach(({ start, size }, i) => {
    const part = bytes.subarray(start, start + size)
    const right = part.subarray(0, sizes[i]).every((each) => each === i + 1)
    t.ok(
      right && part.subarray(sizes[i]).every((each) => each === 0),
      `partition ${i + 1} is its file, then zeroes`,
    )
  })

  const memory = new GuestMemory([
    { guestAddress: 0, size: set.size, mapping: set.mapping, mappingOffset: 0, readOnly: true },
  ])
  t.throws(() => memory.writeU8(set.partitions[0]!.start, 1), { code: 'MEMORY_READ_ONLY' })

  await t.test('tools read it', async (t) => {
    const image = join(dir, 'disk')
    writeFileSync(image, bytes)
    const sfdisk = spawnSync('sfdisk', ['--json', image], { encoding: 'utf8' })
    if (sfdisk.status === 0) {
      t.equal(sfdisk.stderr, '', 'sfdisk finds nothing amiss')
      const table = JSON.parse(sfdisk.stdout).partitiontable as { partitions: { start: number }[] }
      t.same(
        table.partitions.map((each) => each.start * 512),
        partitions.map((each) => each.start),
      )
    } else t.pass('by a tool', { skip: 'no sfdisk here' })
    if (!existsSync('/dev/loop-control') || process.getuid?.() !== 0)
      return void t.pass('by a tool', { skip: 'no loop devices here' })
    const loop = spawnSync('losetup', ['-r', '-f', '-P', '--show', image], { encoding: 'utf8' })
    if (loop.status !== 0) return void t.pass('by a tool', { skip: `no loop device: ${loop.stderr}` })
    const device = loop.stdout.trim()
    try {
      const name = device.slice('/dev/'.length)
      const starts = [1, 2, 3, 4].map((i) => `/sys/block/${name}/${name}p${i}/start`)
      if (!starts.every((path) => existsSync(path)))
        return void t.pass('by a tool', { skip: 'the kernel reads no partitions of loops' })
      t.same(
        starts.map((path) => Number(readFileSync(path, 'utf8')) * 512),
        partitions.map((each) => each.start),
      )
    } finally {
      execFileSync('losetup', ['-d', device])
    }
  })

  await t.test('bad input', async (t) => {
    const empty = join(dir, 'empty')
    closeSync(openSync(empty, 'w'))
    t.throws(() => BlobSet.map([{ name: 'x', path: empty }]), RangeError)
    t.throws(() => BlobSet.map([{ name: 'x', path: join(dir, 'none') }]), { code: 'ENOENT' })
    t.throws(() => BlobSet.map(new Array(256).fill(blobs[1])), RangeError)
    using many = BlobSet.map(new Array(255).fill(blobs[1]))
    t.equal(parseGpt(many.mapping.bytes(), 512).length, 255)
    const entries = Array.from({ length: 255 }, (_, i) => many.mapping.bytes(1024 + i * 128 + 16, 16))
    t.equal(new Set(entries.map((guid) => guid.toString())).size, 255, 'each with a GUID of its own')
    for (const [start, size] of [
      [0, 512],
      [1 << 20, 2 << 20],
      [1 << 19, 100],
      [1 << 19, 0],
    ])
      t.throws(() => makeGpt(2 << 20, [{ name: 'x', start: start!, size: size! }]), RangeError)
  })
})
