import t from 'tap'
import { Mapping } from '@coracle/sys'
import { KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_SHUTDOWN, KvmRun } from '../../src/kvm/kvm-run.js'
import { CONTROL_SIZE, REQUEST, REQUEST_PAUSE, REQUEST_RUN } from '../../src/kvm/vcpu-control.js'
import { runVcpu } from '../../src/kvm/vcpu-loop.js'
import {
  FAILED,
  KVM_EXIT_HLT,
  KVM_EXIT_INTR,
  KVM_EXIT_IO,
  KVM_MEM_LOG_DIRTY_PAGES,
  KVM_MEM_READONLY,
  POWER_OFF,
  Registers,
  SpecialRegisters,
  type Vcpu,
  type VcpuEnd,
  describeEnd,
} from '../../src/kvm/index.js'
import { noKvm, newMachine, type TestMachine } from './guest.js'
import { Recorder } from './recorder.js'

const skip = noKvm()

/** Runs the guest on this thread to its end. */
function run(
  machine: TestMachine,
  recorder = new Recorder(),
): { end: VcpuEnd; writes: string[]; reads: number } {
  const end = runVcpu(machine.vcpu, recorder, new SharedArrayBuffer(CONTROL_SIZE), () => undefined)
  return { end, writes: recorder.writes, reads: recorder.reads }
}

