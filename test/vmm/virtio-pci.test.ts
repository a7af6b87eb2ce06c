import { EPOLLIN, EventFd, Mapping } from '@coracle/sys'
import fc from 'fast-check'
import t from 'tap'
import { type DeviceContext, VirtioError, type VirtioDevice } from 'vhost-user-ts'
import { ECAM, PAGE, PCI_WINDOW } from '../../src/vmm/memory/layout.js'
import { NumberPool } from '../../src/vmm/memory/pools.js'
import * as reg from '../../src/vmm/virtio-pci/common.js'
import { VirtioPci } from '../../src/vmm/virtio-pci/transport.js'
import { noKvm } from '../kvm/guest.js'
import { BASE, TestGuest } from '../vhost-user-ts/driver.js'
import { Rig } from './rig.js'

const skip = noKvm()
const VERSION_1 = 1n << 32n
const RAM = 1 << 20

/** A device that notes what happens to it. */
class Probe implements VirtioDevice {
  readonly name: string
  readonly type = 4
  readonly queueSizes = [64, 16]
  readonly features = 0b101n
  readonly config = Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8)
  readonly calls: string[] = []
  context: DeviceContext | undefined
  onNotify: () => void = () => undefined
  constructor(name = 'probe') {
    this.name = name
  }
  writeConfig(offset: number, data: Uint8Array): void {
    this.config.set(data, offset)
    this.calls.push(`config ${offset}`)
  }
  activate(context: DeviceContext): void {
    this.context = context
    this.calls.push('activate')
  }
  notify(index: number): void {
    this.calls.push(`notify ${index}`)
    this.onNotify()
  }
  reset(): void {
    this.context = undefined
    this.calls.push('reset')
  }
}

/** A bus with probes for devices. */
class ProbeRig extends Rig<Probe> {
  constructor(count = 1) {
    super(
      Array.from({ length: count }, (_, i) => new Probe(`probe ${i}`)),
      new TestGuest(RAM),
    )
  }
}

t.test('the bus shows a host bridge, the devices and nothing else', { skip }, async (t) => {
  using rig = new ProbeRig(2)
  t.equal(rig.read(ECAM, 4), 0x0d57_8086)
  t.equal(rig.read(rig.config(0), 4), 0x1044_1af4)
  t.equal(rig.read(rig.config(0, 1), 4), 0x1044_1af4)
  t.equal(rig.read(rig.config(0, 2), 4), 0xffff_ffff)
  t.equal(rig.read(rig.config(8), 1), 1, 'revision of a modern device')
  rig.write(rig.config(0), 4, 0)
  t.equal(rig.read(rig.config(0), 4), 0x1044_1af4, 'identity cannot be written')
  rig.write(rig.config(4), 2, 0xffff)
  t.equal(rig.read(rig.config(4), 2), 0x406)
  rig.write(ECAM + 5 * PAGE, 4, 1)
  rig.write(rig.config(0, 20), 4, 1)
})

t.test('a BAR is sized, moved, and never put over another', { skip }, async (t) => {
  using rig = new ProbeRig(2)
  const [first, second] = [rig.bar(0), rig.bar(1)]
  t.not(first, second)
  rig.write(rig.config(0x10), 4, 0xffff_ffff)
  const size = ~(rig.read(rig.config(0x10), 4) & ~0xf) + 1
  t.equal(size, 8 * PAGE)
  rig.write(rig.config(0x10), 4, first)
  for (const index of [0, 1]) rig.decode(index)
  t.equal(rig.read(first + reg.NUM_QUEUES, 2), 2)
  const elsewhere = PCI_WINDOW + 0x10_0000
  rig.write(rig.config(0x10), 4, elsewhere)
  t.equal(rig.read(elsewhere + reg.NUM_QUEUES, 2), 2)
  t.equal(rig.read(first + reg.NUM_QUEUES, 2), 0xffff, 'nothing is left behind')

  rig.write(rig.config(0x10), 4, second)
  t.equal(rig.read(elsewhere + reg.NUM_QUEUES, 2), 0xffff)
  rig.write(second + reg.DEVICE_STATUS, 1, 1)
  t.equal(rig.read(second + reg.DEVICE_STATUS, 1), 1)
  rig.write(rig.config(0x10), 4, first)
  t.equal(rig.read(first + reg.DEVICE_STATUS, 1), 0, 'the one that was there answered')

  rig.write(rig.config(4, 1), 2, 0)
  t.equal(rig.read(second + reg.NUM_QUEUES, 2), 0xffff, 'no answer while decoding is off')
  rig.write(rig.config(0x10), 4, second)
  t.equal(rig.read(second + reg.DEVICE_STATUS, 1), 0, 'a place that was given up is free')
  rig.write(rig.config(0x10), 4, 0x1000_0000)
  rig.write(rig.config(0x10), 4, 0xf000_0000)
  rig.write(rig.config(0x10), 4, first)
  t.equal(rig.read(first + reg.NUM_QUEUES, 2), 2, 'back from outside the window')
})

