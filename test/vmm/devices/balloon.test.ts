import { fstatSync } from 'node:fs'
import { Mapping, memfd } from '@coracle/sys'
import fc from 'fast-check'
import t from 'tap'
import { Balloon } from '../../../src/vmm/devices/balloon/balloon.js'
import { RamDiscard } from '../../../src/vmm/memory/discard.js'
import { MIB, PAGE } from '../../../src/vmm/memory/layout.js'
import { TestTransport } from '../../vhost-user-ts/driver.js'

const STATS_VQ = 1n << 1n
const REPORTING = 1n << 5n
/** Two ranges of guest RAM with a hole between, as in a guest of more than 3 GiB. */
const RANGES = [
  { start: 0, size: 4 * MIB, offset: 0 },
  { start: 16 * MIB, size: 4 * MIB, offset: 4 * MIB },
]
const SIZE = 8 * MIB

const words = (...values: number[]): Uint8Array => new Uint8Array(Uint32Array.from(values).buffer)

/** RAM whose every page is there, and how many pages of it are left. */
class Memory implements Disposable {
  readonly file = memfd('ram', SIZE)
  readonly mapping = Mapping.create({ fd: this.file, length: SIZE })
  readonly ram = new RamDiscard({
    address: this.mapping.address,
    length: SIZE,
    fd: this.file.number,
    ranges: RANGES,
    deviceMemory: { start: 2 ** 32, size: 2 ** 32 },
  })
  readonly device = new Balloon({ memory: SIZE, discard: (at, length) => this.ram.discard(at, length) })

  constructor() {
    this.mapping.bytes().fill(1)
  }
  get pages(): number {
    return (fstatSync(this.file.number).blocks * 512) / PAGE
  }
  [Symbol.dispose](): void {
    this.mapping.unmap()
    this.file.close()
  }
}

t.test('pages that the guest puts into the balloon are gone from the host', async (t) => {
  using memory = new Memory()
  using transport = new TestTransport(memory.device)
  t.equal(memory.pages, SIZE / PAGE)
  // In any order and twice; the last of the low range, the first of the high one.
  transport.request(0, [words(7, 5, 6, 6, 1023, 4096)])
  t.equal(memory.pages, SIZE / PAGE - 5)
  // In the hole, behind all, and where no address is.
  transport.request(0, [words(1024, 4095, 5120, 0xffff_ffff)])
  t.equal(memory.pages, SIZE / PAGE - 5)
  t.same(memory.mapping.bytes(5 * PAGE, 1), [0])
  t.same(memory.mapping.bytes(8 * PAGE, 1), [1])
  t.equal(transport.request(1, [words(5, 6, 7)])?.length, 0, 'and it may have them back')
  t.same(transport.failures, [])
  t.equal(memory.device.control({}).discarded, 5 * PAGE)

  transport.request(0, [new Uint8Array(4097 * 4)])
  t.match(transport.failures, [/page numbers/])
})

t.test('pages that the guest reports to be free are gone too, and they alone', async (t) => {
  using memory = new Memory()
  for (const features of [STATS_VQ | REPORTING, REPORTING]) {
    using transport = new TestTransport(memory.device, features)
    const index = features === REPORTING ? 2 : 3
    const queue = transport.queues[index]!
    memory.mapping.bytes().fill(1)
    // The test's memory is at 1 MiB: what it offers lies in the low range.
    queue.submit([10 * PAGE, 3 * PAGE - 1])
    transport.notify(index)
    t.equal(queue.results().length, 1)
    // Buffers of the driver's allocator lie off page bounds: the pages that are whole in them count.
    const given = SIZE / PAGE - memory.pages
    t.ok(given >= 9 && given <= 13, `${given} pages`)
    t.same(transport.failures, [])
  }
})

t.test('no request touches what is not asked for', async () => {
  const stretch = fc.record({ at: fc.integer({ min: 0, max: 24 * MIB }), length: fc.nat(2 * MIB) })
  fc.assert(
    fc.property(fc.array(stretch, { maxLength: 8 }), (stretches) => {
      using memory = new Memory()
      const gone = new Set<number>()
      for (const { at, length } of stretches) {
        const bytes = memory.ram.discard(at, length)
        let whole = 0
        for (const { start, size, offset } of RANGES)
          for (let page = start; page < start + size; page += PAGE)
            if (page >= at && page + PAGE <= at + length) {
              gone.add(offset + page - start)
              whole += PAGE
            }
        if (bytes !== whole) return false
      }
      // To read a page that is gone is to have it again: so these are counted first.
      if (memory.pages !== SIZE / PAGE - gone.size) return false
      const all = memory.mapping.bytes()
      for (let page = 0; page < SIZE; page += PAGE) if (all[page] !== (gone.has(page) ? 0 : 1)) return false
      return true
    }),
    { numRuns: 30 },
  )
})

t.test('a private copy is given up, and what lies below it shows again', async (t) => {
  using memory = new Memory()
  const ranges = RANGES
  const mapping = Mapping.create({ fd: memory.file, length: SIZE, flags: 2 })
  const { address } = mapping
  const ram = new RamDiscard({ address, length: SIZE, ranges, deviceMemory: { start: 0, size: 0 } })
  mapping.bytes(0, PAGE).fill(2)
  t.equal(ram.discard(0, PAGE), PAGE)
  t.equal(mapping.bytes(0, 1)[0], 1)
  t.equal(memory.pages, SIZE / PAGE)
  mapping.unmap()
})

t.test('a target reaches the guest, and what it says comes back', async (t) => {
  using memory = new Memory()
  using transport = new TestTransport(memory.device)
  const { device } = memory
  t.match(device.control({ target: 3 * MIB }), { target: 3 * MIB, actual: 0, stats: {} })
  t.equal(transport.configChanges, 1)
  t.equal(new DataView(device.config.buffer).getUint32(0, true), (3 * MIB) / PAGE)
  device.writeConfig(4, words(512))
  device.writeConfig(0, words(9))
  t.match(device.control({}), { target: 3 * MIB, actual: 2 * MIB })
  device.writeConfig(4, words(0xffff_ffff))
  t.match(device.control({}), { actual: SIZE }, 'no more than there is')
  for (const target of [-1, 1.5, SIZE + 1, NaN])
    t.throws(() => device.control({ target }), { code: 'INVALID_ARGUMENT' }, String(target))

  const stats = Buffer.alloc(32)
  stats.writeUInt16LE(4, 0)
  stats.writeBigUInt64LE(123456n, 2)
  stats.writeUInt16LE(5, 10)
  stats.writeBigUInt64LE(987654n, 12)
  stats.writeUInt16LE(99, 20)
  const queue = transport.queues[2]!
  queue.submit([stats])
  transport.notify(2)
  t.same(queue.used(), [], 'kept until somebody asks')
  t.same(device.control({}).stats, { free: 123456, total: 987654 })
  t.equal(queue.results().length, 1, 'and given back to be filled anew')
  t.same(device.control({}).stats, { free: 123456, total: 987654 })

  const saved = device.save()
  const other = new Balloon({ memory: SIZE, discard: () => 0 })
  other.restore(saved)
  t.match(other.control({}), { target: 3 * MIB })
  for (const state of [null, 7, { target: -1, actual: 0 }, { target: 1e9, actual: 0 }, { target: 1 }])
    t.throws(() => other.restore(state as never), /balloon/)
  t.same(transport.failures, [])
})
