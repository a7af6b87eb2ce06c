import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import t, { type Test } from 'tap'
import { CoracleError } from '../../src/errors.js'
import type { Engine } from '../../src/engine/engine.js'
import { PLAIN_HOST, TestBed } from './host.js'

const KVM_HOST = { ...PLAIN_HOST, virtualization: 'svm' } as const

/** Two daemons, the first with a microVM, as far as it knows, that runs. */
async function daemons(
  t: Test,
  layer = 'a layer',
): Promise<{ beds: TestBed[]; here: Engine; there: Engine; id: string }> {
  const beds = [new TestBed(), new TestBed()]
  const engines = []
  for (const [i, bed] of beds.entries()) {
    t.teardown(() => bed.close())
    bed.host = KVM_HOST
    const path = join(bed.root, 'layer.erofs')
    writeFileSync(path, i === 0 ? 'a layer' : layer)
    const [image] = bed.images.images
    bed.images.images = [{ ...image!, layers: [{ ...image!.layers[0]!, path }] }]
    engines.push(await bed.open())
  }
  const [here, there] = engines as [Engine, Engine]
  const { id } = await here.create({
    image: 'busybox',
    hypervisor: 'kvm',
    command: ['sleep', '1000'],
    name: 'web',
    labels: { a: 'b' },
    restart: { name: 'always', maximumRetryCount: 0 },
    networkMode: 'none',
  })
  await here.start(id)
  return { beds, here, there, id }
}

const snapshots = ({ root }: TestBed): string[] =>
  readdirSync(join(root, 'state', 'snapshots')).filter((name) => name !== '.lock')

/** Moves it as the command line does. @param change what comes out of what is sent */
async function move(
  here: Engine,
  there: Engine,
  change: (bytes: Buffer, at: number) => Buffer | undefined = (bytes) => bytes,
): Promise<string> {
  const ends = new AbortController()
  const wire = new PassThrough()
  let at = 0
  const sent = here.moves.send(
    'web',
    async (bytes) => {
      const changed = change(bytes, at)
      at += bytes.length
      if (wire.writableEnded) return
      if (changed) wire.write(changed)
      else wire.end()
    },
    ends.signal,
  )
  sent.catch((error: Error) => wire.destroy(error))
  try {
    const { id } = await there.moves.receive(wire)
    await here.remove('web', true)
    return id
  } finally {
    ends.abort()
    await sent.catch(() => undefined)
  }
}

t.test('a container goes on elsewhere, and is gone here', async (t) => {
  const { beds, here, there, id } = await daemons(t)
  const states: (boolean | undefined)[] = []
  const moved = await move(here, there, (bytes) => {
    const path = join(beds[0]!.root, 'state', 'containers', id, 'config.json')
    states.push((JSON.parse(readFileSync(path, 'utf8')) as { state: { paused?: boolean } }).state.paused)
    return bytes
  })
  await t.rejects(here.inspect('web'), { code: 'NO_SUCH_CONTAINER' })
  const record = await there.inspect('web')
  t.match(record, {
    id: moved,
    state: { status: 'running' },
    request: { labels: { a: 'b' }, restart: { name: 'always' }, networkMode: 'none' },
  })
  t.not(moved, id)
  const spec = beds[1]!.driver.specs.at(-1)!
  t.match(spec, { id: moved, layers: [{ path: join(beds[1]!.root, 'layer.erofs') }] })
  t.ok(spec.stateDirectory.startsWith(beds[1]!.root) && spec.runDirectory.startsWith(beds[1]!.root))
  for (const bed of beds) t.same(snapshots(bed), [], 'nothing of it stays beside')
  t.same([...new Set(states)], [true], 'it stands still while it is sent')
  await there.remove('web', true)
})

t.test('whatever fails, it goes on here, and nothing is there', async (t) => {
  const { beds, here, there, id } = await daemons(t)
  const fails = async (
    code: string,
    ...change: Parameters<typeof move> extends [unknown, unknown, ...infer R] ? R : never
  ): Promise<void> => {
    await t.rejects(move(here, there, ...change), { code })
    t.match(await here.inspect('web'), { id, state: { status: 'running', paused: false } })
    t.same(await there.list(), [])
    for (const bed of beds) t.same(snapshots(bed), [])
  }
  // Cut in each part, and a byte changed in each.
  for (const part of [0, 1, 2, 5, 9]) {
    let count = 0
    await fails('SNAPSHOT_INVALID', (bytes) => (count++ === part ? undefined : bytes))
    count = 0
    await fails('SNAPSHOT_INVALID', (bytes) => {
      if (count++ !== part) return bytes
      const other = Buffer.from(bytes)
      other[other.length - 1]! ^= 1
      return other
    })
  }
  const { driver, images } = beds[1]!
  driver.failure = new CoracleError('SANDBOX_FAILED', 'no memory')
  await t.rejects(move(here, there), /no memory/)
  driver.failure = undefined
  t.same(await there.list(), [])
  t.match(await here.inspect('web'), { state: { status: 'running', paused: false } })
  // The sender's sandbox does not save.
  const sandbox = beds[0]!.driver.sandboxes.get(id)!
  sandbox.snapshotFailure = new Error('no space')
  await t.rejects(move(here, there), /no space/)
  sandbox.snapshotFailure = undefined
  t.match(await here.inspect('web'), { state: { status: 'running', paused: false } })
  const [image] = images.images
  images.images = []
  await fails('NO_SUCH_IMAGE')
  images.images = [image!]
  await there.create({ image: 'busybox', name: 'web', networkMode: 'none' })
  await t.rejects(move(here, there), { code: 'CONFLICT' })
  await there.remove('web', true)
  t.equal(readFileSync(image!.layers[0]!.path, 'utf8'), 'a layer')
  writeFileSync(image!.layers[0]!.path, 'another layer')
  await fails('SNAPSHOT_MISMATCH')
  await here.pause('web')
  await t.rejects(move(here, there), { code: 'CONFLICT' })
  await here.remove('web', true)
})

t.test('what cannot be moved says who can', async (t) => {
  const { here, there } = await daemons(t)
  await here.remove('web', true)
  for (const isolation of ['process', 'microvm'] as const) {
    const kind = isolation === 'process' ? { isolation } : { isolation, hypervisor: 'qemu' as const }
    await here.create({
      image: 'busybox',
      name: 'web',
      command: ['sleep', '1000'],
      networkMode: 'none',
      ...kind,
    })
    await here.start('web')
    await t.rejects(move(here, there), { code: 'INVALID_ARGUMENT', message: /microVMs on kvm/ })
    await here.remove('web', true)
  }
})