t.test('a driver starts the device, and resets it', { skip }, async (t) => {
  using rig = new ProbeRig()
  rig.start()
  t.equal(rig.get(reg.DEVICE_STATUS, 1), 15)
  t.same(rig.device.calls, ['activate', 'notify 0'])
  t.equal(rig.device.context?.features, VERSION_1)
  t.equal(rig.device.context?.queues[0]?.size, 64)
  t.equal(rig.device.context?.queues[1], undefined)
  rig.set(reg.DEVICE_STATUS, 1, 0)
  t.equal(rig.get(reg.DEVICE_STATUS, 1), 0)
  t.equal(rig.device.calls.at(-1), 'reset')
  t.equal(rig.get(reg.QUEUE_ENABLE, 2), 0)
  t.equal(rig.get(reg.QUEUE_DESC, 4), 0)
  rig.start()
  t.equal(rig.device.calls.filter((call) => call === 'activate').length, 2)
})

t.test('status goes its way step by step', { skip }, async (t) => {
  using rig = new ProbeRig()
  rig.decode()
  const to = (value: number): number => {
    rig.set(reg.DEVICE_STATUS, 1, value)
    return rig.get(reg.DEVICE_STATUS, 1)
  }
  t.equal(to(4), 0, 'no DRIVER_OK from nothing')
  t.equal(to(2), 0, 'no DRIVER before ACKNOWLEDGE')
  t.equal(to(1), 1)
  t.equal(to(2), 1, 'bits are not taken back')
  t.equal(to(3), 3)
  t.equal(to(7), 3, 'no DRIVER_OK before FEATURES_OK')
  t.equal(to(11), 3, 'no FEATURES_OK without VIRTIO_F_VERSION_1')
  rig.features(VERSION_1 | (1n << 1n))
  t.equal(to(11), 3, 'nor with what was not offered')
  rig.features(VERSION_1 | 1n)
  t.equal(to(11), 11)
  rig.features(0n)
  rig.set(reg.DRIVER_FEATURE_SELECT, 4, 0)
  t.equal(rig.get(reg.DRIVER_FEATURE, 4), 1, 'features stay once they are settled')
  t.equal(to(3), 11)
  t.equal(to(15), 15)
  t.equal(to(143), 143, 'FAILED')
  t.equal(to(0), 0)
  rig.set(reg.DEVICE_STATUS, 2, 1)
  t.equal(rig.get(reg.DEVICE_STATUS, 1), 0, 'a write of another width is none')
})

t.test('features are shown by halves', { skip }, async (t) => {
  using rig = new ProbeRig()
  rig.decode()
  t.equal(rig.get(reg.DEVICE_FEATURE, 4), 0b101 | (1 << 28) | (1 << 29))
  rig.set(reg.DEVICE_FEATURE_SELECT, 4, 1)
  t.equal(rig.get(reg.DEVICE_FEATURE, 4), 1)
  for (const select of [2, 0xffff_ffff]) {
    rig.set(reg.DEVICE_FEATURE_SELECT, 4, select)
    t.equal(rig.get(reg.DEVICE_FEATURE, 4), 0)
  }
})

