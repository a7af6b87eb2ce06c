import { mkdirSync, readFileSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import t from 'tap'
import { type Sandbox, type SandboxSpec, launchSandbox } from '../../src/isolation/index.js'
import { OUTPUT, runs, shown, specOf, traces } from './sandbox.js'

const MEMORY = 192 * 2 ** 20
const DISK = 64 * 2 ** 20
/** Counts lines, and says each time what may tell two guests apart. */
const COUNT = [
  'echo 0123456789abcdef0123456789abcdef >/etc/machine-id; n=0; echo ready',
  'while read line; do n=$((n+1)); echo count $n; head -c 16 /dev/urandom | sha256sum; hostname',
  'cat /etc/machine-id; echo file $n >>/kept; cat /kept; echo "done $n"; done',
].join('; ')

interface Counter {
  readonly spec: SandboxSpec
  readonly sandbox: Sandbox
  readonly stream: Duplex
}

async function start(spec: SandboxSpec, ready?: string): Promise<Counter> {
  const sandbox = await launchSandbox(spec)
  const stream = await sandbox.attach({ ...OUTPUT, stdin: true })
  const said = ready === undefined ? undefined : shown(stream, ready)
  await sandbox.start()
  await said
  return { spec, sandbox, stream }
}

/** What it says to a line. */
async function count({ stream }: Counter, n: number): Promise<string> {
  const said = shown(stream, `done ${n}`)
  stream.write('\n')
  return said
}

async function end({ sandbox, spec, stream }: Counter): Promise<string[]> {
  stream.destroy()
  await sandbox.destroy()
  await sandbox.wait()
  return traces(spec)
}

const fresh = (hostname: string, more: Partial<SandboxSpec> = {}): SandboxSpec =>
  specOf(['sh', '-c', COUNT], { memory: MEMORY, diskSize: DISK, openStdin: true, hostname, ...more })

/** Where the guest's memory comes from. */
const memoryOf = ({ sandbox }: Counter): string | undefined =>
  /rw-p .* (\/.*\/memory)( \(deleted\))?$/m.exec(readFileSync(`/proc/${sandbox.pid}/maps`, 'latin1'))?.[1]

/** Tests how containers are saved and go on as others. */
export function testSnapshots(): void {
  t.test('two go on from where one was saved, as strangers', async (t) => {
    const first = await start(fresh('first'), 'ready')
    t.match(await count(first, 1), /count 1/)
    const folder = join(runs, 'saved')
    mkdirSync(folder)
    await first.sandbox.snapshot(folder)
    t.strictSame(readdirSync(folder).sort(), ['disk', 'memory', 'state', 'tools'])
    const { size, blocks } = statSync(join(folder, 'memory'))
    t.equal(size, MEMORY)
    t.ok(blocks * 512 < MEMORY, `${blocks * 512} bytes of memory on the disk`)
    const clones = await Promise.all(
      ['second', 'third'].map((hostname) => start(fresh(hostname, { from: folder }))),
    )
    for (const clone of clones) t.match(memoryOf(clone), /\/saved\/memory$/, 'the memory is mapped, not read')
    const texts = await Promise.all([first, ...clones].map((each) => count(each, 2)))
    for (const text of texts) {
      t.match(text, /count 2/)
      t.match(text, /file 1\n.*file 2/s, 'the disk is as it was')
    }
    for (const pattern of [/[0-9a-f]{64}/, /\b[0-9a-f]{32}\n/, /first|second|third/]) {
      const values = texts.map((text) => pattern.exec(text)?.[0])
      t.equal(new Set(values).size, 3, values.join(' '))
    }
    t.match(texts[0], '0123456789abcdef0123456789abcdef', 'the first one stays who it is')
    for (const each of [first, ...clones]) t.strictSame(await end(each), [])
  })
}
