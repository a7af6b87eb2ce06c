import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import type { DeviceSpec } from '../../src/vmm/device-thread/device-spec.js'
import { Virtiofsd } from '../../src/vmm/devices/fs/virtiofsd.js'
import { Machine } from '../../src/vmm/machine.js'
import type { MachineExit } from '../../src/vmm/machine-exit.js'
import { ECAM, MIB, PAGE, PCI_WINDOW, PCI_WINDOW_SIZE } from '../../src/vmm/memory/layout.js'
import * as reg from '../../src/vmm/virtio-pci/common.js'
import { noKvm } from '../kvm/guest.js'
import { scratch } from './kernels.js'
import { NOTIFY_PAGE, Program, TABLE_PAGE, type Width } from './program.js'

/*
 * A malicious driver in a real guest: firmware/test-guests/operations.S carries out what the test makes up, on this
 * host's KVM, against the whole machine with its threads. Whatever it does, the machine goes on or ends with a cause,
 * a device that it left alone still answers, and the devices that it abused work for a driver that resets them.
 */
const skip = noKvm()
const RUNS = 20
t.setTimeout(240_000)

/** RAM for the drivers' rings and buffers, far from the code. */
const ABUSED = 0x100_0000
const ABUSED_SIZE = 0x10_0000
const GOOD = 0x200_0000
/** Firmware's places: the machine gives the BARs out in the order of the slots. */
const bar = (slot: number): number => PCI_WINDOW + (slot - 1) * 8 * PAGE
const VICTIMS = [1, 2, 3, 4] as const
const BYSTANDER = 5
/** Served by virtiofsd, which a driver of its own may cost the guest: abused like the others, but it owes no answer. */
const SHARE = 6
const ABUSED_SLOTS = [...VICTIMS, SHARE] as const
const VERSION_1_WRITE = 2

const file = scratch(t)
const disk = file('disk', new Uint8Array(MIB))
const blob = file('blob', new Uint8Array(2 * MIB))
const share = t.testdir({ file: 'of the host' })
/** Each machine has a virtiofsd of its own, which ends with it. */
const devices = (socket: string): readonly DeviceSpec[] => [
  { kind: 'rng' },
  { kind: 'blk', name: 'disk', path: disk },
  { kind: 'vsock', cid: 3 },
  { kind: 'pmem', name: 'store', blobs: [{ name: 'one', path: blob }] },
  { kind: 'rng' },
  { kind: 'fs', tag: 'share', socket },
]

interface Outcome {
  readonly exit: MachineExit
  /** The 32-bit words that the guest said last. */
  words(count: number): number[]
  readonly log: readonly string[]
  readonly accesses: Readonly<Record<string, number>>
}

let sockets = 0

async function run(program: Program): Promise<Outcome> {
  const log: string[] = []
  let said = Buffer.alloc(0)
  const socket = join(share, `../share-${sockets++}.socket`)
  await using virtiofsd = await Virtiofsd.start({ folder: share, socket })
  await using machine = await Machine.create({
    kernel: file('kernel', program.image()),
    memory: 64 * MIB,
    cpus: 1,
    devices: devices(virtiofsd.socket),
    onConsole: (bytes) => (said = Buffer.concat([said, bytes])),
    onLog: (line) => log.push(line),
  })
  machine.start()
  const stuck = setTimeout(() => void machine.stop(), 60_000)
  const exit = await machine.exited
  clearTimeout(stuck)
  return {
    exit,
    words: (count) =>
      Array.from({ length: count }, (_, i) => said.readUInt32LE(said.length - (count - i) * 4)),
    log,
    accesses: machine.statistics.accesses,
  }
}

/** Asks the random number generator at `at` for the `count`th time. */
const askRng = (program: Program, at: number, ring: number, count: number): Program =>
  program
    .describe(ring, 0, ring + 3 * PAGE, 64, VERSION_1_WRITE)
    .offer(at, ring, count)
    .answered(ring, count)