t.test('queue registers are written between FEATURES_OK and DRIVER_OK alone', { skip }, async (t) => {
  using rig = new ProbeRig()
  rig.decode()
  const tries = (): number[] => {
    rig.set(reg.QUEUE_SIZE, 2, 8)
    rig.set(reg.QUEUE_DESC, 4, 0x5000)
    return [rig.get(reg.QUEUE_SIZE, 2), rig.get(reg.QUEUE_DESC, 4)]
  }
  t.same(tries(), [64, 0])
  rig.set(reg.DEVICE_STATUS, 1, 1)
  rig.set(reg.DEVICE_STATUS, 1, 3)
  rig.features(VERSION_1)
  t.same(tries(), [64, 0])
  rig.set(reg.DEVICE_STATUS, 1, 11)
  t.same(tries(), [8, 0x5000])
  rig.set(reg.QUEUE_DESC + 4, 4, 1)
  t.equal(rig.get(reg.QUEUE_DESC, 4), 0x5000)
  t.equal(rig.get(reg.QUEUE_DESC + 4, 4), 1)
  rig.set(reg.QUEUE_DESC + 4, 4, 0)

  // A queue that is not there (Cloud Hypervisor #7918).
  rig.set(reg.QUEUE_SELECT, 2, 2)
  for (const select of [2, 7, 0xffff]) {
    rig.set(reg.QUEUE_SELECT, 2, select)
    t.same(tries(), [0, 0])
    rig.set(reg.QUEUE_ENABLE, 2, 1)
    rig.set(reg.QUEUE_MSIX_VECTOR, 2, 0)
    t.equal(rig.get(reg.QUEUE_ENABLE, 2), 0)
    t.equal(rig.get(reg.QUEUE_MSIX_VECTOR, 2), 0xffff)
  }
  rig.set(reg.QUEUE_SELECT, 2, 1)
  t.equal(rig.get(reg.QUEUE_SIZE, 2), 16)
  t.equal(rig.get(reg.QUEUE_NOTIFY_OFF, 2), 1)
  rig.set(reg.QUEUE_SELECT, 2, 0)
  rig.set(reg.QUEUE_ENABLE, 2, 1)
  t.same(tries(), [8, 0x5000])
  rig.set(reg.QUEUE_SIZE, 2, 4)
  t.equal(rig.get(reg.QUEUE_SIZE, 2), 8, 'not while it is enabled')
  rig.set(reg.QUEUE_ENABLE, 2, 0)
  t.equal(rig.get(reg.QUEUE_ENABLE, 2), 1)
})

t.test('a vector beyond the table is none', { skip }, async (t) => {
  // Firecracker #5353
  using rig = new ProbeRig()
  rig.decode()
  for (const [vector, wanted] of [
    [2, 2],
    [3, 0xffff],
    [0xfffe, 0xffff],
  ] as const) {
    rig.set(reg.CONFIG_MSIX_VECTOR, 2, vector)
    t.equal(rig.get(reg.CONFIG_MSIX_VECTOR, 2), wanted)
  }
})

t.test('a queue that breaks the rules stops its device, and no other', { skip }, async (t) => {
  using rig = new ProbeRig(2)
  rig.start(BASE + RAM - 0x1000)
  t.equal(rig.get(reg.DEVICE_STATUS, 1), 15 | 64)
  t.same(rig.device.calls, [], 'it was never started')
  t.match(rig.log, [/^probe 0: /])
  rig.set(reg.DEVICE_STATUS, 1, 0)
  t.equal(rig.get(reg.DEVICE_STATUS, 1), 0)
  rig.start()
  t.equal(rig.get(reg.DEVICE_STATUS, 1), 15)

  rig.device.onNotify = () => {
    throw new VirtioError('DESCRIPTOR_LOOP', 'longer than the queue')
  }
  const notify = rig.bar() + rig.capability(2).offset
  rig.write(notify, 2, 0)
  t.equal(rig.get(reg.DEVICE_STATUS, 1), 15 | 64)
  t.equal(rig.device.calls.at(-1), 'reset')
  rig.write(notify, 2, 0)
  t.equal(rig.device.calls.at(-1), 'reset', 'it stays down')
  rig.decode(1)
  t.equal(rig.read(rig.bar(1) + reg.NUM_QUEUES, 2), 2)
  t.equal(rig.log.length, 2)
})

