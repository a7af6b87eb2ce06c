import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { BoxPool, type Sandbox, type SandboxSpec, launchSandbox } from '../../src/isolation/index.js'
import { paths } from '../../src/paths.js'
import { OUTPUT, runs, shown, specOf, traces } from './sandbox.js'

const MEMORY = 192 * 2 ** 20
const DISK = 64 * 2 ** 20
/** What may tell two guests apart. */
const WHO =
  'cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | sha256sum; hostname; cat /proc/uptime; echo done; read line'

interface Guest {
  readonly spec: SandboxSpec
  readonly sandbox: Sandbox
  /** What it said. */
  readonly text: string
}

async function start(hostname: string, more: Partial<SandboxSpec> = {}, pool?: BoxPool): Promise<Guest> {
  const size = { memory: MEMORY, diskSize: DISK }
  const spec = specOf(['sh', '-c', WHO], { ...size, hostname, openStdin: true, ...more })
  const sandbox = await launchSandbox(spec, pool ? { boxes: pool.take } : {})
  const stream = await sandbox.attach(OUTPUT)
  const said = shown(stream, 'done')
  // Why it ended is the start's to say.
  said.catch(() => undefined)
  try {
    await sandbox.start()
    return { spec, sandbox, text: await said }
  } catch (error) {
    // Of a guest that ended: how.
    throw new Error(`${(error as Error).message}; ${JSON.stringify(await sandbox.wait())}`)
  }
}

/** Where the guest's memory comes from, if from a file. */
const template = ({ sandbox }: Guest): string | undefined =>
  /rw-p .* (\/.*\/memory)( \(deleted\))?$/m.exec(readFileSync(`/proc/${sandbox.pid}/maps`, 'latin1'))?.[1]

async function end(t: Test, guests: readonly Guest[]): Promise<void> {
  for (const { spec, sandbox } of guests) {
    await sandbox.destroy()
    await sandbox.wait()
    t.strictSame(traces(spec), [])
  }
}

/** Of one template, and yet nobody is another. */
function testStrangers(t: Test, guests: readonly Guest[]): void {
  const files = new Set(guests.map(template))
  t.equal(files.size, 1)
  t.match([...files][0], /\/templates\/[0-9a-f]{32}\/memory$/)
  for (const pattern of [/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/, /[0-9a-f]{64}/]) {
    const values = guests.map(({ text }) => pattern.exec(text)?.[0])
    t.equal(new Set(values).size, guests.length, values.join(' '))
  }
  for (const { text, spec } of guests) t.match(text, `${spec.hostname}\n`)
}

/** Tests that so many start at once from one template, and what each says is right. */
export function testMany(count: number): void {
  t.test(`${count} clones at once map one template, and are strangers all the same`, async (t) => {
    const started = await Promise.allSettled(Array.from({ length: count }, (_, i) => start(`clone${i}`)))
    const guests = started.map((each) => {
      if (each.status === 'rejected') throw each.reason
      return each.value
    })
    testStrangers(t, guests)
    await end(t, guests)
  })
}

/** Tests how guests start in processes that a daemon keeps. */
export function testPool(): void {
  t.test('a clone in a process that waited with a guest is as any other', async (t) => {
    await using pool = new BoxPool({ size: 1, folder: join(runs, 'pool'), pause: 600_000 })
    await pool.filled()
    const guests: Guest[] = []
    for (const name of ['before', 'ready']) {
      const [waiting] = pool.idle
      guests.push(await start(name, {}, pool))
      t.equal(guests.at(-1)!.sandbox.pid, waiting!.pid)
      await pool.filled()
    }
    testStrangers(t, guests)
    const [waiting] = pool.idle
    const cold = await start('cold', { cold: true }, pool)
    t.equal(template(cold), undefined, 'one that is to boot has no template')
    t.not(cold.sandbox.pid, waiting!.pid, 'nor the process of one that has')
    t.strictSame(pool.idle, [], 'which makes room for one that fits')
    await end(t, [...guests, cold])
  })
}

/** Tests how guests start from templates, CORACLE_TEST_CLONES of them at once. */
export function testClones(): void {
  testMany(Number(process.env['CORACLE_TEST_CLONES'] ?? 3))

  t.test('a damaged template is thrown away and made anew, under who still runs from it', async (t) => {
    const before = await start('before')
    const store = join(paths.cache, 'templates')
    const names = readdirSync(store).filter((name) => /^[0-9a-f]{32}$/.test(name))
    for (const name of names) writeFileSync(join(store, name, 'state'), 'damaged')
    // A maker that was killed leaves this.
    writeFileSync(join(store, `${'0'.repeat(32)}.new`), '')
    const after = await start('after')
    t.not(template(after), undefined)
    t.equal(existsSync(join(store, `${'0'.repeat(32)}.new`)), false)
    await end(t, [before, after])
  })
}
