import { createHash } from 'node:crypto'
import {
  appendFileSync,
  closeSync,
  existsSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import type { DeviceSpec } from '../../src/vmm/device-thread/device-spec.js'
import { Machine, type MachineConfig, type RestoreConfig, type SnapshotSink } from '../../src/vmm/machine.js'
import { GENERATION_ID, MIB } from '../../src/vmm/memory/layout.js'
import { Snapshot, snapshotFiles } from '../../src/vmm/snapshot/snapshot.js'
import { assemble, noKvm } from '../kvm/guest.js'
import { ENTRY, kernelImage, scratch } from './kernels.js'

const skip = noKvm()

/** A guest that counts on its console, and what it has sent. */
class Counter {
  bytes = Buffer.alloc(0)
  #waiting: { count: number; done: () => void } | undefined
  readonly take = (part: Uint8Array): void => {
    this.bytes = Buffer.concat([this.bytes, part])
    if (this.#waiting && this.bytes.length >= this.#waiting.count) this.#waiting.done()
  }
  /** Resolves when that many bytes have come. */
  async have(count: number): Promise<void> {
    if (this.bytes.length >= count) return
    await new Promise<void>((done) => (this.#waiting = { count, done }))
  }
  /** Whether each byte is one more than that before. */
  get inOrder(): boolean {
    return this.bytes.every((byte, i) => byte === ((this.bytes[0]! + i) & 0xff))
  }
}

const DEVICES: readonly DeviceSpec[] = [{ kind: 'rng' }, { kind: 'vsock', cid: 3 }]

async function clone(folder: string, more: Partial<RestoreConfig> = {}): Promise<Machine> {
  using snapshot = Snapshot.open(snapshotFiles(folder))
  return await Machine.restore({ snapshot, devices: DEVICES, ...more })
}

/** Bytes come in batches that end with a newline, which is one of the numbers. */
const ROUND = 256

async function counting(
  t: { teardown(end: () => unknown): void },
  more: Partial<MachineConfig> = {},
): Promise<{ machine: Machine; counter: Counter; folder: string }> {
  const file = scratch(t)
  const kernel = file('kernel', kernelImage(assemble('ticks', ENTRY)))
  const counter = new Counter()
  const machine = await Machine.create({
    kernel,
    memory: 64 * MIB,
    cpus: 1,
    devices: DEVICES,
    onConsole: counter.take,
    ...more,
  })
  t.teardown(() => machine.close())
  machine.start()
  await counter.have(11)
  return { machine, counter, folder: join(kernel, '..') }
}

t.test('a machine goes on where it was saved, and so does its clone', { skip }, async (t) => {
  const { machine, counter, folder } = await counting(t)
  const snapshot = join(folder, 'saved')
  await machine.snapshot(snapshot, { details: { name: 'test' } })
  const seen = counter.bytes.length
  t.same(readdirSync(folder).sort(), ['kernel', 'saved'], 'nothing beside it')
  const { size, blocks } = statSync(join(snapshot, 'memory'))
  t.equal(size, 64 * MIB)
  t.ok(blocks * 512 < 4 * MIB, `${blocks * 512} bytes on disk: only what is not zero`)

  const clones = [new Counter(), new Counter()]
  for (const [i, each] of clones.entries()) {
    await using restored = await clone(snapshot, { onConsole: each.take, copyMemory: i === 1 })
    t.equal(each.bytes.length, 0, 'it stands still until it is started')
    restored.start()
    await each.have(ROUND)
    t.ok(each.inOrder, 'no number is lost or comes twice')
  }
  // The batch that was under way belongs to both.
  const first = clones[0]!.bytes[0]!
  await counter.have(seen + ROUND)
  t.ok(counter.inOrder, 'the first one went on')
  t.equal(first, clones[1]!.bytes[0], 'both clones begin at the same place')
  t.ok((first - seen) % 256 >= 0)
  await machine.close()
  using kept = Snapshot.open(snapshotFiles(snapshot))
  kept.verify()
  t.equal(kept.details.get('name').string(), 'test')
})

t.test('each machine that goes on is of a generation of its own', { skip }, async (t) => {
  const { machine, folder } = await counting(t)
  const saved = ['first', 'second', 'third'].map((name) => join(folder, name))
  await machine.snapshot(saved[0]!)
  await machine.close()
  for (const path of saved.slice(1)) {
    await using restored = await clone(saved[0]!)
    restored.start()
    await restored.snapshot(path)
  }
  const ids = saved.map((path) =>
    readFileSync(join(path, 'memory')).toString('hex', GENERATION_ID, GENERATION_ID + 16),
  )
  t.equal(new Set([...ids, '0'.repeat(32)]).size, 4, ids.join(' '))
})

t.test('a machine is saved in pieces, with a hole among its devices', { skip }, async (t) => {
  const { machine, counter, folder } = await counting(t, {
    devices: [{ kind: 'rng' }, { kind: 'rng' }, { kind: 'vsock', cid: 3 }],
  })
  await machine.unplug(machine.devices[1]!)
  const snapshot = join(folder, 'sent')
  mkdirSync(snapshot)
  const files = snapshotFiles(snapshot)
  const memory = openSync(files.memory, 'w')
  let before = 0
  const sink: SnapshotSink = {
    begin: (size) => {
      ftruncateSync(memory, size)
      before = counter.bytes.length
    },
    memory: async (offset, bytes) => void writeSync(memory, bytes, 0, bytes.length, offset),
    state: async (bytes) => {
      writeFileSync(files.state, bytes)
      await new Promise((done) => setImmediate(done))
      t.ok(counter.bytes.length - before <= ROUND, 'it stands still')
    },
  }
  await machine.send(sink, { name: 'sent' })
  closeSync(memory)
  const again = new Counter()
  await using restored = await clone(snapshot, { onConsole: again.take })
  t.same(
    restored.devices.map(({ slot }) => slot),
    [1, 3],
    'each in its slot',
  )
  t.equal((await restored.plug({ kind: 'rng' })).slot, 2, 'the hole is free')
  restored.start()
  await again.have(ROUND)
  t.ok(again.inOrder)
  await counter.have(counter.bytes.length + ROUND)
  t.ok(counter.inOrder, 'the first one went on')

  await t.rejects(
    machine.send({ ...sink, begin: () => undefined, memory: () => Promise.reject(new Error('full')) }),
    /full/,
  )
  await counter.have(counter.bytes.length + ROUND)
  t.ok(counter.inOrder, 'also after a failure')
})

t.test('a clone can be saved again: what it wrote, and what it never touched', { skip }, async (t) => {
  const { machine, folder } = await counting(t)
  const [first, second] = [join(folder, 'first'), join(folder, 'second')]
  await machine.snapshot(first)
  await machine.close()
  const counter = new Counter()
  {
    await using machine = await clone(first, { onConsole: counter.take })
    machine.start()
    await counter.have(ROUND)
    await machine.snapshot(second)
  }
  const before = readFileSync(join(first, 'memory'))
  const after = readFileSync(join(second, 'memory'))
  const changed = Array.from({ length: before.length / 4096 }, (_, page) => page * 4096).filter(
    (at) => before.compare(after, at, at + 4096, at, at + 4096) !== 0,
  )
  t.ok(changed.length >= 1 && changed.length < 10, `${changed.length} pages differ`)
  rmSync(first, { recursive: true })
  const again = new Counter()
  await using last = await clone(second, { onConsole: again.take })
  last.start()
  await again.have(ROUND)
  t.ok(again.inOrder)
  using kept = Snapshot.open(snapshotFiles(second))
  kept.verify()
})

t.test('what cannot be saved is refused, and the machine goes on', { skip }, async (t) => {
  const { machine, counter, folder } = await counting(t)
  const snapshot = join(folder, 'saved')
  mkdirSync(snapshot)
  writeFileSync(join(snapshot, 'mine'), '')
  await t.rejects(machine.snapshot(snapshot), { code: 'CONFLICT' })
  await t.rejects(machine.snapshot(join(folder, 'kernel', 'below')), /ENOTDIR/)
  t.same(readdirSync(folder).sort(), ['kernel', 'saved'])
  await counter.have(counter.bytes.length + ROUND)
  t.ok(counter.inOrder)
  await machine.pause()
  await machine.snapshot(join(folder, 'paused'))
  machine.resume()
  await counter.have(counter.bytes.length + ROUND)
  await machine.stop()
  await t.rejects(machine.snapshot(join(folder, 'late')), { code: 'NOT_RUNNING' })
})

t.test('a snapshot that was cut, changed or made elsewhere is refused', { skip }, async (t) => {
  const { machine, folder } = await counting(t)
  const snapshot = join(folder, 'saved')
  await machine.snapshot(snapshot)
  await machine.close()
  const [state, memory] = [join(snapshot, 'state'), join(snapshot, 'memory')]
  const whole = readFileSync(state)
  const { atime, mtime } = statSync(memory)
  const restore = async (): Promise<void> => {
    await (await clone(snapshot)).close()
  }
  await restore()
  const descriptors = readdirSync('/proc/self/fd').length
  /** Writes a body with a header that is right for it. */
  const edit = (change: (body: object) => void): void => {
    const [header, body] = split(whole)
    const parsed = JSON.parse(body.toString()) as object
    change(parsed)
    const bytes = Buffer.from(JSON.stringify(parsed))
    const sha256 = createHash('sha256').update(bytes).digest('hex')
    const right = { ...(JSON.parse(header.toString()) as object), length: bytes.length, sha256 }
    writeFileSync(state, Buffer.concat([Buffer.from(JSON.stringify(right) + '\n'), bytes]))
  }
  const refused = async (what: string, wanted: object): Promise<void> => {
    await t.rejects(restore(), { name: 'CoracleError', ...wanted }, what)
    writeFileSync(state, whole)
  }

  await t.test('random damage of the state', (t) => {
    fc.assert(
      fc.property(
        fc.nat(whole.length - 1),
        fc.integer({ min: 1, max: 255 }),
        fc.boolean(),
        (at, bits, cut) => {
          const damaged = Buffer.from(whole)
          damaged[at]! ^= bits
          writeFileSync(state, cut ? whole.subarray(0, at) : damaged)
          try {
            Snapshot.open(snapshotFiles(snapshot)).close()
            return false
          } catch (error) {
            return /^SNAPSHOT_/.test((error as { code: string }).code)
          }
        },
      ),
      { numRuns: 300 },
    )
    t.end()
  })
  writeFileSync(state, whole)

  await t.test('a body that was edited with care', async () => {
    const paths = leaves(JSON.parse(split(whole)[1].toString()))
    const anything = fc.oneof(
      fc.constant(undefined),
      fc.constant(null),
      fc.integer(),
      fc.double(),
      fc.string(),
      fc.constant([]),
      fc.constant({}),
    )
    await fc.assert(
      fc.asyncProperty(fc.nat(paths.length - 1), anything, async (which, value) => {
        edit((body) => assign(body, paths[which]!, value))
        try {
          await restore()
        } catch (error) {
          const code = String((error as { code?: unknown }).code)
          if (!/^(SNAPSHOT_|MEMORY_SIZE$|INVALID_ARGUMENT$)/.test(code)) throw error
        }
      }),
      { numRuns: 40 },
    )
    writeFileSync(state, whole)
  })

  writeFileSync(state, 'hello\n')
  await refused('another file', { code: 'SNAPSHOT_INVALID' })
  writeFileSync(state, whole.toString('latin1').replace('"version":2', '"version":3'), 'latin1')
  await refused('another version', { code: 'SNAPSHOT_MISMATCH', message: /version 3/ })
  edit((body) => assign(body, ['host', 'kernel'], '1.2.3'))
  await refused('another host', { code: 'SNAPSHOT_MISMATCH', message: /1\.2\.3/ })
  for (const devices of [[...DEVICES].reverse(), DEVICES.slice(1), [...DEVICES, { kind: 'rng' as const }]])
    await t.rejects(clone(snapshot, { devices }), { code: /^SNAPSHOT_/ }, 'other devices')
  edit((body) => assign(body, ['machine', 'devices', 'transports', 0, 'type'], 19))
  await refused('another type', { code: 'SNAPSHOT_MISMATCH' })

  const file = openSync(memory, 'r+')
  const at = ENTRY
  writeSync(file, Buffer.from([0x90]), 0, 1, at)
  closeSync(file)
  await refused('memory that was written', { code: 'SNAPSHOT_INVALID', message: /memory/ })
  utimesSync(memory, atime, mtime)
  edit((body) => {
    const opened = openSync(memory, 'r')
    assign(body, ['memory', 'modified'], String(fstatSync(opened, { bigint: true }).mtimeNs))
    closeSync(opened)
  })
  {
    using opened = Snapshot.open(snapshotFiles(snapshot))
    t.throws(() => opened.verify(), { code: 'SNAPSHOT_INVALID', message: /damaged at/ }, 'the checksum tells')
  }
  writeFileSync(state, whole)
  appendFileSync(memory, 'x')
  await refused('memory that is longer', { code: 'SNAPSHOT_INVALID' })
  truncateSync(memory, 0)
  await refused('memory that is gone', { code: 'SNAPSHOT_INVALID' })
  rmSync(memory)
  await refused('no memory', { code: 'NO_SUCH_SNAPSHOT' })
  t.notOk(existsSync(memory))
  t.equal(readdirSync('/proc/self/fd').length, descriptors, 'no descriptor stays')
})

function split(whole: Buffer): [Buffer, Buffer] {
  const end = whole.indexOf(10)
  return [whole.subarray(0, end), whole.subarray(end + 1)]
}

type Path = readonly (string | number)[]

/** The way to each member of each object and list. */
function leaves(value: unknown, path: Path = []): Path[] {
  if (typeof value !== 'object' || value === null) return path.length > 0 ? [path] : []
  const below = Object.entries(value).slice(0, 40)
  return [...(path.length > 0 ? [path] : []), ...below.flatMap(([key, each]) => leaves(each, [...path, key]))]
}

function assign(body: object, path: Path, value: unknown): void {
  let at = body as Record<string, unknown>
  for (const key of path.slice(0, -1)) at = at[key] as Record<string, unknown>
  at[String(path.at(-1))] = value
}
