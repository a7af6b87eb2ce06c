import { createHash, randomBytes } from 'node:crypto'
import { readFileSync, readdirSync, statSync } from 'node:fs'
import { TAR_CONTENTS } from '../../src/isolation/archive.js'
import { seccompOf } from '../../src/engine/seccomp.js'
import t, { type Test } from 'tap'
import {
  launchSandbox,
  type Sandbox,
  logFiles,
  readExit,
  type SandboxSpec,
} from '../../src/isolation/index.js'
import type { MachineDescription } from '../../src/vmm/description.js'
import { exec, execOf, testExecs, testInit } from './exec.js'
import { isUnified } from '../../src/isolation/process/cgroup.js'
import { OUTPUT, cgroupFile, choose, collect, run, shown, specOf, traces } from './sandbox.js'

/** What a guest needs: enough for the kernel, the agent and busybox. Small boots faster under emulation. */
const MEMORY = 192 * 2 ** 20
const DISK = 64 * 2 ** 20

/** The processes that carry a sandbox, by their command lines: its monitor, and a QEMU where there is one. */
function carriers(spec: SandboxSpec, word: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        const words = readFileSync(`/proc/${pid}/cmdline`, 'latin1')
        return words.includes(spec.id.slice(0, 12)) && words.includes(word)
      } catch {
        return false
      }
    })
    .map(Number)
}

/** What the container uses, by its own guest and by the host; and what its machine is made of. */
async function testStats(t: Test, sandbox: Sandbox, hypervisor: 'kvm' | 'qemu'): Promise<void> {
  const stats = await sandbox.stats()
  t.ok(stats.cpu.total > 0 && stats.host.cpu > 0 && stats.host.cpus >= 1, 'processor time')
  t.ok(stats.memory.usage > 0 && stats.memory.usage < MEMORY, `${stats.memory.usage} bytes`)
  t.equal(stats.memoryLimit, MEMORY)
  t.ok(stats.pids.current >= 1)
  t.ok(stats.machine!.cpu > 0 && stats.machine!.overhead > 2 ** 20, 'the machine has its own cost')
  if (hypervisor === 'qemu') return void (await t.rejects(sandbox.machine(), { code: 'NOT_IMPLEMENTED' }))
  // A clone maps its template's memory privately and makes no port access of its own on the way.
  t.ok(stats.machine!.guestMemory >= 0 && stats.machine!.exits!['mmio']! > 0)
  const disk = stats.machine!.queues!.find(({ device, queue }) => device === 'blk writable' && queue === 0)
  t.ok(disk!.requests > 0 && disk!.depth > 0 && disk!.bytesIn > 0, 'and what went through its queues')
  t.equal(
    disk!.latency.reduce((sum, each) => sum + each, 0),
    disk!.requests,
  )
  const machine = (await sandbox.machine()) as MachineDescription
  t.match(machine.memory[0], { name: 'ram', address: '0x0', size: MEMORY })
  const devices = machine.pci.flatMap(({ virtio }) => (virtio ? [virtio] : []))
  const blk = devices.find(({ name }) => name === 'blk writable')!
  t.match(blk, { msix: { enabled: true }, queues: [{ enabled: true }] })
  t.ok(blk.status.includes('DRIVER_OK'))
  const [queue] = blk.metrics!.queues
  t.ok(queue!.requests > 0 && queue!.bytesIn > 0 && queue!.errors === 0, `${queue!.requests} requests`)
}

/** Its machine stands still, is woken for its files while its processes are held, and goes on where it was. */
async function testPause(
  t: Test,
  sandbox: Sandbox,
  spec: SandboxSpec,
  hypervisor: 'kvm' | 'qemu',
): Promise<void> {
  const state = async (): Promise<unknown> => {
    if (hypervisor === 'kvm') return ((await sandbox.machine()) as MachineDescription).state
    const [pid] = carriers(spec, 'qemu-system')
    return /^State:\tT/m.test(readFileSync(`/proc/${pid}/status`, 'latin1')) ? 'paused' : 'running'
  }
  await sandbox.pause()
  await sandbox.pause()
  t.equal(await state(), 'paused')
  t.ok((await sandbox.stats()).memory.usage > 0, 'what it uses is known still')
  t.match(await sandbox.statPath('/etc/passwd'), { size: Number })
  // More than fits between the guest and here: it is not over before it is read.
  const other = await sandbox.readTree('/', TAR_CONTENTS, true)
  t.equal(await state(), 'running')
  const tar = await sandbox.readTree('/etc/passwd', 0)
  let bytes = 0
  for await (const chunk of tar) bytes += (chunk as Buffer).length
  t.ok(bytes > 512)
  t.equal(await state(), 'running', 'for whoever reads still')
  other.destroy()
  while ((await state()) !== 'paused') await new Promise((next) => setTimeout(next, 20))
  await sandbox.resume()
  t.equal(await state(), 'running')
  await sandbox.resume()
  const after = execOf(['true'])
  await sandbox.createExec(after)
  await sandbox.startExec(after.id, undefined)
  t.match(await sandbox.waitExec(after.id), { exitCode: 0 })
}

