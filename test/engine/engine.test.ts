import { mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import type { CreateRequest } from '../../src/engine/record.js'
import { cgroupLimits } from '../../src/engine/cgroup-limits.js'
import { capabilitySet } from '../../src/engine/capabilities.js'
import { deviceFile } from '../../src/engine/devices.js'
import { checkSharing } from '../../src/engine/host-sharing.js'
import { FrameParser, frame } from '../../src/engine/frames.js'
import type { Engine } from '../../src/engine/engine.js'
import type { EngineEvent } from '../../src/engine/events.js'
import { settleHealthCheck } from '../../src/engine/health-check.js'
import { chooseHypervisor, virtualizationOf } from '../../src/engine/host.js'
import { cpuLimit, memoryLimit } from '../../src/engine/limits.js'
import { signalNumber } from '../../src/engine/signal.js'
import { buildBundle } from '../../src/engine/bundle.js'
import { PLAIN_HOST, TestBed } from './host.js'

const PLAIN: CreateRequest = { image: 'busybox', isolation: 'process', command: ['true'] }
const code = (code: string): { code: string } => ({ code })
const toArray = async <T>(source: AsyncIterable<T>): Promise<T[]> => {
  const all = []
  for await (const each of source) all.push(each)
  return all
}
const never = new AbortController().signal

const bed = (t: { teardown(handler: () => unknown): unknown }): TestBed => {
  const bed = new TestBed()
  t.teardown(() => bed.close())
  return bed
}

t.test('a container from creation to removal', async (t) => {
  const it = bed(t)
  const engine = await it.open()
  const { id, warnings } = await engine.create({
    ...PLAIN,
    name: 'one',
    command: ['sh', '-c', 'echo hi; exit 7'],
  })
  t.match(id, /^[0-9a-f]{64}$/)
  t.same(warnings, [])
  t.equal((await engine.inspect('one')).state.status, 'created')
  t.equal((await engine.inspect(id.slice(0, 8))).id, id)
  const { stream } = await engine.attach(id, { stdin: false, stdout: true, stderr: true }, never)
  const { done } = await engine.wait(id, 'next-exit')
  await engine.start(id)
  const output = Buffer.concat(await (await stream).toArray())
  t.same(output, frame(1, Buffer.from('hi\n')))
  t.same(await done, { exitCode: 7 })
  const { state } = await engine.inspect(id)
  t.match(state, { status: 'exited', exitCode: 7, oomKilled: false })
  const { entries } = await engine.logs(id, { stdout: true, stderr: true })
  for await (const { data } of entries) t.equal(data.toString(), 'hi\n')
  t.equal(it.driver.specs.length, 1)
  await engine.remove(id)
  await t.rejects(engine.inspect(id), code('NO_SUCH_CONTAINER'))
  t.same(await engine.list(), [])
})

t.test('names are unique, also between engines at once', async (t) => {
  const it = bed(t)
  const [a, b] = await Promise.all([it.open(), it.open()])
  const tries = await Promise.allSettled(
    [a, b, a, b, a, b].map((engine) => engine.create({ ...PLAIN, name: 'same' })),
  )
  t.equal(tries.filter(({ status }) => status === 'fulfilled').length, 1)
  for (const each of tries) if (each.status === 'rejected') t.match(each.reason, code('CONFLICT'))
  await Promise.all(Array.from({ length: 20 }, (_, at) => (at % 2 ? a : b).create(PLAIN)))
  t.equal(new Set((await a.list()).map(({ name }) => name)).size, 21)
})

t.test('one start wins, and another engine sees and ends the run', async (t) => {
  const it = bed(t)
  const [a, b] = await Promise.all([it.open(), it.open()])
  const { id } = await a.create({ ...PLAIN, command: ['sleep', '100'] })
  const starts = await Promise.allSettled([a.start(id), b.start(id)])
  t.equal(starts.filter(({ status }) => status === 'fulfilled').length, 1)
  t.match(
    starts.find((each) => each.status === 'rejected'),
    { reason: code('NOT_MODIFIED') },
  )
  t.equal(it.driver.specs.length, 1)
  t.equal((await b.inspect(id)).state.status, 'running')
  await t.rejects(b.remove(id), code('CONFLICT'))
  const { done } = await a.wait(id, 'removed')
  await b.remove(id, true)
  t.equal((await done).exitCode, 137)
  await t.rejects(b.stop(id), code('NO_SUCH_CONTAINER'))
})

t.test('stop: the signal, then SIGKILL', async (t) => {
  const engine = await bed(t).open()
  const gentle = await engine.create({ ...PLAIN, command: ['sleep', '100'] })
  await t.rejects(engine.stop(gentle.id), code('NOT_MODIFIED'))
  await t.rejects(engine.kill(gentle.id, 'KILL'), code('NOT_RUNNING'))
  await engine.start(gentle.id)
  await engine.stop(gentle.id)
  t.match((await engine.inspect(gentle.id)).state, { exitCode: 143 })
  const stubborn = await engine.create({
    ...PLAIN,
    command: ['sh', '-c', 'trap "" TERM; echo ready; while :; do sleep 1; done'],
  })
  const { stream } = await engine.attach(stubborn.id, { stdin: false, stdout: true, stderr: false }, never)
  await engine.start(stubborn.id)
  for await (const _ready of await stream) break
  await engine.stop(stubborn.id, { timeout: 0 })
  t.match((await engine.inspect(stubborn.id)).state, { exitCode: 137 })
})

t.test('attach: who comes while it starts is joined too', async (t) => {
  const it = bed(t)
  const engine = await it.open()
  const { id } = await engine.create({ ...PLAIN, command: ['sleep', '1000'] })
  const launch = it.driver.launchSandbox.bind(it.driver)
  let late: ReturnType<typeof engine.attach> | undefined
  it.driver.launchSandbox = async (spec) => {
    const sandbox = await launch(spec)
    const start = sandbox.start.bind(sandbox)
    sandbox.start = async () => {
      late = engine.attach(id, { stdin: false, stdout: true, stderr: true }, never)
      await late
      await start()
    }
    return sandbox
  }
  await engine.start(id)
  const stream = await (await late!).stream
  await engine.remove(id, true)
  for await (const _nothing of stream);
})

t.test('paused: what would wait is refused, what ends it lets it go on', async (t) => {
  const it = bed(t)
  const engine = await it.open()
  const { id } = await engine.create({ ...PLAIN, name: 'still', command: ['sleep', '1000'] })
  await t.rejects(engine.pause('still'), code('NOT_RUNNING'))
  await engine.start(id)
  await t.rejects(engine.unpause('still'), { ...code('CONFLICT'), message: /is not paused/ })
  await engine.pause('still')
  t.match((await (await it.open()).inspect('still')).state, { status: 'running', paused: true }, 'all see it')
  await t.rejects(engine.pause('still'), { ...code('CONFLICT'), message: /is already paused/ })
  await t.rejects(engine.start('still'), { ...code('CONFLICT'), message: /try unpause instead/ })
  await t.rejects(engine.remove('still'), { ...code('CONFLICT'), message: /must be unpaused first/ })
  const exec = { command: ['true'], tty: false, attach: { stdin: false, stdout: true, stderr: true } }
  await t.rejects(engine.createExec('still', exec), { ...code('CONFLICT'), message: /before exec/ })
  await t.rejects(engine.attach('still', exec.attach, never), {
    ...code('CONFLICT'),
    message: /before attach/,
  })
  await engine.unpause('still')
  t.match((await engine.inspect('still')).state, { status: 'running', paused: false })
  for (const pause of [undefined, false])
    await t.rejects(engine.commit('still', pause === undefined ? {} : { pause }))
  t.same(it.driver.sandboxes.get(id)!.treesStill, [true, false], 'a commit asks for it unless told not to')
  for (const end of [() => engine.kill('still', 'TERM'), () => engine.stop('still', { timeout: -1 })]) {
    await engine.pause('still')
    const { done } = await engine.wait('still', 'not-running')
    await end()
    t.same(await done, { exitCode: 143 })
    await engine.start('still')
  }
  await engine.remove('still', true)
})

t.test('update: a run and its record, or neither', async (t) => {
  const it = bed(t)
  const engine = await it.open()
  const { id } = await engine.create({ ...PLAIN, command: ['sleep', '1000'] })
  await engine.update(id, { memory: 64 << 20, pidsLimit: 7 })
  await engine.start(id)
  t.match(it.driver.specs[0], { memory: 64 << 20, bundle: { linux: { resources: { pids: { limit: 7 } } } } })
  const sandbox = it.driver.sandboxes.get(id)!
  t.same(sandbox.limits, [])
  await engine.update(id, { nanoCpus: 5e8, restart: { name: 'on-failure', maximumRetryCount: 2 } })
  t.same(sandbox.limits, [{ cpus: 0.5 }])
  sandbox.update = () => Promise.reject(new Error('no'))
  await t.rejects(engine.update(id, { memory: 32 << 20 }))
  await t.rejects(engine.update(id, { memory: 1 }), code('MEMORY_SIZE'))
  const { request, spec } = await engine.inspect(id)
  t.match(request, { memory: 64 << 20, nanoCpus: 5e8, restart: { maximumRetryCount: 2 } })
  t.match(spec, { memory: 64 << 20, cpus: 0.5 })
  await engine.remove(id, true)
  const guest = await engine.create({ ...PLAIN, isolation: 'microvm' })
  await t.rejects(engine.update(guest.id, { memory: 64 << 20 }), code('MEMORY_SIZE'))
  await t.rejects(engine.update(guest.id, { cpuShares: 1 }), code('INVALID_ARGUMENT'))
  await engine.update(guest.id, { memory: 256 << 20, cpuShares: 512 })
  await engine.start(guest.id)
  t.match(it.driver.specs.at(-1), { memory: 256 << 20, cpuShares: 512 })
  await (
    await engine.wait(guest.id, 'not-running')
  ).done
  await engine.update(guest.id, { restart: { name: 'always', maximumRetryCount: 0 } })
  const once = await engine.create({ ...PLAIN, autoRemove: true })
  await t.rejects(engine.update(once.id, { restart: { name: 'always', maximumRetryCount: 0 } }), /AutoRemove/)
})

t.test('what happened while nobody looked is put right', async (t) => {
  const it = bed(t)
  const first = await it.open()
  const crashed = await first.create({ ...PLAIN, command: ['sleep', '100'] })
  const removed = await first.create({ ...PLAIN, command: ['sleep', '100'], autoRemove: true })
  const ended = await first.create({ ...PLAIN, command: ['sleep', '100'] })
  for (const { id } of [crashed, removed, ended]) {
    await first.start(id)
    // As if this process had been killed: the record says running, and no monitor is there.
    const path = join(it.root, 'state/containers', id, 'config.json')
    const record = readFileSync(path)
    const { done } = await first.wait(id, id === removed.id ? 'removed' : 'not-running')
    await it.driver.crash(id)
    await done
    if (id !== removed.id) writeFileSync(path, record)
  }
  it.driver.exits.delete(crashed.id)
  it.driver.exits.set(ended.id, { exitCode: 5, finishedAt: '2026-01-01T00:00:00Z' })
  const second = await it.open()
  const { state } = await second.inspect(crashed.id)
  t.match(state, { status: 'exited', exitCode: 137, error: /was killed/ })
  t.match((await second.inspect(ended.id)).state, { exitCode: 5 })
  t.equal((await second.list()).length, 2)
})

t.test('a starter that died leaves no container in between', async (t) => {
  const it = bed(t)
  const engine = await it.open()
  const { id } = await engine.create({ ...PLAIN, command: ['sleep', '100'] })
  const path = join(it.root, 'state/containers', id, 'config.json')
  const record = JSON.parse(readFileSync(path, 'utf8')) as object
  writeFileSync(
    path,
    JSON.stringify({ ...record, state: { status: 'starting', startedAt: '2026-01-01T00:00:00Z' } }),
  )
  t.match((await engine.inspect(id)).state, { status: 'exited', exitCode: 137, error: /was killed/ })
  await engine.start(id)
  t.equal((await engine.inspect(id)).state.status, 'running')
})

t.test('devices of the host that killed containers had can be had again', async (t) => {
  const it = bed(t)
  const engine = await it.open()
  const path = (id: string): string => join(it.root, 'state/containers', id, 'config.json')
  const read = (id: string): { spec: object; state: { status: string } } =>
    JSON.parse(readFileSync(path(id), 'utf8')) as never
  const holder = async (status: string): Promise<string> => {
    const { id } = await engine.create({ ...PLAIN, command: ['sleep', '100'] })
    const record = read(id)
    const spec = { ...record.spec, devices: [{ kind: 'pci', address: '0000:01:10.0' }] }
    const state = { status, startedAt: '2026-01-01T00:00:00Z' }
    writeFileSync(path(id), JSON.stringify({ ...record, spec, state }))
    return id
  }
  const first = await holder('starting')
  await engine.adapters.list()
  t.equal(read(first).state.status, 'exited', 'who looks at the adapters frees them')
  const second = await holder('starting')
  await engine.start(await holder('created'))
  t.equal(read(second).state.status, 'exited', 'as does who wants one')
})

t.test('half-made and half-removed folders are swept, foreign records left out', async (t) => {
  const it = bed(t)
  const folder = join(it.root, 'state/containers')
  for (const name of ['.creating-1', '.removing-2', 'a'.repeat(64), 'b'.repeat(64)])
    mkdirSync(join(folder, name), { recursive: true })
  writeFileSync(join(folder, 'a'.repeat(64), 'config.json'), '{"version":1,"id"')
  writeFileSync(join(folder, 'b'.repeat(64), 'config.json'), '{"version":99}')
  const engine = await it.open()
  t.same(await engine.list(), [])
  t.same(readdirSync(folder).sort(), ['.lock', 'a'.repeat(64), 'b'.repeat(64)])
})

t.test('a start that fails is told, and AutoRemove still holds', async (t) => {
  const engine = await bed(t).open()
  const kept = await engine.create({ ...PLAIN, command: ['/nosuch'] })
  await t.rejects(engine.start(kept.id), code('COMMAND_NOT_FOUND'))
  t.match((await engine.inspect(kept.id)).state, { status: 'created', failure: { exitCode: 127 } })
  const gone = await engine.create({ ...PLAIN, command: ['/etc/passwd'], autoRemove: true })
  const { done } = await engine.wait(gone.id, 'removed')
  await t.rejects(engine.start(gone.id), code('COMMAND_NOT_EXECUTABLE'))
  t.equal((await done).exitCode, 126)
  await t.rejects(engine.inspect(gone.id), code('NO_SUCH_CONTAINER'))
})

t.test('logs: tail, times, and following to the end', async (t) => {
  const engine = await bed(t).open()
  const { id } = await engine.create({
    ...PLAIN,
    openStdin: true,
    command: ['sh', '-c', 'for i in 1 2 3 4; do echo $i; read x; done; echo err >&2'],
  })
  const { entries } = await engine.logs(id, { stdout: true, stderr: true, follow: true })
  const { stream } = await engine.attach(id, { stdin: true, stdout: true, stderr: true }, never)
  await engine.start(id)
  const input = await stream
  input.resume()
  const seen = []
  for await (const { stream, data } of entries) {
    seen.push(`${stream}${data.toString().trim()}`)
    input.write('go\n')
  }
  t.same(seen, ['11', '12', '13', '14', '2err'])
  const read = async (options: object): Promise<string> => {
    const { entries } = await engine.logs(id, { stdout: true, stderr: true, ...options })
    return (await toArray(entries)).map(({ data }) => data.toString()).join('')
  }
  t.equal(await read({ tail: 2 }), '4\nerr\n')
  t.equal(await read({ tail: 0 }), '')
  t.equal(await read({ stdout: false }), 'err\n')
  t.match(await read({ tail: 1, timestamps: true }), /^\d{4}-\d\d-\d\dT[\d:.]+Z err\n$/)
  t.equal(await read({ until: Date.now() - 3_600_000 }), '')
})

t.test('an image in use stays', async (t) => {
  const engine = await bed(t).open()
  const { id } = await engine.create(PLAIN)
  await t.rejects(engine.images.remove('busybox'), code('CONFLICT'))
  await engine.remove(id)
  t.same(await engine.images.remove('busybox'), [{ Untagged: 'busybox:latest' }])
})

t.test('bad requests', async (t) => {
  const it = bed(t)
  const engine = await it.open()
  const refused: [Partial<CreateRequest>, string][] = [
    [{ image: 'nosuch' }, 'NO_SUCH_IMAGE'],
    [{ name: '../x' }, 'INVALID_ARGUMENT'],
    [{ name: 'x'.repeat(300) }, 'INVALID_ARGUMENT'],
    [{ command: ['a\0b'] }, 'INVALID_ARGUMENT'],
    [{ entrypoint: [''], command: [] }, 'INVALID_ARGUMENT'],
    [{ env: ['=x'] }, 'INVALID_ARGUMENT'],
    [{ workingDirectory: 'relative' }, 'INVALID_ARGUMENT'],
    [{ user: 'a:b:c' }, 'INVALID_ARGUMENT'],
    [{ user: '4294967295' }, 'INVALID_ARGUMENT'],
    [{ hostname: 'no spaces' }, 'INVALID_ARGUMENT'],
    [{ stopSignal: 'NOSUCH' }, 'INVALID_ARGUMENT'],
    [{ capAdd: ['NOSUCH'] }, 'INVALID_ARGUMENT'],
    [{ memory: 1024 }, 'MEMORY_SIZE'],
    [{ memory: 64 * 1024 ** 2, isolation: 'microvm' }, 'MEMORY_SIZE'],
    [{ memory: 1024 ** 5, isolation: 'microvm' }, 'MEMORY_SIZE'],
    [{ nanoCpus: -1 }, 'INVALID_ARGUMENT'],
    [{ nanoCpus: 5e9 }, 'INVALID_ARGUMENT'],
    [{ hypervisor: 'qemu' }, 'INVALID_ARGUMENT'],
  ]
  for (const [request, expected] of refused)
    await t.rejects(
      engine.create({ ...PLAIN, ...request }),
      code(expected),
      JSON.stringify(request).slice(0, 60),
    )
  it.host = { ...PLAIN_HOST, kvmError: 'EACCES' }
  await t.rejects(engine.create({ ...PLAIN, isolation: 'microvm', hypervisor: 'kvm' }), {
    code: 'KVM_UNAVAILABLE',
    message: /no permission .*--hypervisor qemu/,
  })
  t.same(await engine.list(), [], 'nothing is left of them')
})

t.test('who runs a microVM', async (t) => {
  const able = { ...PLAIN_HOST, virtualization: 'svm' as const }
  t.match(chooseHypervisor('auto', able), { hypervisor: 'kvm', reason: /svm/ })
  t.match(chooseHypervisor('auto', PLAIN_HOST), { hypervisor: 'qemu', reason: /neither vmx nor svm/ })
  t.match(chooseHypervisor('auto', { ...able, kvmError: 'ENOENT' }), { hypervisor: 'qemu', reason: /ENOENT/ })
  t.match(chooseHypervisor('qemu', able), { hypervisor: 'qemu' })
  t.throws(() => chooseHypervisor('kvm', { ...able, kvmError: 'ENOENT' }), code('KVM_UNAVAILABLE'))
  t.equal(virtualizationOf('flags\t\t: fpu vmx sse\n'), 'vmx')
  t.equal(virtualizationOf('flags\t\t: fpu svm_lock\n'), undefined)
  const engine = await bed(t).open()
  const { warnings } = await engine.create({ image: 'busybox' })
  t.match(warnings, [/^hypervisor=qemu: /])
})

t.test('limits', async (t) => {
  t.equal(memoryLimit(0, 'process', PLAIN_HOST), 0)
  t.equal(memoryLimit(0, 'microvm', PLAIN_HOST), 512 * 1024 ** 2)
  t.equal(memoryLimit(256 * 1024 ** 2 + 1, 'microvm', PLAIN_HOST), 256 * 1024 ** 2 + 4096)
  t.equal(cpuLimit(0, 'microvm', PLAIN_HOST), 1)
  t.equal(cpuLimit(1.5e9, 'process', PLAIN_HOST), 1.5)
})

t.test('signals', async (t) => {
  for (const [text, number] of [
    ['KILL', 9],
    ['sigterm', 15],
    ['15', 15],
    ['RTMIN+3', 37],
  ] as const)
    t.equal(signalNumber(text), number)
  for (const text of ['', '0', '65', 'NOSUCH', 'RTMAX+1', '-9', 'constructor'])
    t.throws(() => signalNumber(text), code('INVALID_ARGUMENT'), text)
})

t.test("Docker's bundle", async (t) => {
  const build = (request: Partial<CreateRequest>, image = {}): ReturnType<typeof buildBundle> =>
    buildBundle({ request: { ...PLAIN, ...request }, image, hostname: 'box', isolation: 'microvm' })
  const image = {
    Entrypoint: ['/entry'],
    Cmd: ['default'],
    Env: ['A=1', 'B=2'],
    User: 'app',
    WorkingDir: '/srv',
  }
  t.same(build({ command: [] }, image).process.args, ['/entry', 'default'])
  t.same(build({ command: ['x'] }, image).process.args, ['/entry', 'x'])
  t.same(build({ command: [], entrypoint: ['/mine'] }, image).process.args, ['/mine'])
  t.same(build({ command: ['x'], entrypoint: [] }, image).process.args, ['x'])
  const { process, annotations } = build({ env: ['A=3', 'B'] }, image)
  t.ok(process.env.includes('A=3') && !process.env.some((each) => each.startsWith('B=')))
  t.equal(process.cwd, '/srv')
  t.equal(annotations!['coracle.user'], 'app')
  const named = build({ user: '1000:50' }).process
  t.match(named.user, { uid: 1000, gid: 50 })
  t.same(named.capabilities!.effective, [])
  t.equal(named.capabilities!.bounding.length, 14)
  t.same(capabilitySet(['NET_ADMIN'], ['ALL'], 'process'), ['CAP_NET_ADMIN'])
  t.equal(capabilitySet(['ALL'], ['cap_sys_admin'], 'microvm').length, 40)

  const open = build({ privileged: true, groupAdd: ['audio', '7'], oomScoreAdj: -5 })
  t.equal(open.process.capabilities!.effective.length, 41)
  t.match(open.linux, {
    maskedPaths: [],
    readonlyPaths: [],
    resources: { devices: [{ allow: true, access: 'rwm' }] },
  })
  t.notOk('seccomp' in open.linux!)
  t.notOk(open.mounts!.some(({ type, options }) => type === 'sysfs' && options!.includes('ro')))
  t.equal(open.process.oomScoreAdj, -5)
  t.match(open.annotations, { 'coracle.user': '0', 'coracle.groups': 'audio,7' })
  const shared = build({ hostNamespaces: ['pid', 'ipc', 'uts'], cgroupNamespace: 'private' })
  t.notOk('hostname' in shared, 'it would be set on the host')
  t.same(shared.linux!['namespaces'], [{ type: 'mount' }, { type: 'network' }, { type: 'cgroup' }])
  t.match(
    shared.mounts!.find(({ destination }) => destination === '/dev/shm'),
    { type: 'bind', source: '/dev/shm' },
  )
  t.notOk(build({ noSharedMemory: true }).mounts!.some(({ destination }) => destination === '/dev/shm'))
  for (const wrong of [
    { groupAdd: ['a,b'] },
    { groupAdd: [''] },
    { oomScoreAdj: 1001 },
    { maskedPaths: ['proc'] },
  ])
    t.throws(() => build(wrong), code('INVALID_ARGUMENT'), JSON.stringify(wrong))
})

t.test("limits of cgroups by Docker's rules, and without a cgroup a warning", async (t) => {
  const host = { cpus: 4, unified: false, weighsBlocks: true }
  const all = {
    memoryReservation: 1 << 20,
    memorySwap: -1,
    memorySwappiness: 0,
    oomKillDisable: true,
    cpusetCpus: '0-1,3',
    cpusetMems: '0',
    blkioWeight: 500,
  }
  t.same(cgroupLimits(all, 1 << 26, 'process', host), {
    resources: {
      memory: { reservation: 1 << 20, swap: -1, swappiness: 0, disableOOMKiller: true },
      cpu: { cpus: '0-1,3', mems: '0' },
      blockIO: { weight: 500 },
    },
    kept: all,
    warnings: [],
  })
  t.equal(cgroupLimits(all, 1 << 26, 'process', { ...host, unified: true }).warnings.length, 2)
  const weightless = cgroupLimits(all, 1 << 26, 'process', { ...host, weighsBlocks: false })
  t.match(weightless.warnings, [/^--blkio-weight is discarded: this host's kernel/])
  t.notOk('blockIO' in weightless.resources)
  const guest = cgroupLimits(all, 1 << 26, 'microvm', host)
  t.same(guest.resources, {})
  t.equal(guest.warnings.length, 6, 'it has no swap, so that is kept')
  for (const [wrong, memory] of [
    [{ memoryReservation: 3 }, 2],
    [{ memorySwap: 5 }, 0],
    [{ memorySwap: 5 }, 6],
    [{ memorySwappiness: 101 }, 0],
    [{ cpusetCpus: '4' }, 0],
    [{ cpusetCpus: '0-' }, 0],
    [{ cpusetMems: 'x' }, 0],
    [{ blkioWeight: 9 }, 0],
    [{ blkioWeight: 1001 }, 0],
  ] as const)
    t.throws(
      () => cgroupLimits(wrong, memory, 'process', host),
      code('INVALID_ARGUMENT'),
      JSON.stringify(wrong),
    )
})

t.test('what of the host a container shares, and what a microVM cannot', async (t) => {
  for (const wish of [
    { hostNamespaces: ['pid'] },
    { hostNamespaces: ['ipc'] },
    { hostNamespaces: ['uts'] },
    { cgroupNamespace: 'host' },
    { ipcShareable: true },
    { ipcContainer: 'x' },
    { deviceFiles: [deviceFile('/dev/null', '', '')] },
  ] satisfies Partial<CreateRequest>[]) {
    t.throws(
      () => checkSharing({ ...PLAIN, ...wish }, 'microvm'),
      /--isolation process/,
      JSON.stringify(wish),
    )
    t.doesNotThrow(() => checkSharing({ ...PLAIN, ...wish }, 'process'))
  }
  t.throws(() => checkSharing({ ...PLAIN, diskSize: 1 << 30 }, 'process'), /--isolation microvm/)
  t.throws(() => checkSharing({ ...PLAIN, diskSize: 1 << 20 }, 'microvm'), /16 MiB/)
  t.throws(() => checkSharing({ ...PLAIN, hostNamespaces: ['uts'], hostname: 'x' }, 'process'), /conflicting/)
  t.same(deviceFile('/dev/../dev/kvm', '/dev/x', 'r'), {
    source: '/dev/kvm',
    destination: '/dev/x',
    access: 'r',
  })
  for (const [source, place, access] of [
    ['dev/kvm', '', ''],
    ['/dev/kvm', 'x', ''],
    ['/dev/kvm', '', 'x'],
  ] as const)
    t.throws(() => deviceFile(source, place, access), code('INVALID_ARGUMENT'))
})

t.test('frames come out as they went in, however they are cut', async (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.integer({ min: 0, max: 3 }), fc.uint8Array({ maxLength: 40 }))),
      fc.array(fc.integer({ min: 1, max: 20 }), { minLength: 1 }),
      (frames, cuts) => {
        const bytes = Buffer.concat(frames.map(([stream, data]) => frame(stream, data)))
        const parser = new FrameParser()
        const out: number[][] = [[], [], [], []]
        for (let at = 0, turn = 0; at < bytes.length; turn++) {
          const end = at + cuts[turn % cuts.length]!
          parser.push(bytes.subarray(at, end), (stream, data) => out[stream]!.push(...data))
          at = end
        }
        const expected: number[][] = [[], [], [], []]
        for (const [stream, data] of frames) expected[stream]!.push(...data)
        return JSON.stringify(out) === JSON.stringify(expected)
      },
    ),
  )
  t.throws(() => new FrameParser().push(Buffer.from('HTTP/1.1 400'), () => undefined))
})

