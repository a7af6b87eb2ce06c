import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { EventFd, MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, Mapping, PROT_NONE } from '@coracle/sys'
import {
  GsiRouting,
  KVM_CAP_USER_MEMORY,
  KVM_MEM_READONLY,
  Kvm,
  VcpuThread,
  Vm,
  decodeCpuid,
  encodeCpuid,
} from '../../src/kvm/index.js'
import { newMachine, noKvm, type TestMachine } from './guest.js'
import { SharedLog } from './shared-log.js'

const skip = noKvm()
const LOG_PROGRAM = new URL('./log-worker.js', import.meta.url)
/** Fixed address of the local APICs (SDM 3A §11.11.1); destination 0, fixed delivery. */
const MSI = { address: 0xfee0_0000, data: 0x40 }

function start(machine: TestMachine): { thread: VcpuThread; log: SharedLog } {
  const log = new SharedLog()
  const handler = { program: LOG_PROGRAM, data: log.buffer }
  return { thread: new VcpuThread({ vcpu: machine.vcpu.share(), handler }), log }
}

t.test('no KVM is one clear line', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'coracle-kvm-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const open = (path: string): string => {
    try {
      Kvm.open(path).close()
      return 'opened'
    } catch (error) {
      const { code, message } = error as { code: string; message: string }
      t.equal(code, 'KVM_UNAVAILABLE')
      t.notMatch(message, /\n/)
      return message
    }
  }
  t.match(open(join(folder, 'kvm')), /not there \(ENOENT\).*--hypervisor qemu/)
  t.match(open('/dev/null'), /\/dev\/null is not KVM .*ENOTTY/)
  t.match(open(folder), /cannot open .*EISDIR/)
  t.end()
})

t.test(
  'no permission',
  { skip: skip || (process.getuid?.() !== 0 && 'needs root to give up rights') },
  (t) => {
    process.seteuid!(65534)
    t.teardown(() => process.seteuid!(0))
    t.throws(() => Kvm.open(), {
      code: 'KVM_UNAVAILABLE',
      message: /no permission on \/dev\/kvm: .*group kvm/,
    })
    t.end()
  },
)

t.test('the host', { skip }, (t) => {
  using kvm = Kvm.open()
  t.ok(kvm.vcpuMmapSize >= 4096 && kvm.vcpuMmapSize % 4096 === 0)
  t.equal(kvm.checkExtension(KVM_CAP_USER_MEMORY), 1)
  t.equal(kvm.checkExtension(9999), 0)
  const cpuid = kvm.supportedCpuid()
  t.ok(
    cpuid.some((entry) => entry.function === 0x4000_0000),
    "KVM's own leaf",
  )
  t.ok(kvm.msrIndices().includes(0x10), 'the TSC')
  t.type(kvm.featureMsrIndices(), Array)
  t.end()
})

t.test('CPUID entries survive their encoding', (t) => {
  const u32 = fc.nat(0xffff_ffff)
  const entry = fc.record({ function: u32, index: u32, flags: u32, eax: u32, ebx: u32, ecx: u32, edx: u32 })
  fc.assert(
    fc.property(fc.array(entry), (entries) => t.same(decodeCpuid(encodeCpuid(entries)), entries)),
    {
      numRuns: 20,
    },
  )
  t.end()
})

