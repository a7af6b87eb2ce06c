import fc from 'fast-check'
import t from 'tap'
import { CoracleError } from '../../src/errors.js'
import {
  GIB,
  MIB,
  PCI_WINDOW,
  checkGuestMemory,
  checkHostMemory,
  layoutMemory,
} from '../../src/vmm/memory/layout.js'
import { AddressPool, NumberPool } from '../../src/vmm/memory/pools.js'
import { Ram } from '../../src/vmm/memory/ram.js'

t.test('RAM keeps clear of the PCI hole, and device memory lies above all of it', async (t) => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 200 * 1024 }), (mib) => {
      const { size, ram, deviceMemory } = layoutMemory(mib * MIB)
      const sum = ram.reduce((total, range) => total + range.size, 0)
      const last = ram.at(-1)!
      return (
        size >= mib * MIB &&
        size % (2 * MIB) === 0 &&
        sum === size &&
        ram[0]!.start === 0 &&
        ram[0]!.size <= PCI_WINDOW &&
        (ram.length === 1 || (last.start === 4 * GIB && ram.length === 2)) &&
        deviceMemory.start >= Math.max(4 * GIB, last.start + last.size) &&
        deviceMemory.start % GIB === 0 &&
        deviceMemory.size > GIB
      )
    }),
  )
  t.same(layoutMemory(3 * GIB).ram, [{ start: 0, size: 3 * GIB }])
  t.same(layoutMemory(5 * GIB).ram, [
    { start: 0, size: 3 * GIB },
    { start: 4 * GIB, size: 2 * GIB },
  ])
})

t.test('sizes that cannot be are refused by name', async (t) => {
  const code = { name: 'CoracleError', code: 'MEMORY_SIZE' }
  for (const size of [0, -1, 1.5, NaN, Infinity, 2 ** 50]) t.throws(() => layoutMemory(size), code)
  t.throws(() => checkHostMemory(2 * GIB, GIB), { ...code, message: /2048 MiB.* 1024 MiB .*--memory/ })
  t.throws(() => checkHostMemory(2 ** 48), code, 'what this host has')
  t.throws(() => checkGuestMemory(16 * MIB, 80 * MIB), { ...code, message: /16 MiB.* 80 MiB/ })
  checkHostMemory(GIB, GIB)
  checkGuestMemory(80 * MIB, 80 * MIB)
})

t.test('bytes are found by guest address and nowhere else', async (t) => {
  // Only what is touched costs memory.
  using ram = Ram.create(5 * GIB)
  ram.bytes(0x1000, 4).set([1, 2, 3, 4])
  ram.bytes(6 * GIB - 4, 4).set([5, 6, 7, 8])
  t.same([...ram.bytes(0x1002, 2)], [3, 4])
  t.same([...ram.bytes(6 * GIB - 2, 2)], [7, 8])
  const outside: [number, number][] = [
    [3 * GIB - 1, 2],
    [3 * GIB, 1],
    [4 * GIB - 1, 2],
    [6 * GIB, 1],
    [6 * GIB - 1, 2],
    [-1, 1],
    [0, -1],
  ]
  for (const [address, length] of outside) t.throws(() => ram.bytes(address, length), RangeError)
  const shared = ram.share()
  t.same(
    shared.ranges.map(({ offset }) => offset),
    [0, 3 * GIB],
  )
  t.equal(shared.length, 5 * GIB)
})

t.test('an error is one line for the user', async (t) => {
  try {
    checkHostMemory(2 * GIB, GIB)
  } catch (error) {
    t.ok(error instanceof CoracleError)
    t.notMatch((error as Error).message, /\n/)
  }
})

t.test('places are never given to two, and what is given back is used again', async (t) => {
  const range = { start: 1000, size: 1 << 16 }
  const step = fc.record({
    size: fc.integer({ min: 1, max: 1 << 14 }),
    shift: fc.nat(12),
    drop: fc.option(fc.nat(20)),
  })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const pool = new AddressPool(range, 'it')
      const held: { at: number; end: number }[] = []
      for (const { size, shift, drop } of steps) {
        try {
          const at = pool.take(size, 1 << shift)
          const end = at + size
          if (at % (1 << shift) !== 0 || at < range.start || end > range.start + range.size) return false
          if (held.some((each) => at < each.end && each.at < end)) return false
          held.push({ at, end })
        } catch (error) {
          if (!(error instanceof CoracleError) || error.code !== 'CONFLICT') throw error
        }
        if (drop !== null && held.length > 0) pool.giveBack(held.splice(drop % held.length, 1)[0]!.at)
      }
      for (const { at } of held) pool.giveBack(at)
      return pool.take(range.size, 1) === range.start
    }),
  )
  const numbers = new NumberPool(3, 5, 'numbers')
  t.same([numbers.take(), numbers.take()], [3, 4])
  t.throws(() => numbers.take(), { code: 'KVM_REFUSED' })
  numbers.giveBack(3)
  t.equal(numbers.take(), 3)
  t.throws(() => numbers.take(), { code: 'KVM_REFUSED' })
})