t.test('health checks: whose, what they refuse, and who carries them out', async (t) => {
  const second = 1e9
  const image = { Test: ['CMD', 'look'], Interval: 2 * second, Retries: 5 }
  t.same(settleHealthCheck({ Timeout: second, Retries: 0 }, image), {
    ...{ test: ['CMD', 'look'], interval: 2000, timeout: 1000 },
    ...{ startPeriod: 0, startInterval: 5000, retries: 5 },
  })
  t.match(settleHealthCheck({ Test: ['CMD-SHELL', 'x'] }, image), {
    test: ['CMD-SHELL', 'x'],
    interval: 2000,
  })
  t.match(settleHealthCheck({ Test: ['CMD', 'x'] }, undefined), {
    interval: 30_000,
    timeout: 30_000,
    retries: 3,
  })
  t.equal(settleHealthCheck({ Test: ['NONE'] }, image), undefined)
  t.equal(settleHealthCheck({ Interval: second }, undefined), undefined)
  const bad = [
    { Test: ['FOO', 'x'] },
    { Test: ['CMD'] },
    { Test: ['CMD', 'a\0'] },
    { Interval: 5 },
    { Retries: -1 },
  ]
  for (const check of bad) t.throws(() => settleHealthCheck(check, image), code('INVALID_ARGUMENT'))
  const it = bed(t)
  const engine = await it.open()
  const request = { ...PLAIN, healthcheck: image, command: ['sleep', '1000'] }
  t.match((await engine.create(request)).warnings, [/by the daemon, and none runs/])
  await engine.reconcile()
  t.teardown(() => engine.close())
  const { id, warnings } = await engine.create({ ...request, healthcheck: { ...image, Interval: 1e6 } })
  t.same(warnings, [])
  const changes = engine.events({ signal: never })
  await engine.start(id)
  t.match(engine.health(id), { status: 'starting', failingStreak: 0 })
  // A fake has no commands: each check fails.
  for await (const { action } of changes) if (action.startsWith('health_status')) break
  t.match(engine.health(id), { status: 'unhealthy', failingStreak: 5 })
  t.match(engine.health(id)!.results.at(-1), { exitCode: -1, output: 'no exec here' })
  t.equal(engine.health(id)!.results.length, 5)
  await engine.stop(id)
  t.equal(engine.health(id)!.status, 'unhealthy')
  await engine.remove(id)
  t.equal(engine.health(id), undefined)
})