/** What a guest touched and freed is the host's again, without anybody asking for it. */
async function testGivenBack(t: Test, sandbox: Sandbox): Promise<void> {
  const touched = 64 * 2 ** 20
  const resident = async (): Promise<number> => {
    const { guestMemory, overhead } = (await sandbox.stats()).machine!
    return guestMemory + overhead
  }
  const script = `head -c ${touched} /dev/zero > /dev/blob`
  t.match((await exec(sandbox, execOf(['sh', '-c', script]))).state, { exitCode: 0 })
  const most = await resident()
  t.match((await exec(sandbox, execOf(['busybox', 'rm', '/dev/blob']))).state, { exitCode: 0 })
  // The guest's kernel looks for free pages every two seconds of its own.
  let now = await resident()
  for (; now > most - touched / 2; now = await resident()) await new Promise((next) => setTimeout(next, 200))
  t.pass(`${Math.round((most - now) / 2 ** 20)} MiB of ${touched / 2 ** 20} came back`)
}

/** Memory goes and comes by the balloon, time by the host's cgroup; more than at the start is refused. */
async function testUpdate(t: Test, spec: SandboxSpec, sandbox: Sandbox): Promise<void> {
  const total = async (): Promise<number> => {
    const { 1: out } = await exec(sandbox, execOf(['head', '-n', '1', '/proc/meminfo']))
    return Number(/MemTotal: +(\d+) kB/.exec(out.toString())?.[1]) * 1024
  }
  const whole = await total()
  const less = MEMORY - 32 * 2 ** 20
  await sandbox.update({ memory: less, cpus: 0.9, cpuShares: 512 })
  t.equal(whole - (await total()), 32 * 2 ** 20, 'the guest has so much less')
  t.equal((await sandbox.stats()).memoryLimit, less)
  const overhead = spec.hypervisor === 'kvm' ? [256 * 2 ** 20] : []
  const files: Record<string, string> = isUnified()
    ? { 'cpu.max': '90000 100000', 'cpu.weight': '20' }
    : { 'cpu.cfs_quota_us': '90000', 'cpu.shares': '512' }
  const memory = isUnified() ? 'memory.max' : 'memory.limit_in_bytes'
  for (const [name, value] of Object.entries(files)) t.equal(cgroupFile(spec, name), value)
  for (const more of overhead) t.equal(cgroupFile(spec, memory), String(less + more))
  // The workload is alive after these: what is in use is not taken.
  await t.rejects(sandbox.update({ memory: 16 * 2 ** 20 }), { code: 'CONFLICT', message: /leave it \d+ MiB/ })
  await t.rejects(sandbox.update({ memory: MEMORY + 4096 }), { code: 'MEMORY_SIZE', message: /192 MiB/ })
  await t.rejects(sandbox.update({ cpus: 1.1 }), { code: 'INVALID_ARGUMENT', message: /1 vCPU,/ })
  await sandbox.update({ pids: 1 })
  t.match(await exec(sandbox, execOf(['sh', '-c', 'sleep 0; echo no'])), { state: { exitCode: /[^0]/ } })
  await sandbox.update({ pids: 0 })
  await sandbox.update({ memory: MEMORY, cpus: 1 })
  t.equal(await total(), whole)
  for (const more of overhead) t.equal(cgroupFile(spec, memory), String(MEMORY + more))
}

/**
 * Tests a hypervisor with few boots, since each takes seconds of both processors under emulation.
 * @param bytes that go through stdin and back
 */