/** What every device must still do in the end, and the words that say so. */
function epilogue(program: Program): readonly number[] {
  // The serial port as it was, so that the words arrive.
  program.out(1, 0x3fb, 3).out(1, 0x3fc, 0).out(1, 0x3f9, 0)
  askRng(program, bar(BYSTANDER), GOOD, 2)
  for (const slot of ABUSED_SLOTS) program.write(2, program.config(slot, 4), 0)
  for (const slot of ABUSED_SLOTS) program.write(4, program.config(slot, 0x10), bar(slot))
  for (const slot of VICTIMS)
    program
      .write(2, program.config(slot, 4), 6)
      .drive(bar(slot), GOOD + slot * 0x1_0000)
      .say(bar(slot) + reg.DEVICE_STATUS)
  askRng(program, bar(1), GOOD + 0x1_0000, 1)
  const ring = GOOD + 0x2_0000
  program.describe(ring, 0, ring + 3 * PAGE, 16, 1, 1).describe(ring, 1, ring + 4 * PAGE, 512, 3, 2)
  program
    .describe(ring, 2, ring + 5 * PAGE, 1, 2)
    .offer(bar(2), ring, 1)
    .answered(ring, 1)
  return [0x2_0000, ...VICTIMS.map(() => 15), 0x1_0000, 0x1_0000]
}

/** The word at DEVICE_STATUS holds the generation and the selected queue too. */
const plain = (words: readonly number[]): number[] =>
  words.map((word, i) => (i >= 1 && i <= VICTIMS.length ? word & 0xff : word))

const begin = (): Program => {
  const program = new Program()
  for (const slot of [...ABUSED_SLOTS, BYSTANDER]) program.write(2, program.config(slot, 4), 6)
  program.drive(bar(BYSTANDER), GOOD)
  return askRng(program, bar(BYSTANDER), GOOD, 1)
}

t.test('a good driver', { skip }, async (t) => {
  const program = begin()
  const wanted = epilogue(program)
  const { exit, words, log } = await run(program)
  t.same(exit, { reason: 'poweroff' })
  t.same(plain(words(wanted.length)), wanted)
  t.same(log, [])
})

t.test('a BAR that moves takes its doorbells along', { skip }, async (t) => {
  const program = begin()
  const ring = ABUSED
  const elsewhere = PCI_WINDOW + 0x100_0000
  askRng(program.drive(bar(1), ring), bar(1), ring, 1)
  program.write(4, program.config(1, 0x10), elsewhere)
  askRng(program, elsewhere, ring, 2)
  // Nothing rings at the old place, and the neighbour whose place it becomes is not woken by its own.
  program.write(2, bar(1) + NOTIFY_PAGE * PAGE, 0)
  program.write(4, program.config(1, 0x10), bar(1))
  askRng(program, bar(1), ring, 3)
  // With MSI-X off nothing but the doorbells reaches the device: those that move with it cost no exit.
  const { exit, words, accesses } = await run(program)
  t.same(exit, { reason: 'poweroff' })
  t.same(words(3), [0x1_0000, 0x2_0000, 0x3_0000])
  const registers = 2 * 18 + 1
  t.ok(
    accesses['pci-bar']! <= registers,
    `${accesses['pci-bar']} accesses to BARs: the old doorbell alone is one`,
  )
})

t.test('doorbells without end', { skip }, async (t) => {
  const program = begin()
  for (const slot of ABUSED_SLOTS) {
    program.drive(bar(slot), ABUSED + slot * 0x1_0000)
    for (const size of [1, 2, 4, 8] as const)
      for (const queue of [0, 1, 63])
        program.write(size, bar(slot) + NOTIFY_PAGE * PAGE + queue * 4, queue, 300)
  }
  const wanted = epilogue(program)
  const { exit, words } = await run(program)
  t.same(exit, { reason: 'poweroff' })
  t.same(plain(words(wanted.length)), wanted)
})