t.test('restart policies', async (t) => {
  const it = bed(t)
  const cli = await it.open()
  const always = { ...PLAIN, restart: { name: 'always', maximumRetryCount: 0 } } as const
  t.match((await cli.create(always)).warnings, [/carried out by the daemon/])

  const engine = await it.open()
  await engine.reconcile()
  t.teardown(() => engine.close())
  const lives = join(it.root, 'lives')
  const failing = await engine.create({
    ...PLAIN,
    name: 'failing',
    command: ['sh', '-c', `echo x >> ${lives}; exit 3`],
    restart: { name: 'on-failure', maximumRetryCount: 2 },
  })
  const seen = readEvents(engine, 'die', 3)
  await engine.start(failing.id)
  for (const { attributes } of await seen) t.match(attributes, { name: 'failing', exitCode: '3' })
  t.equal(readFileSync(lives, 'utf8'), 'x\n'.repeat(3), 'one start by hand, two by the policy')
  t.match(await engine.inspect(failing.id), { restartCount: 2, state: { status: 'exited' } })
  t.notOk(engine.isRestarting(failing.id), 'and no more')

  const { id } = await engine.create({ ...always, name: 'loop', command: ['sleep', '1000'] })
  await engine.start(id)
  const started = readEvents(engine, 'start', 1)
  await it.driver.sandboxes.get(id)!.kill(9)
  await started
  t.match(await engine.inspect(id), { state: { status: 'running' }, restartCount: 1 })
  await engine.stop(id, { timeout: 1 })
  t.match(await engine.inspect(id), { state: { status: 'exited' }, manuallyStopped: true })
  t.notOk(engine.isRestarting(id), 'a user ended it')

  await engine.start(id)
  t.match(await engine.inspect(id), { restartCount: 0, manuallyStopped: false }, 'by hand counts from 0')
  const died = readEvents(engine, 'die', 1)
  await it.driver.sandboxes.get(id)!.kill(9)
  await died
  t.ok(engine.isRestarting(id))
  await engine.stop(id)
  t.notOk(engine.isRestarting(id), 'a stop ends the wait too')
  engine.close()

  const next = await it.open()
  t.teardown(() => next.close())
  await next.reconcile()
  t.ok(next.isRestarting(id), 'always: a new daemon starts it all the same')
  t.notOk(next.isRestarting(failing.id))
  await next.remove(id, true)
  t.notOk(next.isRestarting(id))
})