export function testGuests(hypervisor: 'kvm' | 'qemu', bytes: number): void {
  choose({ isolation: 'microvm', hypervisor })
  const guest = (args: string[], more: Partial<SandboxSpec> = {}): SandboxSpec =>
    specOf(args, { memory: MEMORY, diskSize: DISK, ...more })
  /** A second run has the writable layer of the first. */
  const first =
    'cat /etc/which; hostname; grep Seccomp: /proc/self/status; echo kept > /kept; echo bad >&2; exit 7'
  const plain = guest(['sh', '-c', first])
  const filter = { seccomp: seccompOf(undefined, []) }
  const kept = {
    ...plain,
    // Two entries a file.
    log: { files: 3, maxSize: 200 },
    bundle: { ...plain.bundle, linux: { ...plain.bundle.linux, ...filter } },
  }

  t.test('streams, log, exit status, layers, hostname, seccomp', async (t) => {
    const result = await run(kept)
    t.match(result, { exitCode: 7, error: undefined })
    t.equal(result[1].toString(), 'upper\nbox\nSeccomp:\t2\n')
    t.equal(result[2].toString(), 'bad\n')
    t.match(readExit(kept), { exitCode: 7 })
    const logs = logFiles(kept).files.map((path) => readFileSync(path, 'utf8').trim())
    t.same(
      logs.map((text) => text.split('\n').filter(Boolean).length),
      [2, 2, 0],
    )
    t.strictSame(traces(kept), [])
  })

  t.test('bytes through stdin and back; the writable layer outlives a run', async (t) => {
    const data = randomBytes(bytes)
    const sum = createHash('sha256').update(data).digest('hex')
    const { bundle } = kept
    const args = ['sh', '-c', 'cat /kept >&2; cat']
    const again = { ...bundle, process: { ...bundle.process, args } }
    const result = await run({ ...kept, openStdin: true, stdinOnce: true, bundle: again }, data)
    t.equal(createHash('sha256').update(result[1]).digest('hex'), sum)
    t.equal(result[2].toString(), 'kept\n')
    t.equal(result.exitCode, 0)
  })

  t.test('a terminal, its size, and signals', async (t) => {
    const spec = guest(['sh', '-c', 'read line; stty size; echo "got $line"; sleep 100'], {
      tty: true,
      openStdin: true,
    })
    const sandbox = await launchSandbox(spec)
    const stream = await sandbox.attach({ ...OUTPUT, stdin: true })
    const got = shown(stream, 'got hello')
    await sandbox.start()
    await sandbox.resize(101, 37)
    stream.write('hello\n')
    t.match(await got, /37 101/)
    await sandbox.kill(9)
    t.equal((await sandbox.wait()).exitCode, 137)
    stream.destroy()
    t.strictSame(traces(spec), [])
  })

  t.test('further processes', async (t) => {
    const cgroupParent = `/test-${process.pid}/guest`
    const spec = guest(['sleep', '1000'], { cgroupParent })
    const sandbox = await launchSandbox(spec)
    await sandbox.start()
    t.match(readFileSync(`/proc/${sandbox.pid}/cgroup`, 'utf8'), `${cgroupParent}/coracle-${spec.id}`)
    await testExecs(t, sandbox)
    await testStats(t, sandbox, hypervisor)
    await testPause(t, sandbox, spec, hypervisor)
    await testGivenBack(t, sandbox)
    await testUpdate(t, spec, sandbox)
    const last = execOf(['sleep', '1000'])
    await sandbox.createExec(last)
    await sandbox.startExec(last.id, undefined)
    const ended = sandbox.waitExec(last.id)
    await sandbox.pause()
    await sandbox.kill(9)
    await sandbox.resume()
    t.match(await ended, { exitCode: 137 }, 'it ends with the container')
    t.equal((await sandbox.wait()).exitCode, 137)
    t.strictSame(traces(spec), [])
  })

  t.test('an init as the first process', (t) => testInit(t, guest))

  t.test('a command that is not there', async (t) => {
    const spec = guest(['nope'])
    const sandbox = await launchSandbox(spec)
    const output = collect(await sandbox.attach(OUTPUT))
    await t.rejects(sandbox.start(), { code: 'COMMAND_NOT_FOUND' })
    t.match(await sandbox.wait(), { exitCode: 127, error: /exec: "nope"/ })
    await output
    t.strictSame(traces(spec), [])
  })

  t.test('a monitor that is killed takes its machine with it', async (t) => {
    const spec = guest(['sleep', '1000'])
    const sandbox = await launchSandbox(spec)
    await sandbox.start()
    process.kill(sandbox.pid, 'SIGKILL')
    t.match(await sandbox.wait(), { exitCode: 137, error: /killed/ })
    t.strictSame(traces(spec), [])
  })

  if (hypervisor === 'qemu')
    t.test("QEMU's end is the sandbox's, in one clear line", async (t) => {
      const spec = guest(['sleep', '1000'])
      const sandbox = await launchSandbox(spec)
      const started = sandbox.start()
      const ended = t.rejects(started, { code: 'GUEST_FAILED', message: /QEMU was killed by SIGKILL/ })
      for (let pids: number[] = []; pids.length === 0;) {
        await new Promise((resolve) => setTimeout(resolve, 20))
        pids = carriers(spec, 'qemu-system')
        for (const pid of pids) process.kill(pid, 'SIGKILL')
      }
      await ended
      t.match(await sandbox.wait(), { error: /QEMU was killed/ })
      t.strictSame(traces(spec), [])
    })

  t.test('a writable layer costs what is written', async (t) => {
    const { blocks, size } = statSync(`${kept.stateDirectory}/writable.ext4`)
    t.equal(size, DISK)
    t.ok(blocks * 512 < DISK / 2, `${blocks * 512} bytes`)
  })
}