t.test('configuration is read, written, and its generation counts', { skip }, async (t) => {
  using rig = new ProbeRig()
  rig.start()
  const at = rig.bar() + rig.capability(4).offset
  t.equal(rig.capability(4).length, 8)
  t.equal(rig.read(at, 4), 0x0403_0201)
  rig.write(at + 4, 4, 0x0d0c_0b0a)
  t.equal(rig.read(at + 4, 4), 0x0d0c_0b0a)
  rig.write(at + 6, 4, 0)
  t.same(rig.device.calls.at(-1), 'config 4', 'a write across the end is none')
  const before = rig.get(reg.CONFIG_GENERATION, 1)
  rig.device.config[0] = 9
  rig.device.context?.configChanged()
  t.equal(rig.read(at, 1), 9)
  t.not(rig.get(reg.CONFIG_GENERATION, 1), before)
  const isr = rig.bar() + rig.capability(3).offset
  t.equal(rig.read(isr, 1), 2, 'without MSI-X the status says why')
  t.equal(rig.read(isr, 1), 0, 'and reading it clears it')
})

t.test('the window in configuration space reaches the registers', { skip }, async (t) => {
  using rig = new ProbeRig()
  rig.decode()
  const { at } = rig.capability(5)
  const aim = (offset: number, length: number): void => {
    rig.write(rig.config(at + 4), 1, 0)
    rig.write(rig.config(at + 8), 4, offset)
    rig.write(rig.config(at + 12), 4, length)
  }
  aim(reg.NUM_QUEUES, 2)
  t.equal(rig.read(rig.config(at + 16), 2), 2)
  aim(reg.DEVICE_STATUS, 1)
  rig.write(rig.config(at + 16), 1, 1)
  t.equal(rig.get(reg.DEVICE_STATUS, 1), 1)
  t.equal(rig.read(rig.config(at + 16), 1), 1)
  for (const [offset, length] of [
    [0xffff_fff0, 4],
    [0, 3],
    [1, 4],
    [8 * PAGE, 4],
  ] as const) {
    aim(offset, length)
    rig.write(rig.config(at + 16), 4, 0xffff_ffff)
  }
})

t.test('vectors reach KVM when the driver opens them', { skip }, async (t) => {
  using rig = new ProbeRig()
  rig.start()
  rig.set(reg.DEVICE_STATUS, 1, 0)
  const msix = ((): number => {
    for (let at = rig.read(rig.config(0x34), 1); ; at = rig.read(rig.config(at + 1), 1))
      if (rig.read(rig.config(at), 1) === 0x11) return at
  })()
  t.equal(rig.read(rig.config(msix + 2), 2), 2, 'three vectors')
  const table = rig.bar() + (rig.read(rig.config(msix + 4), 4) & ~7)
  const pending = rig.bar() + (rig.read(rig.config(msix + 8), 4) & ~7)
  t.equal(rig.read(table + 12, 4), 1, 'masked at first')
  rig.write(rig.config(msix + 2), 2, 0xc000)
  for (const [i, word] of [0xfee0_0000, 0, 0x4041].entries()) rig.write(table + 16 + i * 4, 4, word)
  t.equal(rig.read(table + 24, 4), 0x4041)
  rig.set(reg.DEVICE_STATUS, 1, 1)
  rig.set(reg.DEVICE_STATUS, 1, 3)
  rig.features(VERSION_1)
  rig.set(reg.DEVICE_STATUS, 1, 11)
  rig.set(reg.QUEUE_MSIX_VECTOR, 2, 1)
  rig.set(reg.QUEUE_DESC, 4, BASE)
  rig.set(reg.QUEUE_DRIVER, 4, BASE + 0x1000)
  rig.set(reg.QUEUE_DEVICE, 4, BASE + 0x2000)
  rig.set(reg.QUEUE_ENABLE, 2, 1)
  rig.set(reg.DEVICE_STATUS, 1, 15)

  rig.device.context?.interrupt(0)
  t.equal(rig.read(pending, 1), 2, 'masked: it waits')
  rig.write(rig.config(msix + 2), 2, 0x8000)
  t.equal(rig.read(pending, 1), 2, 'the vector itself is masked still')
  rig.write(table + 28, 4, 0)
  t.equal(rig.read(pending, 1), 0, 'delivered by KVM')
  rig.device.context?.interrupt(0)
  t.equal(rig.read(pending, 1), 0)
  rig.write(table + 24, 4, 0x4042)
  rig.write(rig.config(msix + 2), 2, 0xc000)
  rig.device.context?.interrupt(0)
  t.equal(rig.read(pending, 1), 2, 'all masked')
  rig.write(rig.config(msix + 2), 2, 0)
  for (const [offset, size] of [
    [1, 1],
    [2, 2],
    [3 * 16, 4],
    [2, 4],
  ] as const)
    rig.write(table + offset, size, 0xff)
  t.equal(rig.read(table, 4), 0, 'only aligned words within the table')
})

