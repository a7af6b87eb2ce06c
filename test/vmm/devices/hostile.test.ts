import fc from 'fast-check'
import t from 'tap'
import { PROT_NONE } from '@coracle/sys'
import {
  VRING_DESC_F_INDIRECT as INDIRECT,
  VRING_DESC_F_NEXT as NEXT,
  VRING_DESC_F_WRITE as WRITE,
} from 'vhost-user-ts'
import * as reg from '../../../src/vmm/virtio-pci/common.js'
import { noKvm } from '../../kvm/guest.js'
import { BASE, type DriverBuffer, type DriverQueue, GUARD, TestGuest } from '../../vhost-user-ts/driver.js'
import { VIOLATIONS } from '../../vhost-user-ts/violations.js'
import { Rig } from '../rig.js'
import { SUBJECTS, type Subject } from './subjects.js'

/*
 * Drivers that break the rules, against each device behind the real transport. What is forbidden to a driver is
 * listed in test/vhost-user-ts/violations.ts and shown on the queue itself beside it; here each device survives it:
 * it needs a reset and says why, its neighbour answers, and after the reset a good driver finds it as new.
 * The guest's memory lies between pages without any right, so an access outside it ends this process.
 */
const skip = noKvm()
const NEEDS_RESET = reg.DEVICE_NEEDS_RESET
const RUNS = 40
/** The same rings in every run, or others by FC_SEED: some make a device write over its own rings, for long. */
const SEED = Number(process.env['FC_SEED'] ?? 1)
t.setTimeout(600_000)

/** A subject in slot 1 and a neighbour of the same kind in slot 2. */
class Pair implements Disposable {
  readonly subject: Subject
  readonly neighbour: Subject
  readonly rig: Rig

  constructor(make: () => Subject, memory = 1 << 20) {
    this.subject = make()
    this.neighbour = make()
    this.rig = new Rig([this.subject.device, this.neighbour.device], new TestGuest(memory))
  }

  get status(): number {
    return this.rig.get(reg.DEVICE_STATUS, 1)
  }

  /** New memory, and a good driver's queues for the subject. */
  fresh(): DriverQueue[] {
    this.rig.set(reg.DEVICE_STATUS, 1, 0)
    this.rig.guest.clear()
    return this.rig.drive(0)
  }

  works(index: 0 | 1): boolean {
    const { rig } = this
    const subject = index === 0 ? this.subject : this.neighbour
    const queues = rig.drive(index)
    const good = subject.works(queues, (queue) => rig.ring(queue, index))
    rig.settle()
    return good && (rig.get(reg.DEVICE_STATUS, 1, index) & NEEDS_RESET) === 0
  }

  [Symbol.dispose](): void {
    this.rig[Symbol.dispose]()
    this.subject.close()
    this.neighbour.close()
  }
}

