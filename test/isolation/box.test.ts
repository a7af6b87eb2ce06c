import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, chownSync, closeSync, existsSync, mkdirSync, mkdtempSync, openSync } from 'node:fs'
import { readFileSync, readdirSync, readlinkSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { Fd, O_RDONLY, detachedFolder } from '@coracle/sys'
import { Box } from '../../src/isolation/box/box.js'
import { NODE_FLAGS } from '../../src/isolation/box/config.js'
import { boxRootWith } from '../../src/isolation/box/root.js'
import { allocateUser } from '../../src/isolation/box/uid.js'
import { Handover } from '../../src/isolation/handover.js'
import { gone, identify } from '../../src/isolation/liveness.js'
import { joinCgroup, killCgroups, removeCgroups } from '../../src/isolation/process/cgroup.js'

if (process.getuid?.() !== 0) {
  t.plan(0, 'namespaces with a user of their own are made by root')
  process.exit(0)
}

const scratch = mkdtempSync(join(tmpdir(), 'coracle-box-'))
chmodSync(scratch, 0o755)
const log = openSync(join(scratch, 'log'), 'a+')
t.teardown(() => {
  closeSync(log)
  rmSync(scratch, { recursive: true })
})
const said = (): string => readFileSync(join(scratch, 'log'), 'utf8')
const lowestFree = (): number => {
  const { id, lock } = allocateUser()
  lock.close()
  return id
}

/** Where a link leads, without numbers at its end; nothing where it went meanwhile. */
function linkOf(path: string): string[] {
  try {
    return [readlinkSync(path).replace(/\[?\d+\]?$/, '')]
  } catch {
    return []
  }
}

interface Report {
  tried: { what: string; got: string; expected: string; right: boolean }[]
  processes: string[]
  interfaces: string[]
  devices: string[]
  root: string[]
  status: Record<string, string>
}

t.test("a box's Node takes the compiled form of its own modules: no flag of V8's makes it another's", (t) => {
  const tag = (flags: readonly string[]): string => {
    const words = [...flags, '-p', 'v8.cachedDataVersionTag()']
    return execFileSync(process.execPath, words, { encoding: 'utf8', env: {} })
  }
  t.not(tag(['--max-semi-space-size=1']), tag([]), 'such a flag would be seen')
  t.equal(tag(NODE_FLAGS), tag([]))
  t.end()
})

t.test('a machine that was taken over can do nothing of all this', async (t) => {
  const program = '/app/hostile.js'
  const source = fileURLToPath(new URL('hostile.js', import.meta.url))
  const root = boxRootWith([{ source, target: program }])
  const box = await Box.start(join(scratch, 'start'), log, { root, entry: program })
  const id = 'b0c5'.repeat(16)
  try {
    // Everybody on the host may read the neighbour's: what keeps it away is that it cannot be named.
    for (const name of ['mine', 'neighbour']) mkdirSync(join(scratch, name), { mode: 0o755 })
    writeFileSync(join(scratch, 'neighbour', 'secret'), 'secret', { mode: 0o644 })
    writeFileSync(join(scratch, 'mine', 'root-only'), 'secret', { mode: 0o600 })
    chownSync(join(scratch, 'mine'), box.userId, box.userId)
    const handover = new Handover()
    handover.add('folder', detachedFolder(join(scratch, 'mine')))
    handover.add('readable', Fd.open(join(scratch, 'neighbour', 'secret'), O_RDONLY))
    joinCgroup({ id }, box.identity.pid, { memory: 512 << 20, cpus: 1, pids: 64 })
    const answer = await box.fill(handover)
    handover[Symbol.dispose]()
    if (answer === undefined) return void t.fail(`no answer: ${said()}`)
    const report = JSON.parse(answer) as Report
    t.ok(report.tried.length > 120, `${report.tried.length} attempts`)
    for (const { what, got, expected, right } of report.tried)
      t.ok(right, `${what}: ${got}${right ? '' : ` in place of ${expected}`}`)
    t.same(report.processes, ['1'], 'no process but itself')
    t.same(report.interfaces, ['lo'], 'no network')
    t.same(report.root, ['app', 'bin', 'dev', 'lib', 'lib64', 'proc', 'tmp'])
    for (const name of report.devices)
      t.match(
        name,
        /^(console|core|fd|full|mqueue|null|ptmx|pts|random|shm|std(in|out|err)|tty|urandom|zero)$/,
      )
    for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'])
      t.equal(report.status[set], '0000000000000000', set)
    t.match(report.status, { NoNewPrivs: '1', Seccomp: '2', Seccomp_filters: '2' })
  } finally {
    await box.end()
    await killCgroups({ id })
    await removeCgroups({ id })
  }
})

t.test('an empty box: whose it is, and what it holds', async (t) => {
  const free = lowestFree()
  const boxes = await Promise.all([1, 2].map((n) => Box.start(join(scratch, `two-${n}`), log)))
  t.same(boxes.map(({ userId }) => userId).sort(), [free, free + 1], 'a user of its own for each')
  for (const { identity, userId } of boxes) {
    const status = (): string => readFileSync(`/proc/${identity.pid}/status`, 'latin1')
    t.match(status(), `Uid:\t${userId}\t${userId}\t${userId}\t${userId}\n`)
    for (const space of ['user', 'mnt', 'net', 'pid', 'ipc', 'uts', 'cgroup'])
      t.not(readlinkSync(`/proc/${identity.pid}/ns/${space}`), readlinkSync(`/proc/self/ns/${space}`), space)
    // It has loaded its program when it forbids itself to load another: a second filter.
    while (!/^Seccomp_filters:\t2$/m.test(status())) await new Promise((resolve) => setTimeout(resolve, 5))
    // Its other threads may be loading theirs still.
    const held = readdirSync(`/proc/${identity.pid}/fd`).flatMap((fd) =>
      linkOf(`/proc/${identity.pid}/fd/${fd}`),
    )
    const own = /^(\/dev\/null|pipe:|socket:|anon_inode:|\/dev\/urandom|\/app\/)|coracle-box-.*\/log$/
    for (const what of held) t.match(what, own, what)
  }
  t.notOk(existsSync(join(scratch, 'two-1')), 'nothing is left of the start')
  for (const box of boxes) await box.end()
  t.notOk(boxes.some(({ alive }) => alive))
  t.equal(lowestFree(), free, 'its user is free again')
})

t.test('who is killed while it has empty boxes leaves none', async (t) => {
  const free = lowestFree()
  const script = `
    const { Box } = await import(${JSON.stringify(new URL('../../src/isolation/box/box.js', import.meta.url).href)})
    const { identity } = await Box.start(${JSON.stringify(join(scratch, 'orphan'))}, 1)
    process.stderr.write(identity.pid + '\\n')
    setInterval(() => undefined, 1000)`
  const owner = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', log, 'pipe'],
    env: { ...process.env, NODE_OPTIONS: '' },
  })
  const [line] = (await once(owner.stderr!, 'data')) as [Buffer]
  const box = identify(Number(line.toString()))
  if (!box) return void t.fail(`no box: ${line.toString()} ${said()}`)
  owner.kill('SIGKILL')
  await gone([box], 60_000)
  t.equal(identify(box.pid)?.startTime === box.startTime, false)
  t.equal(lowestFree(), free)
})
