import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { EPOLLIN, Epoll, EventFd } from '@coracle/sys'
import { ExitServer, KVM_MP_STATE_UNINITIALIZED, VcpuThread, newExitChannel } from '../../src/kvm/index.js'
import { newMachine, noKvm, type TestMachine } from './guest.js'
import { Recorder } from './recorder.js'
import { SharedLog } from './shared-log.js'

const skip = noKvm()
const LOG_PROGRAM = new URL('./log-worker.js', import.meta.url)

function start(machine: TestMachine, paused = false): { thread: VcpuThread; log: SharedLog } {
  const log = new SharedLog()
  const handler = { program: LOG_PROGRAM, data: log.buffer }
  return { thread: new VcpuThread({ vcpu: machine.vcpu.share(), handler, paused }), log }
}

const counter = (machine: TestMachine): number =>
  new DataView(machine.memory.view(0x8000, 4)).getUint32(0, true)

t.test('a thread', { skip }, (t) => {
  t.test('kick, pause, resume and stop of a guest that spins', async (t) => {
    using machine = newMachine('spin')
    const { thread, log } = start(machine)
    await thread.ready
    t.ok(log.waitFor(1))
    for (let i = 0; i < 20; i++) {
      thread.kick()
      await thread.pause()
      const at = counter(machine)
      t.equal(machine.vcpu.getRegisters().rdx, 0xe0n, 'the state can be read while it is paused')
      t.equal(counter(machine), at, 'and the guest stands still')
      thread.resume()
      while (counter(machine) === at);
    }
    t.ok(thread.exits['intr']! >= 20)
    t.equal(thread.exits['io'], 1)
    t.same(await thread.stop(), { kind: 'stop' })
    t.same(await thread.stop(), { kind: 'stop' }, 'again is no harm')
    await thread.pause()
  })

  t.test('begins paused', async (t) => {
    using machine = newMachine('spin')
    const { thread, log } = start(machine, true)
    await thread.ready
    const registers = machine.vcpu.getRegisters()
    t.equal(registers.rip, 0x1000n)
    t.same(log.values, [])
    thread.resume()
    t.ok(log.waitFor(1))
    const pause = thread.pause()
    t.throws(() => thread.resume(), /not paused yet/)
    await pause
    t.same(await thread.stop(), { kind: 'stop' }, 'stop ends a paused thread')
  })

  t.test('pauses and stops a guest that halts in the kernel', async (t) => {
    using machine = newMachine('halt', { irqchip: true })
    const { thread, log } = start(machine)
    t.ok(log.waitFor(1))
    await thread.pause()
    // It says that it halts a moment before it does.
    while (!machine.vcpu.isHaltedForGood()) {
      thread.resume()
      await thread.pause()
    }
    t.pass('and it is seen that nothing will wake it')
    thread.resume()
    t.same(await thread.stop(), { kind: 'stop' })
  })

  t.test('no pause is lost in 2000 in a row', async (t) => {
    using machine = newMachine('halt', { irqchip: true })
    const { thread, log } = start(machine)
    t.ok(log.waitFor(1))
    for (let i = 0; i < 2000; i++) {
      await thread.pause()
      thread.resume()
    }
    t.ok(thread.exits['intr']! >= 2000)
    t.same(await thread.stop(), { kind: 'stop' })
  })

  t.test('ends tell apart', async (t) => {
    for (const [guest, kind] of [
      ['halt', 'halt'],
      ['triple-fault', 'shutdown'],
      ['unknown', 'internal-error'],
    ] as const) {
      using machine = newMachine(guest)
      t.match(await start(machine).thread.ended, { kind })
    }
  })

  t.test('a handler that throws ends the thread with its message', async (t) => {
    using machine = newMachine('port-io')
    const program = new URL('./failing-worker.js', import.meta.url)
    const thread = new VcpuThread({ vcpu: machine.vcpu.share(), handler: { program } })
    t.same(await thread.ended, { kind: 'error', message: 'a bug in the handler' })
  })

  t.test('a program that is not there, and no handler at all', async (t) => {
    using machine = newMachine('port-io')
    const program = new URL('./no-such-program.js', import.meta.url)
    const thread = new VcpuThread({ vcpu: machine.vcpu.share(), handler: { program } })
    t.match(await thread.ended, { kind: 'error', message: /no-such-program/ })
    await thread.ready
    t.match(await new VcpuThread({ vcpu: machine.vcpu.share() }).ended, { kind: 'error', message: /handler/ })
  })

  t.test('exits by a channel to the thread of the devices', async (t) => {
    using machine = newMachine('port-io')
    using doorbell = EventFd.create()
    using loop = new Epoll()
    const recorder = new Recorder()
    using server = new ExitServer(doorbell, recorder, (error) => t.fail(String(error)))
    const channel = newExitChannel(doorbell)
    server.add(channel)
    loop.add(doorbell.fd, EPOLLIN, () => server.serve())
    const thread = new VcpuThread({ vcpu: machine.vcpu.share(), channel })
    while (recorder.writes.length < 6) if (loop.wait(20_000) === 0) break
    t.match(await thread.ended, { kind: 'halt', interruptsOn: false })
    t.same(recorder.writes.slice(3), ['pio e0 4 = 80', 'pio e0 4 = 8180', 'pio e0 4 = 83828180'])
    t.same(thread.exits, { io: 9, hlt: 1 })
  })

  t.test('two processors, the second started by the first', async (t) => {
    using machine = newMachine('smp', { irqchip: true })
    using second = machine.vm.createVcpu(1)
    const log = new SharedLog()
    const handler = { program: LOG_PROGRAM, data: log.buffer }
    const late = new VcpuThread({ vcpu: second.share(), handler })
    await late.ready
    await late.pause()
    t.equal(second.getMpState(), KVM_MP_STATE_UNINITIALIZED)
    late.resume()
    t.same(log.values, [], 'it waits for its start')
    const first = new VcpuThread({ vcpu: machine.vcpu.share(), handler })
    t.ok(log.waitFor(2))
    t.same(log.values.sort(), [1, 2])
    await Promise.all([first.pause(), late.pause()])
    t.same(await Promise.all([first.stop(), late.stop()]), [{ kind: 'stop' }, { kind: 'stop' }])
  })

  t.test('a processor that was never started can be stopped', async (t) => {
    using machine = newMachine('halt', { irqchip: true })
    using second = machine.vm.createVcpu(1)
    const thread = new VcpuThread({
      vcpu: second.share(),
      handler: { program: LOG_PROGRAM, data: new SharedLog().buffer },
    })
    await thread.ready
    t.same(await thread.stop(), { kind: 'stop' })
  })

  t.test('the process can exit while a guest runs', async (t) => {
    const script = fileURLToPath(new URL('./exit-while-running.js', import.meta.url))
    const out = execFileSync(process.execPath, [script], { encoding: 'utf8', timeout: 60_000 })
    t.equal(out, 'running\n')
  })
  t.end()
})
