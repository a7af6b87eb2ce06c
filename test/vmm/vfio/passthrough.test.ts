import { Epoll, Mapping } from '@coracle/sys'
import fc from 'fast-check'
import t from 'tap'
import { CoracleError } from '../../../src/errors.js'
import { Kvm } from '../../../src/kvm/index.js'
import {
  ECAM,
  ECAM_SIZE,
  PAGE,
  PCI_WINDOW,
  PCI_WINDOW64,
  PCI_WINDOW64_SIZE,
} from '../../../src/vmm/memory/layout.js'
import { NumberPool } from '../../../src/vmm/memory/pools.js'
import { PciBus } from '../../../src/vmm/pci/bus.js'
import { GsiAllocator } from '../../../src/vmm/pci/msix.js'
import { mappedAreas } from '../../../src/vmm/vfio/bar.js'
import { checkMsix, readCapabilities } from '../../../src/vmm/vfio/capabilities.js'
import { VfioContainer } from '../../../src/vmm/vfio/container.js'
import { VfioPci } from '../../../src/vmm/vfio/passthrough.js'
import { noKvm } from '../../kvm/guest.js'
import { FakeFunction, virtualFunctionConfig } from './fake-function.js'

const skip = noKvm()
const RAM = 1 << 20
const SLOT = 100
const CONFIG = ECAM + 8 * PAGE
const MEMORY_MASTER = 6

/** A bus with one passed-through function; the VM has no processor, accesses come from the test. */
class Rig {
  readonly kvm = Kvm.open()
  readonly vm = this.kvm.createVm()
  readonly loop = new Epoll()
  readonly ram = Mapping.create({ length: RAM })
  readonly pages = Mapping.create({ length: ECAM_SIZE })
  readonly bus = new PciBus(this.pages, 0)
  readonly lost: string[] = []
  readonly memorySlots = new NumberPool(SLOT, SLOT + 16, 'memory slots')
  readonly device: VfioPci
  readonly #view = new DataView(new ArrayBuffer(8))

  constructor(readonly host = new FakeFunction()) {
    this.vm.createIrqchip()
    this.vm.setMemory(0, { guestAddress: 0, size: RAM, mapping: this.ram, mappingOffset: 0 })
    this.device = new VfioPci(host, {
      vm: this.vm,
      bus: this.bus,
      gsis: new GsiAllocator(),
      loop: this.loop,
      memorySlots: this.memorySlots,
      log: () => undefined,
      fail: (reason) => this.lost.push(reason),
    })
  }

