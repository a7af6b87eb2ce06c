import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import t from 'tap'
import { CoracleError } from '../../src/errors.js'
import type { Engine } from '../../src/engine/engine.js'
import { type TestBed, twoDaemons } from './host.js'

const snapshots = ({ root }: TestBed): string[] =>
  readdirSync(join(root, 'state', 'snapshots')).filter((name) => name !== '.lock')

/** Where who moves it is killed, or the daemon that it waits for. */
type Death = 'arrived' | 'given'

/**
 * Moves it as the command line does.
 * @param change what comes out of what is sent @param death after this step nobody goes on with it
 */
async function move(
  here: Engine,
  there: Engine,
  change: (bytes: Buffer, at: number) => Buffer | undefined = (bytes) => bytes,
  death?: Death,
): Promise<string> {
  const ends = new AbortController()
  const wire = new PassThrough()
  let at = 0
  let move = ''
  const sent = here.moves.send(
    'web',
    async (bytes, id) => {
      move = id
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
    const { id } = await there.moves.receive(wire, ends.signal)
    if (death === 'arrived') return id
    await here.moves.give(move)
    if (death === 'given') return id
    await there.unpause(id)
    return id
  } finally {
    ends.abort()
    await sent.catch(() => undefined)
  }
}

t.test('a container goes on elsewhere, and is gone here', async (t) => {
  const { beds, here, there, id } = await twoDaemons(t)
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
  const { beds, here, there, id } = await twoDaemons(t)
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

const NOT_PAUSED = { state: { status: 'running', paused: false, move: undefined } }
const stateOf = ({ root }: TestBed, id: string): { paused?: boolean; move?: { id: string } } => {
  const path = join(root, 'state', 'containers', id, 'config.json')
  return (JSON.parse(readFileSync(path, 'utf8')) as { state: object }).state
}

t.test('who moves it dies when it has arrived: it goes on here, and is held there', async (t) => {
  const { beds, here, there, id } = await twoDaemons(t)
  const held = await move(here, there, undefined, 'arrived')
  t.match(await here.inspect('web'), { id, ...NOT_PAUSED })
  const [arrived, ...more] = there.moves.arrived()
  t.same(more, [])
  t.match(arrived, { record: { id: held, name: 'web' }, move: { container: id, side: 'arrived' } })
  t.match(await there.inspect('web'), { state: { status: 'running', paused: true } })
  t.equal(here.moves.state(arrived!.move.id), 'unknown')
  await t.rejects(here.moves.give(arrived!.move.id), { code: 'CONFLICT' }, 'it is too late to give it away')
  t.match(await here.inspect('web'), { id, ...NOT_PAUSED })
  // It is no part of the process that took it.
  const again = await beds[1]!.open()
  t.match(await again.inspect('web'), { id: held, state: { status: 'running', paused: true } })
  t.equal(again.moves.arrived().length, 1)
  await again.remove(held, true)
  t.same(again.moves.arrived(), [])
  const second = await move(here, again)
  t.match(await again.inspect('web'), { id: second, ...NOT_PAUSED })
  await again.remove('web', true)
})

t.test('who moves it dies when it is given away: it is gone here, and can go on there', async (t) => {
  const { beds, here, there, id } = await twoDaemons(t)
  const held = await move(here, there, undefined, 'given')
  t.same(await here.list(), [])
  const { move: mark } = there.moves.arrived()[0]!
  for (const engine of [here, await beds[0]!.open()]) t.equal(engine.moves.state(mark.id), 'given')
  await t.rejects(here.moves.give(mark.id), { code: 'CONFLICT' })
  t.match(await there.inspect('web'), { id: held, state: { paused: true, move: { container: id } } })
  const sandbox = beds[1]!.driver.sandboxes.get(held)!
  t.ok(sandbox.still, 'it has done nothing there')
  await there.unpause('web')
  t.notOk(sandbox.still)
  t.match(await there.inspect('web'), { id: held, ...NOT_PAUSED })
  t.same(there.moves.arrived(), [])
  await there.remove('web', true)
})

/** A process that is no more. */
const DEAD = { pid: 1, startTime: '0' }

t.test('a daemon that is killed while it sends has it go on at its next start', async (t) => {
  const { beds, here, there, id } = await twoDaemons(t)
  const path = join(beds[0]!.root, 'state', 'containers', id, 'config.json')
  let left = ''
  await move(
    here,
    there,
    (bytes) => {
      left ||= readFileSync(path, 'utf8')
      return bytes
    },
    'arrived',
  )
  const record = JSON.parse(left) as { state: { paused: boolean; move: { id: string; sender: object } } }
  t.match(record.state, { paused: true, move: { side: 'leaving', container: id } })
  await beds[0]!.driver.sandboxes.get(id)!.pause()
  // As another process finds it: the first one is alive.
  writeFileSync(path, left)
  const beside = await beds[0]!.open()
  t.match(await beside.inspect('web'), { state: { paused: true } }, 'who sends it lives')
  await t.rejects(beside.unpause('web'), { code: 'CONFLICT', message: /on its way to another daemon/ })
  record.state.move.sender = DEAD
  writeFileSync(path, JSON.stringify(record))
  const next = await beds[0]!.open()
  t.match(await next.inspect('web'), { id, ...NOT_PAUSED })
  t.notOk(beds[0]!.driver.sandboxes.get(id)!.still, 'its processes too')
  await t.rejects(next.moves.give(record.state.move.id), { code: 'CONFLICT' })
  await next.remove('web', true)
  await there.remove('web', true)
})

t.test('a daemon that is killed as it gives away removes it at its next start', async (t) => {
  const { beds, here, there, id } = await twoDaemons(t)
  const path = join(beds[0]!.root, 'state', 'containers', id, 'config.json')
  const { driver } = beds[0]!
  const sandbox = driver.sandboxes.get(id)!
  sandbox.destroyFailure = new Error('killed')
  const held = await move(here, there, undefined, 'given')
  t.ok(sandbox.still, 'what could not be removed does not go on')
  t.match(stateOf(beds[0]!, id), { paused: true, move: { side: 'leaving' } })
  sandbox.destroyFailure = undefined
  t.ok(existsSync(path))
  const next = await beds[0]!.open()
  await next.reconcile()
  t.same(await next.list(), [], 'not even by its restart policy')
  t.notOk(driver.sandboxes.has(id))
  next.close()
  await there.unpause(held)
  await there.remove('web', true)
})

t.test('a daemon that is killed while it takes leaves nothing', async (t) => {
  const { beds, here, there, id } = await twoDaemons(t)
  const { driver } = beds[1]!
  let left = ''
  driver.launched = (spec) => {
    const path = join(spec.stateDirectory, '..', 'config.json')
    left = readFileSync(path, 'utf8')
  }
  const held = await move(here, there, undefined, 'arrived')
  t.match(await here.inspect('web'), { id, ...NOT_PAUSED })
  const record = JSON.parse(left) as { request: { owner: object } }
  t.match(record.request.owner, { pid: process.pid })
  record.request.owner = DEAD
  writeFileSync(join(beds[1]!.root, 'state', 'containers', held, 'config.json'), JSON.stringify(record))
  const next = await beds[1]!.open()
  t.same(await next.list(), [])
  t.same(snapshots(beds[1]!), [])
  t.equal(driver.sandboxes.size, 0)
  await here.remove('web', true)
})

t.test('stopped while it moves, it is stopped: it is not given away then', async (t) => {
  const { here, there } = await twoDaemons(t)
  let stopped: Promise<void> | undefined
  await t.rejects(
    move(here, there, (bytes) => {
      stopped ??= here.stop('web')
      return bytes
    }),
    { code: 'CONFLICT' },
  )
  await stopped
  t.match(await here.inspect('web'), { state: { status: 'exited' } })
  await here.remove('web', true)
  await there.remove('web', true)
})

t.test('what cannot be moved says who can', async (t) => {
  const { here, there } = await twoDaemons(t)
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