t.test('a doorbell wakes the loop', { skip }, async (t) => {
  using rig = new ProbeRig()
  rig.start()
  using other = EventFd.create()
  rig.loop.add(other.fd, EPOLLIN, () => other.drain())
  rig.device.calls.length = 0
  rig.write(rig.bar() + rig.capability(2).offset, 4, 0)
  t.same(rig.device.calls, ['notify 0'], 'one of another width than the eventfd takes')
  rig.write(rig.bar() + rig.capability(2).offset + 4, 2, 1)
  t.same(rig.device.calls, ['notify 0'], 'a queue that is not enabled has none')
  rig.loop.remove(other.fd)
})

t.test('a function goes, however its driver took it, and all of it is free again', { skip }, async (t) => {
  using rig = new ProbeRig(2)
  rig.start()
  const [first, second] = rig.devices
  const bar = rig.bar()
  const bell = bar + rig.capability(2).offset
  using stranger = EventFd.create()
  const hang = (): Disposable => rig.vm.ioeventfd(stranger, { space: 'mmio', address: bell, length: 2 })
  t.throws(hang, { code: 'KVM_REFUSED' }, 'its doorbell is there')
  const slot = rig.transports[0]!.slot
  rig.transports.shift()!.close()
  t.equal(first!.calls.at(-1), 'reset')
  t.equal(rig.read(rig.config(0), 4), 0xffff_ffff)
  t.equal(rig.read(rig.config(0xffc), 4), 0xffff_ffff)
  t.equal(rig.read(bar + reg.NUM_QUEUES, 2), 0xffff)
  rig.write(bar + reg.DEVICE_STATUS, 1, 1)
  rig.write(rig.config(4), 2, 6)
  t.equal(rig.read(rig.config(4), 2), 0xffff, 'nobody takes a write')
  hang()[Symbol.dispose]()
  t.equal(rig.read(rig.config(0, 1), 4), 0x1044_1af4, 'its neighbour stays')

  // As often as one likes: slot, BAR, interrupts, memory slot and doorbells are used again.
  for (let i = 0; i < 40; i++) {
    const next = new VirtioPci(first!, rig.host)
    t.equal(next.slot, slot)
    t.equal(rig.bar(), bar)
    rig.start()
    t.equal(rig.get(reg.DEVICE_STATUS, 1), 15)
    next.close()
  }
  t.equal(rig.host.gsis.take() < 24 + 3 * 3, true, 'interrupt numbers do not run out')
  rig.write(rig.config(4, 1), 2, 6)
  t.equal(rig.read(rig.bar(1) + reg.NUM_QUEUES, 2), 2)
  t.same(second!.calls, [])
})

