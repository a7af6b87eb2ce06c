import {
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { Engine } from '../../src/engine/engine.js'
import { requestFrom } from '../../src/engine/going-on.js'
import type { CreateRequest } from '../../src/engine/record.js'
import { PLAIN_HOST, TestBed } from './host.js'

const KVM_HOST = { ...PLAIN_HOST, virtualization: 'svm' } as const
const SLEEPER: CreateRequest = {
  image: 'busybox',
  hypervisor: 'kvm',
  command: ['sleep', '1000'],
  env: ['A=1'],
  labels: { from: 'first' },
}

/** An engine with a microVM, as far as it knows, that runs. */
async function running(t: Test): Promise<{ bed: TestBed; engine: Engine; root: string; id: string }> {
  const bed = new TestBed()
  t.teardown(() => bed.close())
  bed.host = KVM_HOST
  const engine = await bed.open()
  const { id } = await engine.create({ ...SLEEPER, name: 'web' })
  await engine.start(id)
  return { bed, engine, root: join(bed.root, 'state', 'snapshots'), id }
}

/** What the store holds, hidden things too. */
const entries = (root: string): string[] => readdirSync(root).filter((name) => name !== '.lock')

t.test('a container is saved, listed, gone on from and removed', async (t) => {
  const { bed, engine, root, id } = await running(t)
  t.match(await engine.saves.take('web', 'ready'), { name: 'ready', container: { id, name: 'web' } })
  t.equal((await engine.saves.take('web')).name, 'web-1', 'a name of its own')
  t.match(engine.saves.list(), [{ name: 'ready', saved: { container: { id } } }, { name: 'web-1' }])
  t.same(readdirSync(join(root, 'ready')).sort(), ['disk', 'memory', 'snapshot.json', 'state', 'tools'])
  await t.rejects(engine.saves.take('web', 'ready'), { code: 'CONFLICT' })
  await t.rejects(engine.saves.take('web', '../x'), { code: 'INVALID_ARGUMENT' })

  const copy = await engine.create({ image: '', from: 'ready', name: 'copy', labels: { more: '1' } })
  const record = await engine.inspect('copy')
  t.match(record, {
    imageId: (await engine.inspect('web')).imageId,
    request: { from: 'ready', command: ['sleep', '1000'], labels: { from: 'first', more: '1' } },
    spec: { id: copy.id, from: join(root, 'ready'), hostname: copy.id.slice(0, 12) },
  })
  t.ok(record.spec.bundle.process.env.includes(`HOSTNAME=${copy.id.slice(0, 12)}`))
  await t.rejects(engine.archives.stat('copy', '/'), { code: 'CONFLICT', message: /start it first/ })
  await t.rejects(engine.saves.remove('ready'), { code: 'CONFLICT', message: /copy/ })
  await engine.start('copy')
  t.equal(bed.driver.specs.at(-1)!.from, join(root, 'ready'))
  await engine.saves.remove('ready')
  await t.rejects(engine.saves.remove('ready'), { code: 'NO_SUCH_SNAPSHOT' })
  t.same(entries(root), ['web-1'])
  await engine.kill('copy', 'KILL')
  await (
    await engine.wait('copy', 'not-running')
  ).done
  await engine.start('copy')
  t.equal(bed.driver.specs.at(-1)!.from, undefined, 'a later run begins at its beginning')
})

t.test('an image that a snapshot needs stays', async (t) => {
  const { engine, id } = await running(t)
  await engine.saves.take('web', 'ready')
  await engine.remove(id, true)
  await t.rejects(engine.images.remove('busybox'), { code: 'CONFLICT', message: /snapshot ready/ })
  t.same((await engine.images.prune(() => true)).removals, [])
  await engine.saves.remove('ready')
  t.same(await engine.images.remove('busybox'), [{ Untagged: 'busybox:latest' }])
})

t.test('a clone goes on from a snapshot that nobody sees', async (t) => {
  const { bed, engine, root } = await running(t)
  const { id } = await engine.saves.clone('web', { name: 'twin' })
  t.match(await engine.inspect('twin'), { id, state: { status: 'running' } })
  t.match(bed.driver.specs.at(-1), { id, from: /\.passing-/ })
  t.same(entries(root), [])
  bed.driver.failure = Object.assign(new Error('no room'))
  await t.rejects(engine.saves.clone('web', { name: 'third' }), /no room/)
  bed.driver.failure = undefined
  t.same(
    (await engine.list()).map(({ name }) => name),
    ['twin', 'web'],
  )
  t.same(entries(root), [])
})

t.test('what cannot be saved is refused, and nothing stays', async (t) => {
  const { bed, engine, root, id } = await running(t)
  await engine.create({ ...SLEEPER, hypervisor: 'qemu', name: 'qemu' })
  await engine.create({ image: 'busybox', isolation: 'process', name: 'plain' })
  for (const name of ['qemu', 'plain'])
    await t.rejects(engine.saves.take(name), { code: 'INVALID_ARGUMENT', message: /--hypervisor kvm/ })
  await engine.create({ ...SLEEPER, name: 'idle' })
  await t.rejects(engine.saves.take('idle'), { code: 'NOT_RUNNING' })
  await t.rejects(engine.saves.take('nobody'), { code: 'NO_SUCH_CONTAINER' })
  bed.driver.sandboxes.get(id)!.snapshotFailure = new Error('disk full')
  await t.rejects(engine.saves.take('web', 'ready'), /disk full/)
  t.same(entries(root), [])
})

t.test('what goes on cannot be another thing', async (t) => {
  const { bed, engine } = await running(t)
  const { container } = await engine.saves.take('web', 'ready')
  const asked: CreateRequest = { image: '', from: 'ready' }
  for (const [more, message] of [
    [{ command: ['ls'] }, /a command cannot be chosen/],
    [{ memory: 2 ** 30 }, /--memory/],
    [{ env: ['B=2'] }, /--env/],
    [{ tty: true }, /terminal/],
    [{ isolation: 'process' }, /isolation process/],
    [{ hypervisor: 'qemu' }, /on kvm alone/],
  ] as const)
    await t.rejects(engine.create({ ...asked, ...more }), { code: 'INVALID_ARGUMENT', message })
  await t.rejects(engine.create({ ...asked, from: 'other' }), { code: 'NO_SUCH_SNAPSHOT' })
  await t.rejects(engine.create({ ...asked, image: 'nosuch' }), { code: 'NO_SUCH_IMAGE' })
  bed.host = PLAIN_HOST
  await t.rejects(engine.create(asked), { code: 'INVALID_ARGUMENT', message: /on kvm alone.*vmx nor svm/ })
  const onNetwork = {
    ...container,
    request: {
      ...container.request,
      networkMode: 'back',
      endpoints: { back: { addresses: ['10.0.0.2'] } },
      ports: [{ protocol: 'tcp', containerPort: 80, hostPorts: [8080, 8080] }],
    },
  } as typeof container
  const own = requestFrom(onNetwork, { ...asked, networkMode: 'default' }, KVM_HOST)
  t.match(own, { networkMode: 'back', endpoints: { back: {} } })
  t.same([own.endpoints!['back'], own.ports], [{}, undefined], 'neither address nor port is taken along')
  t.equal(requestFrom(onNetwork, { ...asked, networkMode: 'none' }, KVM_HOST).networkMode, 'none')
})

t.test('a snapshot that was cut or changed is refused', async (t) => {
  const { engine, root } = await running(t)
  const make = async (): Promise<string> => {
    if (existsSync(join(root, 'ready'))) await engine.saves.remove('ready')
    await engine.saves.take('web', 'ready')
    return join(root, 'ready')
  }
  const refused = async (code: string): Promise<void> => {
    await t.rejects(engine.create({ image: '', from: 'ready' }), { code })
    t.match(engine.saves.list(), [{ name: 'ready', saved: { code } }], 'it is listed as of no use')
  }
  for (const name of ['memory', 'disk', 'state', 'tools']) {
    truncateSync(join(await make(), name), 3)
    await refused('SNAPSHOT_INVALID')
    utimesSync(join(await make(), name), 1, 1)
    await refused('SNAPSHOT_INVALID')
  }
  const record = join(await make(), 'snapshot.json')
  const whole = readFileSync(record, 'latin1')
  for (const [text, code] of [
    [whole.slice(0, -2), 'SNAPSHOT_INVALID'],
    [whole.replace('"web"', '"bew"'), 'SNAPSHOT_INVALID'],
    [whole.replace('"version":1', '"version":7'), 'SNAPSHOT_MISMATCH'],
    ['', 'SNAPSHOT_INVALID'],
  ] as const) {
    writeFileSync(record, text)
    await refused(code)
  }
})

t.test('what a crash left half done goes; what others are at stays', async (t) => {
  const { bed, engine, root } = await running(t)
  for (const name of ['.creating-1', '.removing-2', '.passing-3']) mkdirSync(join(root, name))
  await bed.open()
  t.same(entries(root), [])
  let inside: string[] = []
  const sandbox = bed.driver.sandboxes.get((await engine.inspect('web')).id)!
  const { snapshot } = sandbox
  sandbox.snapshot = async (folder) => {
    await snapshot.call(sandbox, folder)
    await bed.open()
    inside = entries(root)
  }
  await engine.saves.take('web', 'ready')
  t.match(inside, [/^\.creating-/])
  t.same(entries(root), ['ready'])
})
