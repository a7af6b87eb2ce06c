import fc from 'fast-check'
import t from 'tap'
import { IoVector, Mapping, PROT_READ } from '@coracle/sys'
import {
  GuestMemory,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_VERSION_1,
  VRING_DESC_F_NEXT as NEXT,
  VirtioError,
  Virtqueue,
  type VirtqueueInit,
} from 'vhost-user-ts'
import { BASE, DriverQueue, GUARD, TestGuest } from './driver.js'
import { VIOLATIONS } from './violations.js'

const text = (value: string): Uint8Array => new TextEncoder().encode(value)

void t.test('guest memory', async (t) => {
  using mapping = Mapping.create({ length: 0x8000 })
  using readOnly = Mapping.create({ length: 0x1000, prot: PROT_READ })
  // Two regions that touch but lie elsewhere on the host, a hole, and a read-only one.
  const memory = new GuestMemory([
    { guestAddress: 0x3000, size: 0x1000, mapping, mappingOffset: 0x1000 },
    { guestAddress: 0x2000, size: 0x1000, mapping, mappingOffset: 0x5000 },
    { guestAddress: 0x6000, size: 0x1000, mapping: readOnly, mappingOffset: 0, readOnly: true },
  ])

  await t.test('numbers are little-endian at any alignment and across regions', async (t) => {
    memory.writeU64(0x2ffd, 0x8877665544332211n)
    t.equal(memory.readU64(0x2ffd), 0x8877665544332211n)
    t.equal(memory.readU32(0x2ffe), 0x55443322)
    t.equal(memory.readU16(0x2fff), 0x4433)
    t.equal(memory.readU8(0x3004), 0x88)
    memory.writeU16(0x2fff, 0xabcd)
    t.same([...mapping.bytes(0x5fff, 1), ...mapping.bytes(0x1000, 1)], [0xcd, 0xab])
    memory.write(0x2ffe, text('hello'))
    const back = new Uint8Array(5)
    memory.read(0x2ffe, back)
    t.same(back, text('hello'))
  })

  await t.test('one region translates, several gather', async (t) => {
    t.equal(memory.translate(0x2010, 8), mapping.address + 0x5010n)
    t.throws(() => memory.translate(0x2ffc, 8), { code: 'MEMORY_ADDRESS' })
    const vector = new IoVector()
    t.equal(memory.gather(0x2ffc, 8, vector), 8)
    t.same([...vector.bytes.subarray(0, 4)], [mapping.address + 0x5ffcn, 4n, mapping.address + 0x1000n, 4n])
    const small = new IoVector(1)
    t.equal(memory.gather(0x2ffc, 8, small), 4, 'as far as the vector goes')
  })

  await t.test('nothing outside is reached', async (t) => {
    for (const address of [0, 0x1fff, 0x4000, 0x3ffd, 2 ** 52, 2 ** 63, -1, NaN])
      t.throws(() => memory.readU32(address), { code: 'MEMORY_ADDRESS' }, `${address}`)
    t.throws(() => memory.write(0x3ffe, text('abc')), { code: 'MEMORY_ADDRESS' })
    t.throws(() => memory.view(0x2000, -1), { code: 'MEMORY_ADDRESS' })
    t.equal(memory.contains(0x2000, 0x2000), true)
    t.equal(memory.contains(0x2000, 0x2001), false)
    t.equal(memory.contains(0x3000, 2 ** 53), false)
    t.equal(memory.contains(NaN, 1), false)
  })

  await t.test('read-only memory is never written', async (t) => {
    t.equal(memory.readU32(0x6000), 0)
    t.throws(() => memory.writeU8(0x6000, 1), { code: 'MEMORY_READ_ONLY' })
    t.throws(() => memory.gather(0x6000, 1, new IoVector(), true), { code: 'MEMORY_READ_ONLY' })
    t.equal(memory.contains(0x6000, 1, true), false)
    t.equal(memory.contains(0x6000, 1), true)
  })

  await t.test('regions must make sense', async (t) => {
    const region = { guestAddress: 0, size: 0x1000, mapping, mappingOffset: 0 }
    for (const bad of [
      [{ ...region, size: 0 }],
      [{ ...region, guestAddress: -4096 }],
      [{ ...region, guestAddress: 2 ** 60 }],
      [{ ...region, mappingOffset: 0x7001 }],
      [region, { ...region, guestAddress: 0xfff }],
    ])
      t.throws(() => new GuestMemory(bad), { code: 'MEMORY_LAYOUT' })
  })

  await t.test('a region beyond 4 GiB', async (t) => {
    const size = 9 * 2 ** 30
    using large = Mapping.create({ length: size, flags: 0x4022 })
    const big = new GuestMemory([{ guestAddress: 2 ** 32, size, mapping: large, mappingOffset: 0 }])
    for (const offset of [2 ** 24 - 2, 2 ** 31 - 2, 2 ** 32 - 1, 2 ** 33 + 5, size - 4]) {
      big.writeU32(2 ** 32 + offset, 0x12345678)
      t.equal(big.readU32(2 ** 32 + offset), 0x12345678)
    }
    const bytes = Uint8Array.from({ length: 9 }, (_, i) => i)
    const across = 2 ** 32 + 2 ** 25 - 4
    big.write(across, bytes)
    const back = new Uint8Array(9)
    big.read(across, back)
    t.same(back, bytes, 'across the ends of views')
    const vector = new IoVector()
    t.equal(big.gather(across, 9, vector), 9)
    t.equal(vector.total, 9)
    t.equal(big.contains(2 ** 32, size), true)
    t.equal(big.translate(2 ** 32 + size - 4, 4), large.address + BigInt(size) - 4n)
  })
})