t.test('every register, at every offset and width', { skip }, async (t) => {
  const program = begin()
  for (const slot of ABUSED_SLOTS)
    for (const size of [1, 2, 4, 8] as const)
      for (const [start, length] of [
        [0, 64],
        [PAGE - 16, 32],
        [TABLE_PAGE * PAGE, 32],
        [3 * PAGE - 8, 24],
        [4 * PAGE - 8, 24],
        [NOTIFY_PAGE * PAGE - 8, 24],
        [8 * PAGE - 16, 16 - size],
      ] as const)
        for (let at = start; at < start + length; at++)
          program.read(size, bar(slot) + at).write(size, bar(slot) + at, (at * 0x0101_0101) >>> 0)
  const wanted = epilogue(program)
  const { exit, words } = await run(program)
  t.same(exit, { reason: 'poweroff' })
  t.same(plain(words(wanted.length)), wanted)
})

t.test('every port but those that end the machine', { skip }, async (t) => {
  const program = begin()
  for (let port = 0; port < 0x1_0000; port += port < 0x700 ? 1 : 0x151) {
    if (port >= 0x5fc && port <= 0x601) continue
    // The keyboard controller's reset, and the interrupt controllers' and timer's own states, which are KVM's.
    if (port === 0x64 || port < 0x70 || (port >= 0xa0 && port < 0xa2) || port === 0x4d0) continue
    for (const size of [1, 2, 4] as const) program.in(size, port).out(size, port, 0x5a5a_5a5a)
    program.outString(port, 0x41, 3)
  }
  const wanted = epilogue(program)
  const { exit, words } = await run(program)
  t.same(exit, { reason: 'poweroff' })
  t.same(plain(words(wanted.length)), wanted)
})