  write(address: number, size: 1 | 2 | 4 | 8, value: number): void {
    this.#view.setBigUint64(0, BigInt(value), true)
    this.bus.access(address, size, true, this.#view, 0)
  }

  read(address: number, size: 1 | 2 | 4 | 8): number {
    this.#view.setBigUint64(0, 0n, true)
    this.bus.access(address, size, false, this.#view, 0)
    return Number(this.#view.getBigUint64(0, true))
  }

  config(at: number, size: 1 | 2 | 4 = 4): number {
    return this.read(CONFIG + at, size)
  }

  /** The address that a 64-bit BAR has. */
  bar(index: number): number {
    const at = 0x10 + index * 4
    return this.config(at + 4) * 2 ** 32 + this.config(at) - (this.config(at) & 0xf)
  }

  moveBar(index: number, address: number): void {
    this.write(CONFIG + 0x10 + index * 4, 4, address % 2 ** 32)
    this.write(CONFIG + 0x14 + index * 4, 4, Math.floor(address / 2 ** 32))
  }

  enable(): this {
    this.write(CONFIG + 4, 2, MEMORY_MASTER)
    return this
  }

  /** Whether a memory slot of the guest's is at a page: another one over it is refused then. */
  isMapped(address: number): boolean {
    try {
      this.vm.setMemory(99, { guestAddress: address, size: PAGE, mapping: this.ram, mappingOffset: 0 })
    } catch (error) {
      if (error instanceof CoracleError && error.code === 'KVM_REFUSED') return true
      throw error
    }
    this.vm.removeMemory(99)
    return false
  }

  [Symbol.dispose](): void {
    this.device.close()
    this.loop.close()
    this.vm.close()
    this.kvm.close()
    this.ram.unmap()
    this.pages.unmap()
  }
}

t.test('the guest sees who the device is, and only what it may of its capabilities', { skip }, async (t) => {
  using rig = new Rig()
  t.equal(rig.config(0), 0x10ca8086)
  t.equal(rig.config(8), 0x02000001)
  t.equal(rig.config(0x2c), 0x11001af4)
  const found = new Map<number, number>()
  for (let at = rig.config(0x34, 1); at !== 0; at = rig.config(at + 1, 1)) found.set(rig.config(at, 1), at)
  t.same(Object.fromEntries(found), { 0x11: 0x70, 0x09: 0x90, 0x10: 0xa0 }, 'at their own offsets')
  t.equal(rig.config(0x94), 0x05040302, "a vendor's own is copied")
  t.equal(rig.config(0xa2, 2), 0x92, 'an endpoint inside the root complex')
  t.equal(rig.config(0xac), 0, 'without a link')
  t.equal(rig.config(0x100), 0x00010003, 'the serial number is the one extended capability')
  t.equal(rig.config(0x104), 0x44556677)
  t.same(rig.host.calls, ['reset'], 'reset before the guest has it')
  t.same(rig.host.commands, [0x402], 'memory decoding on, INTx off, no bus mastering')
})

t.test('BARs have their size, and are memory but for the pages of MSI-X', { skip }, async (t) => {
  using rig = new Rig()
  t.equal(rig.bar(0), PCI_WINDOW64)
  t.equal(rig.config(0x10) & 0xf, 0xc, '64 bits, prefetchable')
  rig.moveBar(0, 2 ** 64 - 2 ** 12)
  t.equal(rig.config(0x10), 0xffffc00c)
  t.equal(rig.config(0x14), 0xffffffff)
  const [first, second] = [PCI_WINDOW64 + 0x10_0000, rig.bar(3)]
  rig.moveBar(0, first)
  t.notOk(rig.isMapped(first), 'nothing is there while decoding is off')
  rig.enable()
  for (let page = 0; page < 4; page++) t.ok(rig.isMapped(first + page * PAGE), `page ${page} of BAR 0`)
  t.same(
    [0, 1, 2, 3].map((page) => rig.isMapped(second + page * PAGE)),
    [false, true, false, true],
    'the table and the pending bits are trapped',
  )
  t.equal(rig.host.commands.at(-1), 0x406, 'bus mastering reaches the device')
  rig.write(CONFIG + 4, 2, 0)
  t.equal(rig.host.commands.at(-1), 0x402, 'decoding stays on for the host')
})

t.test('a BAR goes nowhere but into free places of the windows', { skip }, async (t) => {
  using rig = new Rig()
  rig.enable()
  const [first, second] = [rig.bar(0), rig.bar(3)]
  for (const bad of [0, RAM - 16384, ECAM, second, PCI_WINDOW64 + PCI_WINDOW64_SIZE, 2 ** 63]) {
    rig.moveBar(0, bad)
    t.notOk(rig.isMapped(first), `${bad.toString(16)}: it has left its place`)
    t.ok(rig.isMapped(second + PAGE), 'and the other BAR stays')
  }
  rig.moveBar(0, PCI_WINDOW + 0x10_0000)
  t.ok(rig.isMapped(PCI_WINDOW + 0x10_0000), 'the 32-bit window will do')
  rig.moveBar(0, first)
  t.ok(rig.isMapped(first))
})

t.test('the table is ours, what lies beside it is the device’s', { skip }, async (t) => {
  using rig = new Rig()
  rig.enable()
  const bar = rig.bar(3)
  rig.write(bar, 4, 0xfee0_0000)
  rig.write(bar + 8, 8, 0x4041)
  t.equal(rig.read(bar, 4), 0xfee0_0000)
  t.equal(rig.read(bar + 8, 4), 0x4041)
  rig.write(bar + 44, 8, 1)
  t.same(rig.host.written, [], 'an access half in the table is none')
  rig.write(bar + 64, 4, 0x1234)
  t.same(rig.host.written, [{ index: 3, offset: 64, size: 4 }])
  t.equal(rig.read(bar + 64, 4), 0x1234)
  t.equal(rig.read(bar + 16380, 8), 2 ** 64 - 1, 'beyond the end there is nothing')
})

t.test('vectors go from the device to KVM, and wait while they are masked', { skip }, async (t) => {
  using rig = new Rig()
  rig.enable()
  const table = rig.bar(3)
  const pending = table + 0x2000
  for (let i = 0; i < 3; i++) {
    rig.write(table + i * 16, 8, 0xfee0_0000)
    rig.write(table + i * 16 + 8, 4, 0x40 + i)
  }
  t.same(rig.host.events, [], 'none before the guest wants them')
  rig.write(CONFIG + 0x72, 2, 0x8000)
  t.equal(rig.host.events.length, 3)
  rig.host.events[1]!.signal()
  t.equal(rig.read(pending, 8), 0b10, 'a masked vector is pending')
  t.equal(rig.read(pending, 8), 0b10, 'until it is taken')
  rig.write(table + 16 + 12, 4, 0)
  t.equal(rig.read(pending, 8), 0)
  t.notOk(rig.host.events[1]!.drain(), 'KVM took the signal')
  rig.write(CONFIG + 0x72, 2, 0xc000)
  rig.host.events[1]!.signal()
  t.equal(rig.read(pending, 8), 0b10, 'the mask of the function counts too')
  rig.write(CONFIG + 0x72, 2, 0)
  t.same(rig.host.events, [], 'given back when MSI-X goes off')
})

t.test('a function-level reset reaches the device, and puts ours back', { skip }, async (t) => {
  using rig = new Rig()
  rig.enable()
  rig.write(CONFIG + 0x72, 2, 0x8000)
  rig.write(CONFIG + 0xa8, 2, 0x2810)
  t.same(rig.host.calls, ['reset', 'vectors 3'], 'other bits are no reset')
  t.equal(rig.config(0xa8, 2), 0x2810)
  rig.write(CONFIG + 0xa8, 2, 0xa810)
  t.same(rig.host.calls, ['reset', 'vectors 3', 'vectors 0', 'reset'])
  t.equal(rig.host.commands.at(-1), 0x402)
  t.equal(rig.config(0x72, 2), 2)
  t.equal(rig.config(4, 2), 0)
  t.equal(rig.bar(0), 0)
  t.equal(rig.config(0xa8, 2), 0x2810)
})

t.test('at the end the device is quiet, reset and given back', { skip }, async (t) => {
  const rig = new Rig()
  rig.enable()
  rig.write(CONFIG + 0x72, 2, 0x8000)
  const mapped = rig.bar(0)
  rig.device.close()
  t.same(rig.host.calls.slice(-3), ['vectors 0', 'reset', 'close'])
  t.equal(rig.host.commands.at(-1), 0)
  t.notOk(rig.isMapped(mapped))
  for (let i = 0; i < 16; i++) rig.memorySlots.take()
  t.equal(rig.config(0), 0xffff_ffff, 'the slot is empty, and all of its memory slots are free')
  rig.vm.close()
  rig.kvm.close()
})

t.test('a device that fails or is taken away says so', { skip }, async (t) => {
  using rig = new Rig()
  rig.host.failed!.signal()
  rig.loop.wait(0)
  rig.host.wanted!.signal()
  rig.loop.wait(0)
  t.match(rig.lost, [/0000:01:10.0 reported an error/, /host takes its device 0000:01:10.0 away/])
  rig.host.setVectors = () => {
    throw new Error('ENODEV')
  }
  rig.write(CONFIG + 0x72, 2, 0x8000)
  t.match(rig.lost.at(-1), /0000:01:10.0 fails \(set up interrupts/)
})

t.test('small BARs, ports and BARs that cannot be mapped', { skip }, async (t) => {
  const config = virtualFunctionConfig()
  const view = new DataView(config.buffer)
  view.setUint32(0x10, 0, true)
  view.setUint32(0x14, 1, true)
  using rig = new Rig(new FakeFunction(config, [64, 32, 0, 16384, 0, 0]))
  rig.enable()
  t.equal(rig.config(0x10), PCI_WINDOW, 'a 32-bit BAR in its window, a page of it')
  t.equal(rig.config(0x14), 0, 'no ports')
  rig.write(PCI_WINDOW + 60, 4, 7)
  t.equal(rig.read(PCI_WINDOW + 60, 4), 7)
  rig.write(PCI_WINDOW + 64, 4, 7)
  t.same(rig.host.written, [{ index: 0, offset: 60, size: 4 }], 'nothing reaches beyond its end')
  t.equal(rig.read(PCI_WINDOW + 62, 4), 0xffff_ffff)
})

t.test('devices that cannot be used are refused by name', { skip }, async (t) => {
  const refused = (change: (view: DataView) => void, message: RegExp): void => {
    const config = virtualFunctionConfig()
    change(new DataView(config.buffer))
    t.throws(() => new Rig(new FakeFunction(config)), { code: 'DEVICE_UNUSABLE', message })
  }
  refused((view) => view.setUint8(0x70, 0), /has no MSI-X/)
  refused((view) => view.setUint32(0x74, 0x4003, true), /outside its BARs/)
  refused((view) => view.setUint32(0x78, 0x1, true), /outside its BARs/)
  refused((view) => view.setUint8(0x06, 0), /has no MSI-X/)
})

t.test('a host without VFIO is told so', { skip }, async (t) => {
  using kvm = Kvm.open()
  using vm = kvm.createVm()
  t.throws(() => new VfioContainer(vm, [], '/nonexistent/vfio'), {
    code: 'VFIO_UNAVAILABLE',
    message: /modprobe vfio-pci/,
  })
})

t.test('no configuration space brings the reader down', async (t) => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 256, maxLength: 4096 }),
      fc.array(fc.tuple(fc.integer({ min: 0x34, max: 0xff }), fc.constantFrom(0x11, 0x10, 9, 0x40, 0xf8))),
      (config, changes) => {
        config[6] = 0x10
        for (const [at, value] of changes) config[at] = value
        const { shown, msix, extended } = readCapabilities(config)
        for (const { at, body } of shown)
          if (at < 0x40 || at + 2 + body.length > 0x100) throw new Error(`${at}: ${body.length}`)
        if (extended.length !== 0 && extended.length !== 12) throw new Error('extended')
        try {
          const place = checkMsix('x', msix, [{ size: 16384 }])
          if (place.table + place.count * 16 > 16384) throw new Error('a table outside')
        } catch (error) {
          if (!(error instanceof CoracleError)) throw error
        }
      },
    ),
    { numRuns: 500 },
  )
  t.pass('500 of them')
})