void t.test('rings are checked at activation', async (t) => {
  using guest = new TestGuest(0x10000)
  const init: VirtqueueInit = {
    index: 3,
    size: 8,
    maxSize: 16,
    descriptorTable: BASE,
    availableRing: BASE + 0x1000,
    usedRing: BASE + 0x2000,
    features: VIRTIO_F_VERSION_1,
  }
  const make = (change: Partial<VirtqueueInit>): Virtqueue =>
    new Virtqueue(guest.memory, { ...init, ...change })
  t.equal(make({}).size, 8)
  t.equal(make({ size: 1 }).size, 1)
  for (const size of [0, 3, 12, 32, 65536, -8, 1.5, NaN])
    t.throws(() => make({ size }), { code: 'QUEUE_SIZE' }, `size ${size}`)
  t.throws(() => make({ size: 65536, maxSize: 65536 }), { code: 'QUEUE_SIZE' })
  t.throws(() => make({ descriptorTable: BASE + 8 }), { code: 'QUEUE_ALIGNMENT' })
  t.throws(() => make({ availableRing: BASE + 1 }), { code: 'QUEUE_ALIGNMENT' })
  t.throws(() => make({ usedRing: BASE + 2 }), { code: 'QUEUE_ALIGNMENT' })
  const end = BASE + 0x10000
  for (const address of [0, end, end - 16, 2 ** 40, Number(2n ** 64n - 16n)]) {
    t.throws(() => make({ descriptorTable: address }), { code: 'QUEUE_ADDRESS' })
    t.throws(() => make({ availableRing: address }), { code: 'QUEUE_ADDRESS' })
    t.throws(() => make({ usedRing: address }), { code: 'QUEUE_ADDRESS' })
  }
  t.equal(make({ availableRing: end - 22 }).size, 8, 'up to the last byte')
})