t.test('guests on one thread', { skip }, (t) => {
  t.test('port I/O of every size, and HLT', (t) => {
    using machine = newMachine('port-io')
    const { end, writes } = run(machine)
    t.match(end, { kind: 'halt', interruptsOn: false })
    t.same(writes, [
      'pio e0 1 = 11',
      'pio e0 2 = 2233',
      'pio e0 4 = 44556677',
      'pio e0 4 = 80',
      'pio e0 4 = 8180',
      'pio e0 4 = 83828180',
    ])
    t.end()
  })

  t.test('string I/O comes in order, item by item', (t) => {
    using machine = newMachine('string-io')
    const { writes, reads } = run(machine)
    t.equal(reads, 4)
    const text = [...'coracle!'].map((letter) => `pio e0 1 = ${letter.charCodeAt(0).toString(16)}`)
    t.same(writes, [...text, ...Array<string>(4).fill('pio e0 2 = 8180')])
    t.end()
  })

  t.test('MMIO, and an access across a page', (t) => {
    using machine = newMachine('mmio')
    const { end, writes } = run(machine)
    t.equal(end.kind, 'halt')
    t.same(writes.slice(0, 5), [
      'mmio d0000000 1 = 12',
      'mmio d0000002 2 = 3456',
      'mmio d0000004 4 = 789abcde',
      'pio e0 4 = 83828180',
      'pio e0 4 = 80',
    ])
    t.same(writes.slice(5), ['mmio d0000ffe 2 = 3344', 'mmio d0001000 2 = 1122', 'pio e0 4 = 81808180'])
    t.end()
  })

  t.test('long mode', (t) => {
    using machine = newMachine('long-mode')
    const { end, writes } = run(machine)
    t.equal(end.kind, 'halt', describeEnd(end))
    t.same(writes, ['pio e0 4 = 66778899', 'pio e0 4 = 22334455'])
    t.equal(machine.vcpu.getSpecialRegisters().efer & 0x500n, 0x500n, 'LME and LMA')
    t.end()
  })

  t.test('a triple fault is a shutdown', (t) => {
    using machine = newMachine('triple-fault')
    t.equal(run(machine).end.kind, 'shutdown')
    t.end()
  })

  t.test('what KVM cannot emulate is told with its place', (t) => {
    using machine = newMachine('unknown')
    const { end } = run(machine)
    t.match(end, { kind: 'internal-error', suberror: 1, rip: 0xd000_0000n }, describeEnd(end))
    t.match(describeEnd(end), /internal error 1 at 0xd0000000/)
    t.end()
  })

  t.test('a handler ends the guest', (t) => {
    for (const [verdict, kind] of [
      [POWER_OFF, 'power-off'],
      [FAILED, 'error'],
    ] as const) {
      using machine = newMachine('port-io')
      const recorder = new Recorder()
      recorder.onWrite = () => verdict
      const { end, writes } = run(machine, recorder)
      t.equal(end.kind, kind)
      t.equal(writes.length, 1, 'no access after it')
    }
    t.end()
  })

  t.test('a read-only slot is read without an exit, and a write to it is one', (t) => {
    using machine = newMachine('readonly')
    using page = Mapping.create({ length: 4096 })
    new DataView(page.view()).setUint32(0, 0xcafe, true)
    const slot = { guestAddress: 0xd000_0000, size: 4096, mapping: page, mappingOffset: 0 }
    machine.vm.setMemory(1, slot, KVM_MEM_READONLY)
    const { writes, reads } = run(machine)
    t.equal(reads, 0)
    t.same(writes, ['pio e0 4 = cafe', 'mmio d0000000 4 = 55', 'pio e0 4 = cafe'])
    t.end()
  })

  t.test('the dirty log shows the pages the guest wrote, once', (t) => {
    using machine = newMachine('string-io')
    const { memory, vm } = machine
    vm.setMemory(
      0,
      { guestAddress: 0, size: memory.length, mapping: memory, mappingOffset: 0 },
      KVM_MEM_LOG_DIRTY_PAGES,
    )
    run(machine)
    const bitmap = new Uint8Array(memory.length / 4096 / 8)
    vm.getDirtyLog(0, bitmap)
    t.equal(bitmap[0]! & 2, 2, 'the page at 0x1000, with the buffer')
    t.equal(bitmap[2], 0, 'none at 0x10000')
    vm.getDirtyLog(0, bitmap)
    t.equal(bitmap[0], 0, 'cleared by reading')
    t.end()
  })

  t.test('immediate exit finishes the access and runs nothing', (t) => {
    using machine = newMachine('port-io')
    const { vcpu } = machine
    t.equal(vcpu.run(), KVM_EXIT_IO)
    const before = vcpu.getRegisters().rip
    vcpu.exit.immediateExit = true
    t.equal(vcpu.run(), KVM_EXIT_INTR)
    t.equal(vcpu.getRegisters().rip >= before, true)
    vcpu.exit.immediateExit = false
    t.equal(vcpu.run(), KVM_EXIT_IO)
    t.equal(vcpu.exit.ioSize, 2)
    t.end()
  })
  t.end()
})