t.test('memory slots', { skip }, (t) => {
  using kvm = Kvm.open()
  using vm = kvm.createVm()
  using mapping = Mapping.create({ length: 1 << 20 })
  const region = { guestAddress: 0, size: 0x80000, mapping, mappingOffset: 0 }
  vm.setMemory(0, region)
  t.throws(() => vm.setMemory(1, { ...region, guestAddress: 0x40000 }), {
    code: 'KVM_REFUSED',
    message: /slot 1 .*overlaps/,
  })
  t.throws(
    () => vm.setMemory(0, { ...region, size: 0x40000 }),
    { code: 'KVM_REFUSED' },
    'a slot cannot shrink',
  )
  t.throws(() => vm.setMemory(1 << 20, { ...region, guestAddress: 0x100000 }), { code: 'KVM_REFUSED' })
  vm.setMemory(0, region, KVM_MEM_READONLY & 0)
  vm.setMemory(0, { ...region, guestAddress: 0x200000 })
  vm.removeMemory(0)
  vm.setMemory(1, region)

  t.throws(() => vm.setMemory(2, { ...region, size: 0 }), RangeError)
  t.throws(() => vm.setMemory(2, { ...region, size: 4097 }), RangeError)
  t.throws(() => vm.setMemory(2, { ...region, guestAddress: -4096 }), RangeError)
  t.throws(() => vm.setMemory(2, { ...region, mappingOffset: 0x90000 }), RangeError, 'leaves its mapping')

  // KVM counts a slot's pages in 31 bits.
  const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
  using huge = Mapping.create({ length: 2 ** 43, prot: PROT_NONE, flags })
  const whole = { guestAddress: 2 ** 44, size: huge.length, mapping: huge, mappingOffset: 0 }
  t.throws(() => vm.setMemory(3, whole), { code: 'KVM_REFUSED', message: /slot 3 .*too large/ })
  huge.unmap()
  t.throws(() => vm.setMemory(3, whole), RangeError, 'memory that is gone')
  t.end()
})

t.test('a closed VM', { skip }, (t) => {
  using kvm = Kvm.open()
  const vm = kvm.createVm()
  using event = EventFd.create()
  const bell = vm.ioeventfd(event, { space: 'pio', address: 0xd0, length: 1 })
  vm.close()
  t.throws(() => vm.createVcpu(0), { code: 'EBADF' })
  t.throws(() => vm.createIrqchip(), { code: 'EBADF' })
  bell.remove()
  kvm.close()
  t.throws(() => kvm.createVm(), { code: 'EBADF' })
  t.end()
})

t.test('another thread borrows a VM and leaves it open', { skip }, (t) => {
  using kvm = Kvm.open()
  using vm = kvm.createVm()
  vm.createIrqchip()
  Vm.borrow(vm.share()).close()
  {
    using borrowed = Vm.borrow(vm.share())
    using event = EventFd.create()
    borrowed.irqfd(event, 5).remove()
  }
  vm.createVcpu(0).close()
  t.throws(() => vm.createVcpu(0), { code: 'EEXIST' })
  t.end()
})

t.test('the tables of routes', (t) => {
  const routing = new GsiRouting().setDefaultPins()
  t.equal(routing.encode().getUint32(0, true), 40, '24 pins of the IOAPIC and 16 of the PICs')
  t.notOk(routing.isCommitted(5))
  const table = new GsiRouting().setMsi(30, { address: 0x1_fee0_1000, data: 0x41 }).encode()
  const words = Array.from({ length: 9 }, (_, i) => table.getUint32(8 + i * 4, true))
  t.same(words, [30, 2, 0, 0, 0xfee0_1000, 1, 0x41, 0, 0])
  t.equal(new GsiRouting().setMsi(30, MSI).remove(30).encode().byteLength, 8)
  t.throws(() => routing.setMsi(4096, MSI), RangeError)
  t.end()
})