void t.test('chains', async (t) => {
  const fresh = (features?: bigint): { guest: TestGuest; driver: DriverQueue; queue: Virtqueue } => {
    const guest = new TestGuest()
    t.teardown(() => guest.mapping.unmap())
    const driver = new DriverQueue(guest, 8, features)
    return { guest, driver, queue: driver.device() }
  }

  await t.test('readable and writable bytes, direct and indirect', async (t) => {
    const { driver, queue } = fresh()
    for (const indirect of [false, true]) {
      driver.submit([text('abc'), text(''), text('defgh'), 3, 6], indirect)
      const chain = queue.pop()!
      t.equal(chain.reader.length, 8)
      t.equal(chain.reader.u16(), 0x6261)
      t.equal(chain.reader.u32(), 0x66656463, 'across buffers')
      const rest = new Uint8Array(2)
      chain.reader.bytes(rest)
      t.same(rest, text('gh'))
      t.throws(() => chain.reader.u8(), { code: 'CHAIN_SHORT' })
      chain.writer.u16(0x3231)
      chain.writer.u32(0x36353433)
      chain.writer.bytes(text('78'))
      t.throws(() => chain.writer.u16(0), { code: 'CHAIN_SHORT' })
      t.equal(chain.writer.position, 8)
      queue.push(chain, chain.writer.position)
      t.same(driver.used(), [], 'nothing shows before the flush')
      t.equal(queue.flush(), !indirect, 'used_event stays 0: only the first interrupts')
      t.same(driver.results(), [text('12345678')])
    }
    t.equal(queue.pop(), undefined)
    t.equal(queue.inFlight, 0)
  })

  await t.test('vectors, whole and in part', async (t) => {
    const { driver, queue } = fresh()
    driver.submit([text('abc'), text('defgh'), 4, 4])
    const chain = queue.pop()!
    const vector = new IoVector()
    t.equal(chain.reader.vector(vector), 8)
    t.equal(vector.count, 2)
    chain.reader.skip(2)
    t.equal(chain.reader.vector(vector.clear(), 3), 3)
    t.same([vector.bytes[1], vector.bytes[3], vector.count], [1n, 2n, 2])
    t.equal(chain.reader.vector(new IoVector(1)), 1, 'as far as the vector goes')
    t.equal(chain.writer.vector(vector.clear(), 100), 8)
    chain.writer.skip(8)
    t.equal(chain.writer.vector(vector.clear()), 0)
    t.throws(() => chain.writer.skip(1), { code: 'CHAIN_SHORT' })
  })

  await t.test('a chain put back comes again, a chain given back twice is an error', async (t) => {
    const { driver, queue } = fresh()
    driver.submit([text('one')])
    driver.submit([text('two')])
    const first = queue.pop()!
    queue.undo(first)
    const again = queue.pop()!
    t.equal(again.reader.u8(), 'o'.charCodeAt(0))
    queue.push(again, 0)
    t.throws(() => queue.push(again, 0), { code: 'CHAIN_STATE' })
    t.equal(queue.ready, true)
  })

  await t.test('indices wrap', async (t) => {
    const { driver, queue } = fresh()
    for (let i = 0; i < 70_000; i++) {
      driver.guest.memory.writeU16(driver.availableRing + 4 + (i % 8) * 2, 0)
      if (i === 0) driver.describe(driver.descriptorTable, 0, BASE, 16, 0)
      driver.guest.memory.writeU16(driver.availableRing + 2, i + 1)
      queue.push(queue.pop()!, 0)
      queue.flush()
    }
    t.equal(driver.guest.memory.readU16(driver.usedRing + 2), 70_000 & 0xffff)
  })

  for (const { name, code, features, act } of VIOLATIONS)
    await t.test(name, async (t) => {
      const { driver, queue } = fresh(features)
      act(driver)
      t.throws(() => queue.pop(), { code })
    })

  await t.test('more chains out than the queue has descriptors', async (t) => {
    // Each step is within the rule on `avail.idx`; together they would make an unbounded number of requests.
    const { driver, queue } = fresh()
    driver.describe(driver.descriptorTable, 0, BASE, 16, 0)
    for (let i = 0; i < 8; i++) {
      driver.offer(0)
      queue.pop()
    }
    driver.offer(0)
    t.throws(() => queue.pop(), { code: 'AVAILABLE_INDEX' })
  })

  await t.test('4 GiB in one chain', async (t) => {
    const size = 2 ** 32 + 0x10000
    using mapping = Mapping.create({ length: size, flags: 0x4022 })
    const memory = new GuestMemory([{ guestAddress: 0, size, mapping, mappingOffset: 0 }])
    const queue = new Virtqueue(memory, {
      index: 0,
      size: 2,
      maxSize: 2,
      descriptorTable: 0,
      availableRing: 0x1000,
      usedRing: 0x2000,
      features: 0n,
    })
    memory.writeU32(8, 0xffff_ffff)
    memory.writeU16(12, NEXT)
    memory.writeU16(14, 1)
    memory.writeU32(16 + 8, 1)
    memory.writeU16(0x1002, 1)
    t.throws(() => queue.pop(), { code: 'CHAIN_LENGTH' })
    memory.writeU16(12, 0)
    t.equal(queue.pop()?.reader.length, 0xffff_ffff)
  })
})