t.test('state', { skip }, (t) => {
  t.test('goes out and comes back as it was', (t) => {
    using machine = newMachine('halt', { irqchip: true })
    const { vcpu, vm, kvm } = machine
    const registers = vcpu.getRegisters()
    registers.r15 = 0xfedc_ba98_7654_3210n
    vcpu.setRegisters(registers)
    t.equal(vcpu.getRegisters().r15, 0xfedc_ba98_7654_3210n)
    const special = vcpu.getSpecialRegisters()
    special.gdt.base = 0x5000n
    special.gdt.limit = 31
    vcpu.setSpecialRegisters(special)
    t.equal(vcpu.getSpecialRegisters().gdt.base, 0x5000n)
    const fpu = vcpu.getFpu()
    fpu.fcw = 0x27f
    vcpu.setFpu(fpu)
    t.equal(vcpu.getFpu().fcw, 0x27f)
    const states = [
      [() => vcpu.getLapic(), (state: Uint8Array) => vcpu.setLapic(state)],
      [() => vcpu.getEvents(), (state: Uint8Array) => vcpu.setEvents(state)],
      [() => vcpu.getXcrs(), (state: Uint8Array) => vcpu.setXcrs(state)],
      [() => vcpu.getXsave(), (state: Uint8Array) => vcpu.setXsave(state)],
      [() => vcpu.getDebugRegisters(), (state: Uint8Array) => vcpu.setDebugRegisters(state)],
      [() => vm.getIrqchip(2), (state: Uint8Array) => vm.setIrqchip(state)],
    ] as const
    for (const [get, set] of states) {
      const state = get()
      set(state)
      t.same(get(), state)
      t.throws(() => set(state.subarray(1)), RangeError)
    }
    vcpu.setMpState(vcpu.getMpState())
    const wanted = kvm.msrIndices()
    const msrs = vcpu.getMsrs([...wanted, 0xdead_0000, 0x10])
    t.ok(
      msrs.some(({ index }) => index === 0x10),
      'goes on behind an unknown one',
    )
    t.notOk(msrs.some(({ index }) => index === 0xdead_0000))
    vcpu.setMsrs([{ index: 0x174, value: 0x42n }])
    t.same(vcpu.getMsrs([0x174]), [{ index: 0x174, value: 0x42n }])
    t.throws(() => vcpu.setMsrs([{ index: 0xdead_0000, value: 1n }]), {
      code: 'KVM_REFUSED',
      message: /0xdead0000/,
    })
    vm.setClock(10_000_000_000n)
    t.ok(vm.getClock() >= 10_000_000_000n)
    vcpu.notePause()
    t.end()
  })

  t.test('a closed vCPU', (t) => {
    const machine = newMachine('halt')
    machine[Symbol.dispose]()
    t.throws(() => machine.vcpu.getRegisters(), { code: 'EBADF' })
    t.throws(() => machine.vcpu.run(), { code: 'EBADF' })
    t.end()
  })

  t.test('a borrowed vCPU leaves the owner its descriptor', (t) => {
    using machine = newMachine('port-io')
    const { Vcpu } = { Vcpu: machine.vcpu.constructor as typeof import('../../src/kvm/index.js').Vcpu }
    {
      using borrowed = Vcpu.borrow(machine.vcpu.share())
      t.equal(borrowed.run(), KVM_EXIT_IO)
    }
    t.match(run(machine).end, { kind: 'halt' })
    t.equal(machine.vcpu.exit.exitReason, KVM_EXIT_HLT)
    t.end()
  })
  t.end()
})

t.test('a guest hears of its pause before it runs on (Firecracker #5494)', (t) => {
  // Only the order of the calls matters, so that no processor is needed.
  const calls: string[] = []
  const exit = new KvmRun(new DataView(new ArrayBuffer(4096)))
  exit.view.setUint32(32, KVM_SYSTEM_EVENT_SHUTDOWN, true)
  const run = (): number => {
    calls.push('run')
    return calls.length === 1 ? KVM_EXIT_INTR : KVM_EXIT_SYSTEM_EVENT
  }
  const vcpu = { exit, run, notePause: () => calls.push('KVM_KVMCLOCK_CTRL') } as unknown as Vcpu
  const control = new SharedArrayBuffer(CONTROL_SIZE)
  const words = new Int32Array(control)
  words[REQUEST] = REQUEST_PAUSE
  const end = runVcpu(vcpu, new Recorder(), control, () => {
    calls.push('paused')
    words[REQUEST] = REQUEST_RUN
  })
  t.same(end, { kind: 'power-off' })
  t.same(calls, ['run', 'paused', 'KVM_KVMCLOCK_CTRL', 'run'])
  t.end()
})

t.test('structures', (t) => {
  const view = new DataView(new ArrayBuffer(400), 8)
  const special = new SpecialRegisters(view)
  special.tr.limit = 0x67
  t.equal(view.getUint32(144 + 8, true), 0x67)
  special.efer = 0x500n
  t.equal(view.getBigUint64(264, true), 0x500n)
  t.equal(Registers.size, 144)
  t.throws(() => new Registers(new DataView(new ArrayBuffer(143))), RangeError)
  t.end()
})
