import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { BoxPool, launchSandbox, reap } from '../../src/isolation/index.js'
import { allocateUser } from '../../src/isolation/box/uid.js'
import { gone } from '../../src/isolation/liveness.js'
import { choose, specOf, traces } from './sandbox.js'

if (process.getuid?.() !== 0) {
  t.plan(0, 'namespaces with a user of their own are made by root')
  process.exit(0)
}

const scratch = mkdtempSync(join(tmpdir(), 'coracle-pool-'))
const log = openSync(join(scratch, 'log'), 'a')
t.teardown(() => {
  closeSync(log)
  rmSync(scratch, { recursive: true })
})
const folder = join(scratch, 'boxes')

t.test('boxes are kept, taken and made up for, and end with the pool', async (t) => {
  mkdirSync(join(folder, '999999999'), { recursive: true })
  const pool = new BoxPool({ size: 2, folder, pause: 0 })
  t.notOk(existsSync(join(folder, '999999999')), 'what a killed pool left is removed')
  await pool.filled()
  t.equal(pool.idle.length, 2)
  const first = await pool.take(join(scratch, 'x'), log)
  t.notOk(existsSync(join(scratch, 'x')), 'nothing was started for it')
  await new Promise((resolve) => setImmediate(resolve))
  await new Promise((resolve) => setTimeout(resolve, 0))
  await pool.filled()
  t.equal(pool.idle.length, 2)
  const second = await pool.take(join(scratch, 'x'), log)
  const others = [first, second]
  for (const box of others) await box.end()
  await pool[Symbol.asyncDispose]()
  t.equal(pool.idle.length, 0)
  t.notOk(others.some(({ alive }) => alive))
  t.same(readdirSync(folder), [])
})

t.test('a pool of none starts what is asked for', async (t) => {
  await using pool = new BoxPool({ size: 0, folder })
  await pool.filled()
  t.equal(pool.idle.length, 0)
  const box = await pool.take(join(scratch, 'y'), log)
  t.ok(box.alive)
  await box.end()
  t.equal(pool.idle.length, 0)
})

t.test('a box that was killed is not given out', async (t) => {
  await using pool = new BoxPool({ size: 1, folder, pause: 60_000 })
  await pool.filled()
  const [killed] = pool.idle
  process.kill(killed!.pid, 'SIGKILL')
  await gone([killed!])
  const fresh = await pool.take(join(scratch, 'fresh'), log)
  t.ok(fresh.alive)
  t.not(fresh.identity.pid, killed!.pid)
  await fresh.end()
})

const noKvm = existsSync('/dev/kvm') ? false : 'this host has no /dev/kvm'
t.test('a microVM gets one that waits, with limits of its own', { skip: noKvm }, async (t) => {
  choose({ isolation: 'microvm', hypervisor: 'kvm' })
  await using pool = new BoxPool({ size: 1, folder, pause: 60_000 })
  await pool.filled()
  const spec = specOf(['true'], { memory: 192 << 20, diskSize: 64 << 20, cold: true })
  const sandbox = await launchSandbox(spec, { boxes: pool.take })
  t.equal(pool.idle.length, 0)
  t.match(readFileSync(`/proc/${sandbox.pid}/cgroup`, 'utf8'), `/coracle-${spec.id}`)
  await sandbox.destroy()
  t.strictSame(traces(spec), [])
})

t.test('a launch that is killed leaves nothing, at whatever point', { skip: noKvm }, async (t) => {
  choose({ isolation: 'microvm', hypervisor: 'kvm' })
  const free = lowestFree()
  const launch = new URL('../../src/isolation/index.js', import.meta.url).href
  for (const delay of [0, 30, 100, 200, 400, 800]) {
    const spec = specOf(['true'], { memory: 192 << 20, diskSize: 64 << 20, cold: true })
    const script = `
      const { launchSandbox } = await import(${JSON.stringify(launch)})
      process.stdout.write('up')
      await launchSandbox(${JSON.stringify(spec)})
      setInterval(() => undefined, 1000)`
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', log],
      env: { ...process.env, NODE_OPTIONS: '' },
    })
    await once(child.stdout!, 'data')
    await new Promise((resolve) => setTimeout(resolve, delay))
    child.kill('SIGKILL')
    await once(child, 'exit')
    await reap(spec)
    t.strictSame(traces(spec), [], `after ${delay} ms`)
  }
  // One that crun was still starting ends by itself.
  for (let patience = 600; lowestFree() !== free && patience > 0; patience--)
    await new Promise((resolve) => setTimeout(resolve, 100))
  t.equal(lowestFree(), free, 'no user is taken')
})

function lowestFree(): number {
  const { id, lock } = allocateUser()
  lock.close()
  return id
}