void t.test('notifications', async (t) => {
  await t.test('by flags', async (t) => {
    using guest = new TestGuest()
    const driver = new DriverQueue(guest, 4, VIRTIO_F_VERSION_1)
    const queue = driver.device()
    queue.disableNotifications()
    t.equal(guest.memory.readU16(driver.usedRing), 1)
    t.equal(queue.enableNotifications(), false)
    t.equal(guest.memory.readU16(driver.usedRing), 0)
    driver.submit([text('x')])
    t.equal(queue.enableNotifications(), true, 'one came in between')
    t.equal(queue.flush(), false, 'nothing used')
    queue.push(queue.pop()!, 0)
    t.equal(queue.flush(), true)
    guest.memory.writeU16(driver.availableRing, 1)
    driver.submit([text('x')])
    queue.push(queue.pop()!, 0)
    t.equal(queue.flush(), false)
  })

  await t.test('by event index', async (t) => {
    using guest = new TestGuest()
    const driver = new DriverQueue(guest, 4, VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX)
    const queue = driver.device()
    const use = (): boolean => {
      driver.submit([text('x')])
      queue.push(queue.pop()!, 0)
      const wanted = queue.flush()
      driver.results()
      return wanted
    }
    const usedEvent = driver.availableRing + 4 + 4 * 2
    const availableEvent = driver.usedRing + 4 + 4 * 8
    t.equal(use(), true, 'used_event 0: the first')
    t.equal(use(), false)
    guest.memory.writeU16(usedEvent, 3)
    t.equal(use(), false)
    t.equal(use(), true)
    queue.enableNotifications()
    t.equal(guest.memory.readU16(availableEvent), 4)
  })

  await t.test('a queue goes on where it was', async (t) => {
    using guest = new TestGuest()
    const driver = new DriverQueue(guest, 4)
    guest.memory.writeU16(driver.availableRing + 2, 0xffff)
    const { descriptorTable, availableRing, usedRing, size, features } = driver
    const queue = new Virtqueue(guest.memory, {
      index: 0,
      maxSize: 4,
      nextAvailable: 0xfffe,
      nextUsed: 0xfffe,
      descriptorTable,
      availableRing,
      usedRing,
      size,
      features,
    })
    driver.describe(descriptorTable, 0, BASE, 1, 0)
    queue.push(queue.pop()!, 0)
    queue.flush()
    t.equal(queue.nextAvailable, 0xffff)
    t.equal(guest.memory.readU16(usedRing + 2), 0xffff)
  })
})

void t.test(
  'whatever the rings hold, the device ends, stays in bounds and throws only VirtioError',
  async (t) => {
    using guest = new TestGuest(0x10000)
    const size = 8
    const driver = new DriverQueue(guest, size)
    const descriptor = fc.record({
      address: fc.oneof(
        { weight: 8, arbitrary: fc.integer({ min: BASE, max: BASE + 0xfff0 }) },
        fc.integer({ min: BASE - 16, max: BASE + 0x10010 }),
        fc.constant(driver.descriptorTable),
        fc.maxSafeInteger().map(Math.abs),
      ),
      length: fc.oneof(
        { weight: 8, arbitrary: fc.nat(16) },
        fc.constantFrom(16, 32, 128),
        fc.nat(0xffff_ffff),
      ),
      flags: fc.oneof({ weight: 4, arbitrary: fc.nat(3) }, fc.nat(7), fc.nat(0xffff)),
      next: fc.oneof({ weight: 8, arbitrary: fc.nat(size - 1) }, fc.nat(0xffff)),
    })
    const rings = fc.record({
      table: fc.array(descriptor, { minLength: size, maxLength: size }),
      heads: fc.array(fc.oneof(fc.nat(size - 1), fc.nat(0xffff)), { minLength: size, maxLength: size }),
      available: fc.oneof(fc.nat(size), fc.nat(0xffff)),
    })
    let taken = 0
    fc.assert(
      fc.property(rings, ({ table, heads, available }) => {
        table.forEach((each, i) =>
          driver.describe(driver.descriptorTable, i, each.address, each.length, each.flags, each.next),
        )
        heads.forEach((head, i) => guest.memory.writeU16(driver.availableRing + 4 + i * 2, head))
        guest.memory.writeU16(driver.availableRing + 2, available)
        const queue = driver.device()
        const vector = new IoVector()
        try {
          for (let chain = queue.pop(); chain; chain = queue.pop()) {
            taken++
            const { reader, writer } = chain
            for (const cursor of [reader, writer]) {
              const covered = cursor.vector(vector.clear())
              if (covered !== cursor.length) throw new Error('not covered')
              for (let i = 0; i < vector.count; i++) {
                const from = vector.bytes[i * 2]! - guest.mapping.address - BigInt(GUARD)
                if (from < 0n || from + vector.bytes[i * 2 + 1]! > 0x10000n) throw new Error('out of bounds')
              }
              cursor.skip(covered)
            }
            queue.push(chain, writer.position)
          }
          queue.flush()
        } catch (error) {
          if (!(error instanceof VirtioError)) throw error
        }
        for (const { head } of driver.used()) if (head >= size) throw new Error(`used id ${head}`)
      }),
      { numRuns: 10000 },
    )
    t.ok(taken > 500, `${taken} chains were valid`)
  },
)