async function readEvents(engine: Engine, action: string, count: number): Promise<EngineEvent[]> {
  const all = []
  const signal = AbortSignal.timeout(20_000)
  for await (const event of engine.events({ signal })) {
    if (event.action === action && all.push(event) === count) break
  }
  return all
}

t.test('events: the past, the present, an end', async (t) => {
  const it = bed(t)
  const engine = await it.open()
  const before = Date.now()
  const { id } = await engine.create({ ...PLAIN, name: 'one', labels: { a: 'b' } })
  const live = readEvents(engine, 'destroy', 1)
  await engine.start(id)
  await (
    await engine.wait(id, 'not-running')
  ).done
  await engine.rename(id, '/two')
  await t.rejects(engine.rename(id, 'two'), code('INVALID_ARGUMENT'))
  await t.rejects(engine.rename(id, 'a b'), code('INVALID_ARGUMENT'))
  const other = await engine.create({ ...PLAIN, name: 'other' })
  await t.rejects(engine.rename(id, 'other'), code('CONFLICT'))
  t.same(
    (await engine.prune(({ name }) => name === 'two')).ids,
    [id],
    'what has ended goes, where the filter says so',
  )
  t.match(await live, [{ type: 'container', id, attributes: { name: 'two', a: 'b', image: 'busybox' } }])
  const past = engine.events({ since: before, until: Date.now(), signal: AbortSignal.timeout(20_000) })
  t.same(
    (await toArray(past)).map(({ id, action }) => [id, action]),
    [
      [id, 'create'],
      [id, 'start'],
      [id, 'die'],
      [id, 'rename'],
      [other.id, 'create'],
      [id, 'destroy'],
    ],
  )
  const controller = new AbortController()
  const reading = toArray(engine.events({ signal: controller.signal }))
  controller.abort()
  t.same(await reading, [], 'a reader that goes ends its stream')
})