t.test('what is mapped is whole pages without a trap', async (t) => {
  const area = fc.record({ offset: fc.nat(40000), size: fc.integer({ min: 1, max: 40000 }) })
  fc.assert(
    fc.property(fc.array(area, { maxLength: 3 }), fc.array(area, { maxLength: 3 }), (mappable, traps) => {
      const size = 32768
      const inAny = (areas: readonly { offset: number; size: number }[], at: number): boolean =>
        areas.some((one) => at >= one.offset && at < one.offset + one.size)
      const mapped = mappedAreas({ size, mappable }, traps)
      for (const { offset, size: length } of mapped) {
        if (offset % PAGE !== 0 || length % PAGE !== 0 || offset + length > size) return false
        for (let at = offset; at < offset + length; at += 64)
          if (!inAny(mappable, at) || inAny(traps, at)) return false
      }
      return true
    }),
  )
  t.pass()
})

t.test('no sequence of accesses gets at what is not the guest’s', { skip }, async (t) => {
  using rig = new Rig()
  const bars = [rig.bar(0), rig.bar(3)]
  const address = fc.oneof(
    fc.nat(0xff).map((at) => CONFIG + at),
    fc.constantFrom(0x04, 0x10, 0x14, 0x1c, 0x20, 0x72, 0xa8).map((at) => CONFIG + at),
    fc.tuple(fc.constantFrom(...bars, PCI_WINDOW), fc.nat(16400)).map(([bar, at]) => bar + at),
    fc.constantFrom(...bars).chain((bar) => fc.nat(64).map((at) => bar + at)),
  )
  const value = fc.oneof(
    fc.nat(),
    fc.constantFrom(0, 6, 0x8000, 0xc000, 0xffff_ffff, PCI_WINDOW, ECAM, 0x60, ...bars),
  )
  const size = fc.constantFrom(1, 2, 4, 8)
  fc.assert(
    fc.property(fc.array(fc.tuple(address, size, fc.boolean(), value), { maxLength: 60 }), (accesses) => {
      for (const [at, width, isWrite, what] of accesses) {
        try {
          if (isWrite) rig.write(at, width as 1, what)
          else rig.read(at, width as 1)
        } catch (error) {
          // Routes that KVM does not take (a message outside the APICs' range) are refused, and logged.
          if (!(error instanceof CoracleError && error.code === 'KVM_REFUSED')) throw error
        }
      }
      const { host } = rig
      if (host.commands.some((command) => (command & ~MEMORY_MASTER) !== 0x400 || (command & 2) === 0))
        return false
      return host.written.every(({ index, offset, size: length }) => {
        const end = offset + length
        return index === 0
          ? end <= 16384
          : offset >= 48 && end <= 16384 && (end <= 0x2000 || offset >= 0x2008)
      })
    }),
    { numRuns: 200 },
  )
  t.equal(rig.config(0), 0x10ca8086)
})