t.test('interrupts', { skip }, (t) => {
  t.test('irqfd and irq line raise a pin of the PIC', async (t) => {
    using machine = newMachine('irq', { irqchip: true })
    const { thread, log } = start(machine)
    t.ok(log.waitFor(1))
    using event = EventFd.create()
    const irqfd = machine.vm.irqfd(event, 5)
    t.throws(() => machine.vm.irqfd(event, 5), { code: 'KVM_REFUSED', message: /has one already/ })
    for (let i = 2; i < 12; i++) {
      event.signal()
      t.ok(log.waitFor(i))
    }
    irqfd.remove()
    irqfd.remove()
    event.signal()
    t.ok(event.drain(), 'KVM no longer takes it')
    machine.vm.irqLine(5, true)
    machine.vm.irqLine(5, false)
    t.ok(log.waitFor(12))
    t.same(new Set(log.values), new Set([1, 5]))
    t.same(await thread.stop(), { kind: 'stop' })
  })

  for (const split of [false, true])
    t.test(
      `messages: irqfd with a route, and at once${split ? ', with the split irqchip' : ''}`,
      async (t) => {
        using machine = newMachine('msi', { irqchip: !split, split })
        const { thread, log } = start(machine)
        t.ok(log.waitFor(1))
        const { vm } = machine
        using event = EventFd.create()
        t.throws(() => vm.irqfd(event, 30), { code: 'KVM_REFUSED', message: /30 has no route: commit/ })
        vm.routing.setMsi(30, MSI)
        t.throws(() => vm.irqfd(event, 30), { code: 'KVM_REFUSED' }, 'set is not committed')
        vm.commitRouting()
        vm.irqfd(event, 30)
        event.signal()
        t.ok(log.waitFor(2))
        t.ok(vm.signalMsi(MSI))
        t.ok(log.waitFor(3))
        t.same(log.values, [1, 0x40, 0x40])
        await thread.stop()
      },
    )

  t.test('a route to a chip that is not there', (t) => {
    using kvm = Kvm.open()
    using vm = kvm.createVm()
    vm.createIrqchip()
    vm.routing.setPins(3, [{ irqchip: 9, pin: 1 }])
    t.throws(() => vm.commitRouting(), { code: 'KVM_REFUSED', message: /pin or a chip/ })
    t.end()
  })

  t.test('the timer needs the irqchip', (t) => {
    using kvm = Kvm.open()
    using vm = kvm.createVm()
    t.throws(() => vm.createPit())
    vm.createIrqchip()
    vm.createPit()
    const state = vm.getPit()
    vm.setPit(state)
    t.same(vm.getPit().length, state.length)
    t.end()
  })
  t.end()
})

t.test('doorbells', { skip }, (t) => {
  const count = (event: EventFd): bigint => {
    const value = new BigUint64Array(1)
    return event.fd.read(value) === 8 ? value[0]! : 0n
  }

  t.test('ports: any value, and one value', async (t) => {
    using machine = newMachine('doorbell')
    const { vm } = machine
    using any = EventFd.create()
    using one = EventFd.create()
    using gone = EventFd.create()
    vm.ioeventfd(any, { space: 'pio', address: 0xd0, length: 1 })
    vm.ioeventfd(one, { space: 'pio', address: 0xd4, length: 2, match: 2n })
    vm.ioeventfd(gone, { space: 'pio', address: 0xe0, length: 1 }).remove()
    const { thread, log } = start(machine)
    t.match(await thread.ended, { kind: 'halt' })
    t.equal(count(any), 2n)
    t.equal(count(one), 1n)
    t.equal(count(gone), 0n)
    t.same(log.values.length, 2, 'the value 1 at 0xd4, and the end at 0xe0')
  })

  t.test('memory: a length, and any length', async (t) => {
    using machine = newMachine('doorbell-mmio')
    const { vm } = machine
    using any = EventFd.create()
    const wildcard = vm.ioeventfd(any, { space: 'mmio', address: 0xd000_0000, length: 0 })
    using long = EventFd.create()
    t.throws(() => vm.ioeventfd(long, { space: 'mmio', address: 0xd000_0000, length: 4 }), {
      code: 'KVM_REFUSED',
      message: /0xd0000000: there is one already/,
    })
    wildcard.remove()
    vm.ioeventfd(long, { space: 'mmio', address: 0xd000_0000, length: 4 })
    const { thread, log } = start(machine)
    await thread.ended
    t.equal(count(any), 0n)
    t.equal(count(long), 1n, 'the long alone')
    t.equal(log.values.length, 2)

    using again = newMachine('doorbell-mmio')
    again.vm.ioeventfd(any, { space: 'mmio', address: 0xd000_0000, length: 0 })
    const second = start(again)
    await second.thread.ended
    t.equal(count(any), 2n, 'the word and the long')
    t.equal(second.log.values.length, 1)
  })

  t.test('bad ones', (t) => {
    using kvm = Kvm.open()
    using vm = kvm.createVm()
    using event = EventFd.create()
    t.throws(() => vm.ioeventfd(event, { space: 'mmio', address: 0, length: 3 as 4 }), {
      code: 'KVM_REFUSED',
    })
    t.throws(() => vm.ioeventfd(event, { space: 'mmio', address: 0, length: 0, match: 1n }), RangeError)
    const closed = EventFd.create()
    closed.close()
    t.throws(() => vm.ioeventfd(closed, { space: 'mmio', address: 0, length: 4 }), { code: 'EBADF' })
    t.end()
  })
  t.end()
})