t.test('a bus, a window and memory slots that are full refuse a function whole', { skip }, async (t) => {
  using rig = new ProbeRig()
  const host = { ...rig.host, memorySlots: new NumberPool(100, 103, 'memory slots') }
  const more = [1, 2, 3].map(() => new VirtioPci(new Probe(), host))
  if (rig.readOnly) t.throws(() => new VirtioPci(new Probe(), host), { code: 'KVM_REFUSED' })
  t.equal(rig.read(rig.config(0, 4), 4), 0xffff_ffff, 'nothing of it is left')
  const others = Array.from({ length: 27 }, () =>
    rig.bus.add({ vendor: 1, device: 1, revision: 0, classCode: 0 }),
  )
  t.equal(others.at(-1)!.slot, 31)
  t.throws(() => new VirtioPci(new Probe(), rig.host), { code: 'CONFLICT', message: /31 devices/ })
  for (const { slot } of others) rig.bus.remove(slot)
  const huge = {
    index: 0,
    size: 0x1000_0000,
    place: () => undefined,
    read: () => undefined,
    write: () => undefined,
  }
  const { slot, function: target } = rig.bus.add({ vendor: 1, device: 1, revision: 0, classCode: 0 })
  rig.bus.addBar(target, huge)
  t.throws(() => rig.bus.addBar(target, { ...huge, index: 1 }), { code: 'CONFLICT', message: /PCI window/ })
  rig.bus.remove(slot)
  for (const each of more) each.close()
})

t.test('memory that is taken away stops who has rings there, and nobody else', { skip }, async (t) => {
  using rig = new ProbeRig(2)
  using extra = Mapping.create({ length: RAM })
  const memory = rig.host.memory
  const region = { guestAddress: 4 * RAM, size: RAM, mapping: extra, mappingOffset: 0 }
  memory.add(region)
  t.throws(() => memory.add(region), { code: 'MEMORY_LAYOUT' })
  rig.start(4 * RAM)
  t.equal(rig.get(reg.DEVICE_STATUS, 1), 15)
  for (const each of rig.transports) each.memoryLeaves(region.guestAddress, region.size)
  memory.remove(region)
  t.equal(rig.get(reg.DEVICE_STATUS, 1), 15 | reg.DEVICE_NEEDS_RESET)
  t.equal(rig.device.calls.at(-1), 'reset')
  t.match(rig.log, [/taken away/])
  t.notOk(memory.contains(region.guestAddress, 1))
  rig.set(reg.DEVICE_STATUS, 1, 0)
  rig.start(4 * RAM)
  t.equal(rig.get(reg.DEVICE_STATUS, 1), 15 | reg.DEVICE_NEEDS_RESET, 'no ring where nothing is')
  rig.set(reg.DEVICE_STATUS, 1, 0)
  rig.start()
  t.equal(rig.get(reg.DEVICE_STATUS, 1), 15)
})

t.test('no sequence of accesses brings anything but the device down', { skip }, async (t) => {
  const access = fc.record({
    space: fc.constantFrom('config', 'bar'),
    offset: fc.oneof(fc.nat(0xff), fc.nat(0x7fff), fc.constantFrom(0x14, 0x16, 0x18, 0x1c, 0x20, 0x28, 0x30)),
    size: fc.constantFrom(1 as const, 2 as const, 4 as const),
    value: fc.oneof(
      fc.nat(0xff),
      fc.integer({ min: 0, max: 0xffff_ffff }),
      fc.constantFrom(1, 3, 11, 15, 0x1000),
    ),
    write: fc.boolean(),
  })
  fc.assert(
    fc.property(fc.array(access, { maxLength: 80 }), (accesses) => {
      using rig = new ProbeRig()
      rig.decode()
      for (const { space, offset, size, value, write } of accesses) {
        // Its own BAR and command are left alone, so that the accesses arrive.
        if (space === 'config' && offset < 0x28) continue
        const address = (space === 'config' ? rig.config(0) : rig.bar()) + offset
        if (write) rig.write(address, size, value)
        else rig.read(address, size)
      }
      rig.set(reg.DEVICE_STATUS, 1, 0)
      rig.start()
      return rig.get(reg.DEVICE_STATUS, 1) === 15
    }),
    { numRuns: 60 },
  )
  t.pass('it starts afresh after each')
})
