import { execFileSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  rmdirSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { mount, unmount } from '@coracle/sys'
import t from 'tap'
import { gone, identify, isAlive, monitorProcesses } from '../../src/isolation/liveness.js'
import {
  MonitorPool,
  launchSandbox,
  logFiles,
  logPath,
  openSandbox,
  readExit,
  reap,
} from '../../src/isolation/index.js'
import { execOf, testExecs, testInit } from './exec.js'
import { TAR_CHANGES } from '../../src/isolation/archive.js'
import { hierarchies, isUnified } from '../../src/isolation/process/cgroup.js'
import { OUTPUT, cgroupFile, collect, run, running, runs, specOf, traces } from './sandbox.js'

if (process.getuid?.() !== 0) {
  t.plan(0, 'process isolation needs root')
  process.exit(0)
}

t.test('streams, log, exit status, layers, hostname, network', async (t) => {
  const spec = specOf(['sh', '-c', 'cat /etc/which; hostname; ip -o addr; echo bad >&2; printf tail; exit 7'])
  const result = await run(spec)
  t.equal(result.exitCode, 7)
  const [which, name, ...rest] = result[1].toString().split('\n')
  t.strictSame([which, name], ['upper', 'box'], 'the upper layer is seen, and the hostname')
  t.match(rest.join('\n'), /127\.0\.0\.1/, 'the loopback interface is up')
  t.notMatch(rest.join('\n'), /eth|ens/, "none of the host's interfaces is there")
  t.equal(result[2].toString(), 'bad\n')
  t.match(readExit(spec), { exitCode: 7, finishedAt: /^\d{4}-\d\d-\d\dT.*\.\d{9}Z$/ })
  const log = readFileSync(logPath(spec), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as object)
  t.match(log[0], { log: 'upper\n', stream: 'stdout', time: /^\d{4}-.*Z$/ })
  t.ok(
    log.some((entry) => 'log' in entry && entry.log === 'tail'),
    'a last line without its end is there',
  )
  t.strictSame(traces(spec), [])
  t.equal(await openSandbox(spec), undefined)
})

t.test("a network namespace is joined and stays; the sandbox's own files are in place", async (t) => {
  const name = `coracle-test-${process.pid}`
  const ip = (words: string): string => execFileSync('ip', words.split(' '), { encoding: 'utf8' })
  ip(`netns add ${name}`)
  t.teardown(() => ip(`netns del ${name}`))
  ip(`-n ${name} link set lo up`)
  ip(`-n ${name} link add eth0 type bridge`)
  ip(`-n ${name} addr add 10.77.1.2/24 dev eth0`)
  ip(`-n ${name} link set eth0 up`)
  const content = 'nameserver 10.77.1.1\n'
  const spec = specOf(
    ['sh', '-c', 'ip -o addr show eth0; cat /etc/resolv.conf; echo more >> /etc/resolv.conf'],
    {
      network: {
        interfaces: [],
        namespace: `/run/netns/${name}`,
        files: [{ path: '/etc/resolv.conf', content }],
      },
    },
  )
  for (let turn = 0; turn < 2; turn++) {
    const result = await run(spec)
    t.match(result, { exitCode: 0 })
    t.match(result[1].toString(), /inet 10\.77\.1\.2\/24/)
    t.ok(result[1].toString().endsWith(content))
    t.strictSame(traces(spec), [])
  }
  t.match(ip(`-n ${name} -o addr show eth0`), /10\.77\.1\.2/)
})

t.test('the writable layer and the log outlive a run', async (t) => {
  const spec = specOf(['sh', '-c', 'cat /kept 2>&1; echo once > /kept'])
  await run(spec)
  const second = await run(spec)
  t.equal(second[1].toString(), 'once\n')
  t.equal(readFileSync(logPath(spec), 'utf8').trim().split('\n').length, 2)
})

t.test('a log with a bound, and none', async (t) => {
  const args = ['sh', '-c', 'i=0; while [ $i -lt 500 ]; do echo $i; i=$((i+1)); done']
  const bounded = specOf(args, { log: { files: 3, maxSize: 8192 } })
  t.match(await run(bounded), { exitCode: 0 })
  const texts = logFiles(bounded).files.map((path) => readFileSync(path, 'utf8'))
  t.ok(
    texts.every((text) => text.endsWith('\n') && text.length <= 8192),
    texts.map(({ length }) => length).join(),
  )
  const numbers = texts.flatMap((text) =>
    [...text.matchAll(/"log":"(\d+)/g)].map((match) => Number(match[1])),
  )
  t.same(
    numbers.sort((a, b) => a - b),
    Array.from({ length: numbers.length }, (_, i) => 500 - numbers.length + i),
    'the last of them, all',
  )
  const none = specOf(['sh', '-c', 'echo seen'], { log: { files: 0 } })
  t.equal((await run(none))[1].toString(), 'seen\n')
  t.notOk(existsSync(logPath(none)))
})

t.test('ten megabytes through stdin and back', async (t) => {
  const data = randomBytes(10_000_000)
  const sum = createHash('sha256').update(data).digest('hex')
  const summed = await run(specOf(['sha256sum'], { openStdin: true, stdinOnce: true }), data)
  t.equal(summed[1].toString(), `${sum}  -\n`)
  const echoed = await run(specOf(['cat'], { openStdin: true, stdinOnce: true }), data)
  t.ok(echoed[1].equals(data))
})

t.test(
  'a monitor that waited: for its container, with the mounts of then, and no longer than its pool',
  async (t) => {
    const pool = new MonitorPool(1)
    const [spare] = pool.idle
    const identity = identify(spare!)!
    const late = mkdtempSync(join(tmpdir(), 'coracle-late-'))
    mount('tmpfs', late, 'tmpfs')
    t.teardown(() => {
      unmount(late)
      rmSync(late, { recursive: true })
    })
    writeFileSync(join(late, 'f'), 'mounted since\n')
    const source = late
    const spec = specOf(['sh', '-c', 'cat /late/f'], {
      mounts: [{ source, destination: '/late', readOnly: true, nonRecursive: false }],
    })
    const sandbox = await launchSandbox(spec, { monitors: pool.take })
    t.ok(isAlive(identity), 'it is the one that waited')
    t.same(
      monitorProcesses(sandbox.pid).some(({ pid }) => pid === identity.pid),
      true,
    )
    const output = collect(await sandbox.attach(OUTPUT))
    await sandbox.start()
    const said = await output
    t.equal(said[1].toString(), 'mounted since\n', said[2].toString())
    t.equal((await sandbox.wait()).exitCode, 0)
    await gone([identity])
    t.strictSame(traces(spec), [])
    const [next] = pool.idle
    t.not(next, spare, 'another waits')
    const left = identify(next!)!
    pool[Symbol.dispose]()
    await gone([left])
    t.notOk(isAlive(left))
    t.same(pool.idle, [])
  },
)

t.test('a reader that stalls loses nothing', async (t) => {
  const spec = specOf(['sh', '-c', 'head -c 5000000 /dev/zero; echo end'])
  const sandbox = await launchSandbox(spec)
  const slow = await sandbox.attach(OUTPUT)
  const quick = await sandbox.attach(OUTPUT)
  const first = collect(quick)
  await sandbox.start()
  await new Promise((resolve) => quick.once('readable', resolve))
  t.equal((await sandbox.attach(OUTPUT)).destroy().destroyed, true, 'one that goes at once does no harm')
  const [a, b] = await Promise.all([collect(slow), first])
  t.equal(a[1].length, 5_000_004)
  t.ok(a[1].equals(b[1]))
  t.equal((await sandbox.wait()).exitCode, 0)
})

t.test('paused: it uses no processor, takes signals later, and ends with its monitor', async (t) => {
  const spec = specOf(['sh', '-c', 'trap "exit 5" TERM; echo on; while :; do :; done'])
  const sandbox = await launchSandbox(spec)
  const output = await sandbox.attach(OUTPUT)
  await sandbox.start()
  await new Promise((resolve) => output.once('readable', resolve))
  const used = async (): Promise<number> => (await sandbox.stats()).cpu.total
  await sandbox.pause()
  await sandbox.pause()
  await sandbox.update({ memory: 64 << 20, cpus: 0.5, pids: 9 })
  t.match(await sandbox.stats(), { memoryLimit: 64 << 20, pids: { limit: 9 } })
  await t.rejects(sandbox.update({ memory: 4096 }), { code: 'CONFLICT' }, 'less than is in use')
  await sandbox.update({ memory: 0, pids: 0 })
  t.match(await sandbox.stats(), { pids: { limit: 0 } })
  const before = await used()
  await sandbox.kill(15)
  for await (const _ of await sandbox.readTree('/', TAR_CHANGES, true)) continue
  t.equal(await used(), before, 'also after its files were read')
  await sandbox.resume()
  t.match(await sandbox.wait(), { exitCode: 5 })
  output.destroy()
  for (const end of ['destroy', 'kill', 'reap'] as const) {
    const spec = specOf(['sleep', '1000'])
    const sandbox = await launchSandbox(spec)
    await sandbox.start()
    await sandbox.pause()
    if (end === 'destroy') await sandbox.destroy()
    else process.kill(sandbox.pid, 'SIGKILL')
    if (end === 'reap') await reap(spec)
    t.match(await sandbox.wait(), { exitCode: 137 })
    t.strictSame(traces(spec), [])
  }
})

t.test('an init as the first process', (t) => testInit(t, specOf))

t.test('commands that cannot run', async (t) => {
  for (const [command, code, exitCode] of [
    ['nope', 'COMMAND_NOT_FOUND', 127],
    ['/bin/nope', 'COMMAND_NOT_FOUND', 127],
    ['/etc/plain', 'COMMAND_NOT_EXECUTABLE', 126],
    ['/etc', 'COMMAND_NOT_EXECUTABLE', 126],
  ] as const) {
    const spec = specOf([command])
    const sandbox = await launchSandbox(spec)
    await t.rejects(sandbox.start(), { code, message: new RegExp(`exec: "${command}"`) })
    t.match(await sandbox.wait(), { exitCode, error: /exec/ })
    t.strictSame(traces(spec), [], command)
  }
})

t.test("users are the image's", async (t) => {
  for (const [user, seen] of [
    ['app', '1234 50 77'],
    ['app:extra', '1234 77 '],
    ['1234', '1234 50 77'],
    ['4321:8', '4321 8 '],
  ] as const) {
    const spec = specOf(['sh', '-c', "grep -E '^(Uid|Gid|Groups):' /proc/self/status"])
    const result = await run({ ...spec, bundle: { ...spec.bundle, annotations: { 'coracle.user': user } } })
    const ids = result[1].toString().matchAll(/^(?:Uid|Gid):\t(\d+)|^Groups:\t(.*?) *$/gm)
    t.equal([...ids].map((match) => match[1] ?? match[2]).join(' '), seen, user)
  }
  const spec = specOf(['true'])
  const unknown = { ...spec, bundle: { ...spec.bundle, annotations: { 'coracle.user': 'nobody-here' } } }
  const sandbox = await launchSandbox(unknown)
  await t.rejects(sandbox.start(), { code: 'INVALID_ARGUMENT', message: /unable to find user nobody-here/ })
  await sandbox.wait()
})

t.test('signals', async (t) => {
  const killed = await running(['sleep 60'])
  await killed.sandbox.kill(9)
  t.equal((await killed.sandbox.wait()).exitCode, 137)
  const trapped = await running(["trap 'exit 3' TERM; while :; do sleep 0.1; done"])
  await trapped.sandbox.kill(15)
  t.equal((await trapped.sandbox.wait()).exitCode, 3)
  await t.rejects(trapped.sandbox.kill(15), { code: 'NOT_RUNNING' })
})

t.test('a terminal, its size, and input to it', async (t) => {
  const spec = specOf(['sh', '-c', 'read line; stty size; echo "got $line"; test -t 1'], {
    tty: true,
    openStdin: true,
  })
  const sandbox = await launchSandbox(spec)
  const stream = await sandbox.attach({ ...OUTPUT, stdin: true })
  const output = collect(stream)
  await sandbox.start()
  await sandbox.resize(101, 37)
  stream.write('hello\n')
  const exit = await sandbox.wait()
  t.equal(exit.exitCode, 0)
  t.match((await output)[1].toString(), /37 101\r\ngot hello\r\n/)
  t.strictSame(traces(spec), [])
})

t.test('further processes', async (t) => {
  const { spec, sandbox } = await running(['exec sleep 1000'])
  await testExecs(t, sandbox)
  const many = Array.from({ length: 33 }, () => execOf(['sleep', '1000']))
  for (const each of many) await sandbox.createExec(each)
  const started = await Promise.allSettled(many.map(({ id }) => sandbox.startExec(id, undefined)))
  t.strictSame(
    started.filter(({ status }) => status === 'rejected').map((each) => 'reason' in each && each.reason.code),
    ['CONFLICT'],
    'no more than 32',
  )
  const last = many[0]!.id
  const ended = sandbox.waitExec(last)
  await sandbox.kill(9)
  t.match(await ended, { exitCode: 137 }, 'they end with the container')
  t.equal((await sandbox.wait()).exitCode, 137)
  t.strictSame(traces(spec), [])
})

t.test('the kernel ends what needs too much memory', async (t) => {
  const spec = specOf(['sh', '-c', 'x=a; while :; do x=$x$x; done'], { memory: 16 * 2 ** 20 })
  const result = await run(spec)
  t.equal(result.exitCode, 137)
  t.match(readExit(spec), { oomKilled: true })
  t.strictSame(traces(spec), [])
})

t.test('what it uses', async (t) => {
  const script = 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo ready; read x'
  const { spec, sandbox } = await running([script], { openStdin: true, memory: 64 * 2 ** 20 })
  const stats = await sandbox.stats()
  t.ok(stats.cpu.total > 0 && stats.host.cpu > stats.cpu.total, 'processor time')
  t.ok(stats.memory.usage > 0 && stats.memory.usage <= 64 * 2 ** 20, `${stats.memory.usage} bytes`)
  t.equal(stats.memoryLimit, 64 * 2 ** 20)
  t.equal(stats.pids.current, 1)
  t.same(stats.networks, {})
  t.equal(stats.machine, undefined)
  await t.rejects(sandbox.machine(), { code: 'INVALID_ARGUMENT' })
  await sandbox.destroy()
  await t.rejects(sandbox.stats(), { code: 'NOT_RUNNING' })
  t.strictSame(traces(spec), [])
})

t.test('one monitor at a time, which others can find', async (t) => {
  const { spec, sandbox } = await running(['sleep 60'])
  const found = await openSandbox(spec)
  t.equal(found?.pid, sandbox.pid)
  t.match(
    readFileSync(`/proc/${sandbox.pid}/cmdline`, 'utf8'),
    /monitor/,
    'its process id is as the host counts',
  )
  await t.rejects(launchSandbox(spec), { code: 'CONFLICT' })
  await t.rejects(sandbox.start(), { code: 'NOT_MODIFIED' })
  const waited = found!.wait()
  await sandbox.destroy()
  t.equal((await waited).exitCode, 137)
  t.strictSame(traces(spec), [])
  await sandbox.destroy()
  await reap(spec)
})

t.test('a monitor that is told to end takes its workload with it', async (t) => {
  const { spec, sandbox } = await running(["trap 'exit 5' TERM; while :; do sleep 0.1; done"])
  process.kill(sandbox.pid, 'SIGTERM')
  t.equal((await sandbox.wait()).exitCode, 5)
  t.strictSame(traces(spec), [])
})

t.test('a monitor that is killed leaves nothing, at whatever point', async (t) => {
  const before = specOf(['sleep', '60'])
  const prepared = await launchSandbox(before)
  process.kill(prepared.pid, 'SIGKILL')
  t.match(await prepared.wait(), { exitCode: 137, error: /killed/ })
  t.strictSame(traces(before), [], 'before the start')

  const during = specOf(['sleep', '60'])
  const starting = await launchSandbox(during)
  const start = starting.start()
  process.kill(starting.pid, 'SIGKILL')
  await t.rejects(start, { code: 'NOT_RUNNING' })
  await reap(during)
  t.match(readExit(during), { exitCode: 137 })
  t.strictSame(traces(during), [], 'in the middle of the start')

  const { spec, sandbox } = await running(['sleep 1000 & sleep 1000'])
  const waited = sandbox.wait()
  process.kill(sandbox.pid, 'SIGKILL')
  t.match(await waited, { exitCode: 137, error: /killed/ })
  t.strictSame(traces(spec), [], 'with the workload running')
  const again = await run({
    ...spec,
    bundle: { ...spec.bundle, process: { ...spec.bundle.process, args: ['true'] } },
  })
  t.equal(again.exitCode, 0, 'it can be started again')
})

t.test('runs leave no growth', async (t) => {
  const count = (): number[] => [
    readdirSync('/proc/self/fd').length,
    // Of the host's mounts those of ours: others come and go meanwhile.
    readFileSync('/proc/self/mountinfo', 'utf8')
      .split('\n')
      .filter((line) => line.includes(runs)).length,
    readdirSync(runs).length,
  ]
  await run(specOf(['true']))
  const before = count()
  for (let i = 0; i < 10; i++) await run(specOf(['true']))
  t.strictSame(count(), before)
})

t.test('limits change while it runs', async (t) => {
  const cgroupParent = `/test-${process.pid}/a/b`
  const { spec, sandbox } = await running(['sleep', '1000'], { memory: 256 << 20, cpus: 1, cgroupParent })
  const [member] = (await sandbox.processes()).processes
  t.match(readFileSync(`/proc/${member!.pid}/cgroup`, 'utf8'), `${cgroupParent}/coracle-${spec.id}`)
  const beside = await running(['sleep', '1000'], { cgroupParent })
  process.kill(beside.sandbox.pid, 'SIGKILL')
  await beside.sandbox.wait()
  await sandbox.update({ memory: 64 << 20, cpus: 0.5, cpuShares: 512, pids: 40 })
  const { memoryLimit, pids } = await sandbox.stats()
  t.same([memoryLimit, pids.limit], [64 << 20, 40])
  const files = isUnified()
    ? { 'cpu.max': '50000 100000', 'cpu.weight': '20' }
    : { 'cpu.cfs_quota_us': '50000', 'cpu.shares': '512' }
  for (const [name, value] of Object.entries(files)) t.equal(cgroupFile(spec, name), value)
  await t.rejects(sandbox.update({ memory: 1 }), { code: 'CONFLICT' })
  await sandbox.destroy()
  t.strictSame(traces(spec), [], 'nor the cgroups that it lay in')
  await t.rejects(sandbox.update({ cpus: 1 }), { code: 'NOT_RUNNING' })
})

t.test('a cgroup that somebody made for sandboxes stays', async (t) => {
  const cgroupParent = `/test-${process.pid}-own`
  const folders = hierarchies().map((root) => `${root}${cgroupParent}`)
  for (const folder of folders) mkdirSync(folder)
  t.teardown(() => folders.forEach((folder) => rmdirSync(folder)))
  t.match(await run(specOf(['true'], { cgroupParent: `${cgroupParent}/made` })), { exitCode: 0 })
  t.same(
    folders.map((folder) => [existsSync(folder), existsSync(`${folder}/made`)]),
    folders.map(() => [true, false]),
  )
})