for (const [name, make] of Object.entries(SUBJECTS)) {
  t.test(`${name}: each broken rule stops the device, and nothing else`, { skip }, (t) => {
    using pair = new Pair(make)
    const { rig, subject } = pair
    for (const violation of VIOLATIONS) {
      // What the transport offers, this driver takes: the rule on indirect tables needs one that does not.
      if (violation.features !== undefined) continue
      const queues = pair.fresh()
      const before = rig.log.length
      violation.act(queues[subject.queue]!)
      rig.ring(subject.queue)
      rig.settle()
      t.equal(pair.status & NEEDS_RESET, NEEDS_RESET, violation.name)
      t.equal(rig.log.length, before + 1, 'it says why')
      t.match(rig.log.at(-1), new RegExp(`^${subject.device.name}: queue|^${subject.device.name}: chain`))
      t.ok(pair.works(1), 'its neighbour answers')
      t.ok(pair.works(0), 'as new after a reset')
    }
    t.end()
  })

  t.test(`${name}: rings that are none`, { skip }, (t) => {
    using pair = new Pair(make)
    const { rig, subject } = pair
    const end = BASE + rig.guest.size
    const bad: [number, 2 | 4, number][] = [
      ...[0, 3, 512, 32768, 0xffff].map((size): [number, 2, number] => [reg.QUEUE_SIZE, 2, size]),
      ...[BASE + 8, 0, end - 16, 0xffff_fff0].map((at): [number, 4, number] => [reg.QUEUE_DESC, 4, at]),
      ...[BASE + 1, 0, end - 2].map((at): [number, 4, number] => [reg.QUEUE_DRIVER, 4, at]),
      ...[BASE + 2, 0, end - 4].map((at): [number, 4, number] => [reg.QUEUE_DEVICE, 4, at]),
      [reg.QUEUE_DESC + 4, 4, 0xffff_ffff],
      [reg.QUEUE_DEVICE + 4, 4, 0x8000_0000],
    ]
    for (const [register, width, value] of bad) {
      rig.decode()
      rig.guest.clear()
      for (const status of [0, 1, 3]) rig.set(reg.DEVICE_STATUS, 1, status)
      rig.features(subject.device.features | (1n << 32n))
      rig.set(reg.DEVICE_STATUS, 1, 11)
      rig.set(reg.QUEUE_SELECT, 2, subject.queue)
      rig.set(reg.QUEUE_DESC, 4, BASE)
      rig.set(reg.QUEUE_DRIVER, 4, BASE + 0x1000)
      rig.set(reg.QUEUE_DEVICE, 4, BASE + 0x2000)
      rig.set(register, width, value)
      rig.set(reg.QUEUE_ENABLE, 2, 1)
      rig.set(reg.DEVICE_STATUS, 1, 15)
      t.equal(pair.status & NEEDS_RESET, NEEDS_RESET, `register ${register} = ${value}`)
      t.ok(pair.works(0), 'as new after a reset')
    }
    t.end()
  })

  t.test(`${name}: whatever its rings hold, now and later`, { skip }, (t) => {
    const size = 1 << 17
    using pair = new Pair(make, size)
    const { rig, subject } = pair
    const { memory } = rig.guest
    const address = fc.oneof(
      { weight: 12, arbitrary: fc.integer({ min: BASE, max: BASE + size - 1 }) },
      fc.integer({ min: BASE - 16, max: BASE + 16 }),
      fc.integer({ min: BASE + size - 64, max: BASE + size + 16 }),
      fc.maxSafeInteger().map(Math.abs),
    )
    const length = fc.oneof(
      { weight: 6, arbitrary: fc.nat(64) },
      { weight: 6, arbitrary: fc.constantFrom(0, 1, 4, 16, 44, 512, 4096, 32) },
      fc.nat(1 << 16),
      fc.nat(0xffff_ffff),
    )
    const descriptor = fc.record({
      at: fc.nat(15),
      address,
      length,
      flags: fc.oneof(
        { weight: 8, arbitrary: fc.constantFrom(0, NEXT, WRITE, NEXT | WRITE, INDIRECT) },
        fc.nat(0xffff),
      ),
      next: fc.oneof({ weight: 8, arbitrary: fc.nat(15) }, fc.nat(0xffff)),
    })
    /** The first bytes of a buffer: requests that the devices know, and noise. */
    const content = fc.oneof(
      fc.record({
        words: fc.tuple(fc.nat(14), fc.nat(3), fc.nat(130), fc.nat(1), fc.nat(2), fc.nat(0xffff_ffff)),
      }),
      fc.record({
        words: fc
          .tuple(fc.nat(80), fc.constantFrom(1024, 80, 9), fc.nat(300), fc.nat(8), fc.nat(3), fc.nat(70_000))
          .map(([from, to, length, operation, flags, credit]) => [
            ...[3, 0, 2, 0, from, to, length, 1 + operation * 0x1_0000, flags, credit, 0],
          ]),
      }),
    )
    /** What a driver might ask, more or less: readable buffers, then writable ones. */
    const request = fc.tuple(
      content.map(({ words }) => new Uint8Array(Uint32Array.from(words).buffer)),
      fc.array(
        fc.oneof(fc.nat(600), fc.constantFrom(1, 4, 44, 512, 4096), fc.uint8Array({ maxLength: 64 })),
        { maxLength: 3 },
      ),
      fc.constantFrom(1, 4, 44, 512, 513),
    )
    const step = fc.record({
      requests: fc.array(request, { maxLength: 3 }),
      queue: fc.oneof(fc.constant(subject.queue), fc.nat(subject.device.queueSizes.length - 1)),
      descriptors: fc.oneof(
        { weight: 4, arbitrary: fc.constant([]) },
        fc.array(descriptor, { maxLength: 6 }),
      ),
      contents: fc.array(fc.tuple(address, content), { maxLength: 3 }),
      heads: fc.oneof(
        { weight: 4, arbitrary: fc.constant<number[]>([]) },
        fc.array(fc.oneof({ weight: 9, arbitrary: fc.nat(15) }, fc.nat(0xffff)), { maxLength: 6 }),
      ),
      jump: fc.oneof({ weight: 19, arbitrary: fc.constant(undefined) }, fc.nat(0xffff)),
      then: fc.constantFrom('ring', 'ring', 'ring', 'ring both', 'nothing', 'reset', 'stir'),
    })
    let failures = 0
    let answers = 0
    fc.assert(
      fc.property(fc.array(step, { minLength: 1, maxLength: 8 }), (steps) => {
        let queues = pair.fresh()
        for (const { queue: index, requests, descriptors, contents, heads, jump, then } of steps) {
          const queue = queues[index]!
          for (const { at, address, length, flags, next } of descriptors)
            queue.describe(queue.descriptorTable, at, address, length, flags, next)
          for (const [at, { words }] of contents)
            words.forEach((word, i) => {
              if (memory.contains(at + i * 4, 4)) memory.writeU32(at + i * 4, word)
            })
          for (const [header, more, last] of requests) {
            const readable = more.filter((each) => typeof each !== 'number')
            const writable = more.filter((each) => typeof each === 'number')
            submit(queue, [header, ...readable, ...writable, last])
          }
          for (const head of heads) queue.offer(head)
          if (jump !== undefined) memory.writeU16(queue.availableRing + 2, jump)
          if (then.startsWith('ring')) rig.ring(index)
          if (then === 'ring both') queues.forEach((_, i) => rig.ring(i))
          if (then === 'stir') subject.stir?.()
          if (then === 'reset') {
            answers += used(queues)
            queues = pair.fresh()
          }
          rig.settle()
        }
        answers += used(queues)
        if ((pair.status & NEEDS_RESET) !== 0) failures++
        // One that still works goes on with what it was given, which may be to write over the neighbour's rings.
        else rig.set(reg.DEVICE_STATUS, 1, 0)
        // A good driver's rings begin empty.
        rig.guest.clear()
        if (!pair.works(1)) throw new Error('the neighbour does not answer')
        if (!pair.works(0)) throw new Error('no good driver gets it back')
      }),
      { numRuns: RUNS, seed: SEED, endOnFailure: true },
    )
    t.ok(failures > RUNS / 20 && answers > 0, `${failures} times it broke, ${answers} requests passed`)
    t.equal(rig.log.filter((line) => !line.startsWith(`${subject.device.name}: `)).length, 0)
    t.end()
  })

  t.test(
    `${name}: a reset with requests in flight leaves the memory alone (CVE-2026-45782)`,
    { skip },
    (t) => {
      using pair = new Pair(make)
      const { rig, subject } = pair
      const queues = pair.fresh()
      t.ok(
        subject.works(queues, (queue) => rig.ring(queue)),
        'it is in use',
      )
      queues.forEach((queue, i) => {
        while (submit(queue, [new Uint8Array(16), 32, 1]));
        rig.ring(i)
      })
      subject.stir?.()
      rig.set(reg.DEVICE_STATUS, 1, 0)
      // From here on each access to what was the guest's memory ends this process.
      const { mapping, size } = rig.guest
      mapping.overlay(GUARD, { length: size, prot: PROT_NONE })
      subject.stir?.()
      queues.forEach((_, i) => rig.ring(i))
      rig.settle()
      mapping.overlay(GUARD, { length: size })
      rig.guest.clear()
      t.ok(pair.works(0))
      t.end()
    },
  )
}

/** How many requests a device answered, by the index that the driver sees. */
function used(queues: readonly DriverQueue[]): number {
  return queues.reduce((sum, queue) => sum + queue.guest.memory.readU16(queue.usedRing + 2), 0)
}

/** @returns whether there was room for it */
function submit(queue: DriverQueue, buffers: readonly DriverBuffer[]): boolean {
  try {
    queue.submit(buffers)
    return true
  } catch (error) {
    if (error instanceof RangeError) return false
    throw error
  }
}