t.test('anything at all', { skip }, async (t) => {
  const slot = fc.constantFrom(...ABUSED_SLOTS)
  const width = fc.constantFrom<Width>(1, 2, 4, 8)
  const word = fc.oneof(
    fc.nat(16),
    fc.constantFrom(0xff, 0xffff, 0xffff_ffff, 0x8000, 0xc000, 11, 15),
    fc.nat(0xffff_ffff),
  )
  const ram = fc.integer({ min: ABUSED, max: ABUSED + ABUSED_SIZE - 16 })
  /** Where a BAR might be put: onto others, RAM, the ECAM, interrupt controllers, over the window's ends. */
  const place = fc.oneof(
    slot.map(bar),
    fc.constantFrom(
      ...[0, 0x10_0000, ABUSED, 0xbfff_8000, PCI_WINDOW + PCI_WINDOW_SIZE - 0x4000, ECAM, ECAM + 0x8000],
      ...[0xfec0_0000, 0xfee0_0000, 0xffff_8000, 0xffff_ffff],
    ),
    fc.nat(0x1fff).map((page) => PCI_WINDOW + 0x10_0000 + page * 0x8000),
  )
  type Act = (program: Program) => void
  const act: fc.Arbitrary<Act> = fc.oneof(
    // A register of the common configuration, or any other place in a BAR.
    fc
      .record({
        slot,
        at: fc.oneof(fc.nat(60), fc.nat(0x7ff8)),
        width,
        word,
        count: fc.constantFrom(1, 1, 1, 9),
      })
      .map(({ slot, at, width, word, count }): Act => (program) => {
        program.write(width, bar(slot) + at, word, count).read(width, bar(slot) + at)
      }),
    // A vector's message and mask, MSI-X on and off.
    fc
      .record({
        slot,
        at: fc.nat(18),
        word: fc.oneof(fc.constantFrom(0xfee0_0000, 0, 1), word),
        control: word,
      })
      .map(({ slot, at, word, control }): Act => (program) => {
        program.write(4, bar(slot) + TABLE_PAGE * PAGE + at * 4, word)
        for (let offset = 0x40; offset < 0xc0; offset += 4)
          program.write(2, program.config(slot, offset + 2), control)
      }),
    // Configuration space.
    fc.record({ slot, at: fc.nat(0xff), width, word }).map(({ slot, at, width, word }): Act => (program) => {
      program.write(width, program.config(slot, at), word).read(width, program.config(slot, at))
    }),
    fc
      .record({ slot, place, command: fc.constantFrom(0, 2, 6, 6) })
      .map(({ slot, place, command }): Act => (program) => {
        program.write(4, program.config(slot, 0x10), place).write(2, program.config(slot, 4), command)
        program.read(4, place % 0x1_0000_0000 > 0xffff_0000 ? PCI_WINDOW : Math.min(place, 0xfec0_0000))
      }),
    // Back to its place, and a proper start on rings that hold anything.
    fc
      .record({ slot, queue: fc.nat(2), ring: fc.nat(15), words: fc.array(fc.tuple(fc.nat(63), word)) })
      .map(({ slot, queue, ring, words }): Act => (program) => {
        const at = ABUSED + ring * 0x1000
        program.write(4, program.config(slot, 0x10), bar(slot)).write(2, program.config(slot, 4), 6)
        for (const [i, word] of words) program.write(4, at + i * 4, word)
        program.drive(bar(slot), at, queue)
      }),
    // Chains, more or less as they should be, and the doorbell.
    fc
      .record({
        slot,
        queue: fc.nat(2),
        ring: fc.nat(15),
        chain: fc.array(
          fc.record({ address: ram, length: fc.constantFrom(1, 16, 44, 512, 4096), flags: fc.nat(5) }),
          {
            minLength: 1,
            maxLength: 4,
          },
        ),
        count: fc.oneof(fc.nat(9), fc.nat(0xffff)),
        storm: fc.constantFrom(1, 1, 40),
      })
      .map(({ slot, queue, ring, chain, count, storm }): Act => (program) => {
        const at = ABUSED + ring * 0x1000
        chain.forEach(({ address, length, flags }, i) =>
          program.describe(at, i, address, length, flags, i + 1),
        )
        program.offer(bar(slot), at, count, queue)
        program.write(2, bar(slot) + NOTIFY_PAGE * PAGE + queue * 4, queue, storm)
      }),
    // Memory of nobody, ports of nobody, string and exchanging instructions.
    fc
      .record({ at: fc.integer({ min: PCI_WINDOW + 0x20_0000, max: 0xfebf_fff0 }), width, word })
      .map(({ at, width, word }): Act => (program) => {
        program.read(width, at).write(width, at, word).exchange(at, word)
      }),
    fc
      .record({
        slot,
        at: fc.nat(0x7f00),
        from: ram,
        count: fc.integer({ min: 1, max: 64 }),
        back: fc.boolean(),
      })
      .map(({ slot, at, from, count, back }): Act => (program) => {
        if (back) program.move(bar(slot) + at, from, count)
        else program.move(from, bar(slot) + at, count)
        program.exchange(bar(slot) + at, count)
      }),
    fc
      .record({
        port: fc.oneof(fc.integer({ min: 0x3f8, max: 0x3ff }), fc.integer({ min: 0x700, max: 0xffff })),
        word,
      })
      .map(({ port, word }): Act => (program) => {
        program
          .out(1, port, word)
          .out(4, port, word)
          .in(2, port)
          .outString(port, word & 0xff, 5)
      }),
  )
  const ends = new Map<string, number>()
  let complaints = 0
  await fc.assert(
    fc.asyncProperty(fc.array(act, { minLength: 30, maxLength: 120, size: 'max' }), async (acts) => {
      const program = begin()
      for (const each of acts) each(program)
      const wanted = epilogue(program)
      const { exit, words, log } = await run(program)
      ends.set(exit.reason, (ends.get(exit.reason) ?? 0) + 1)
      complaints += log.length
      const cause = exit.reason === 'poweroff' ? undefined : exit.detail
      if (exit.reason === 'poweroff') {
        if (JSON.stringify(plain(words(wanted.length))) !== JSON.stringify(wanted))
          throw new Error(
            `a device did not answer: ${words(wanted.length)
              .map((word) => word.toString(16))
              .join(' ')}`,
          )
      } else if (exit.reason === 'triple-fault') return
      // An interrupt that no processor should take, such as INIT, leaves it where KVM finds no instruction.
      else if (!cause?.startsWith('KVM internal error')) throw new Error(`${exit.reason}: ${cause}`)
    }),
    { numRuns: RUNS },
  )
  t.ok((ends.get('poweroff') ?? 0) > RUNS / 2, `it ended by ${JSON.stringify([...ends])}`)
  t.ok(complaints > 0, `${complaints} lines in the log`)
})
