import { existsSync, mkdirSync, readFileSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { once } from 'node:events'
import { request as httpRequest } from 'node:http'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { createApiServer } from '../../src/api/server.js'
import { parseBind, planMounts, tmpfsOptions } from '../../src/engine/mounts.js'
import type { CreateRequest } from '../../src/engine/record.js'
import type { CopyUp } from '../../src/engine/volumes.js'
import { VolumeStore } from '../../src/volume/store.js'
import { BUSYBOX, TestBed } from './host.js'

const PLAIN: CreateRequest = { image: 'busybox', isolation: 'process', command: ['true'] }
const code = (code: string): { code: string } => ({ code })

/** An answer of the API, as far as it is looked at here. */
// eslint-disable-next-line @typescript-eslint/no-explicit-any
type Body = any

/** Puts one file into the volume, as an image with something there would. */
const copyUp: CopyUp = async (_layers, path, folder) => {
  if (path === '/empty') return false
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'of-the-image'), path)
  return true
}

async function bedOf(t: Test): Promise<{ bed: TestBed; engine: Awaited<ReturnType<TestBed['open']>> }> {
  const bed = new TestBed()
  t.teardown(() => bed.close())
  return { bed, engine: await bed.open({ copyUp }) }
}

t.test('what -v may say', async (t) => {
  t.match(parseBind('data:/d'), {
    type: 'volume',
    name: 'data',
    destination: '/d',
    readOnly: false,
    mode: 'z',
  })
  t.match(parseBind('/a/../b/:/d//e/:ro'), {
    type: 'bind',
    source: '/b',
    destination: '/d/e',
    readOnly: true,
  })
  t.match(parseBind('/a:/d:ro,rprivate'), { propagation: 'rprivate', mode: 'ro,rprivate' })
  t.equal(parseBind('data:/d:nocopy').copyUp, undefined)
  for (const bad of [
    ...['data', ':/d', 'data:', 'a:/d:ro:x', 'data:d', 'data:/', 'data:/x/..', 'd:/a', '../x:/d', '.x:/d'],
    ...[
      'a/b:/d',
      'data:/d:xx',
      'data:/d:ro,rw',
      '/a:/d:nocopy',
      'da\0ta:/d',
      '/a:/d\0',
      `${'n'.repeat(201)}:/d`,
    ],
  ])
    t.throws(() => parseBind(bad), code('INVALID_ARGUMENT'), bad)
  t.throws(() => parseBind('/a:/d:rshared'), code('NOT_IMPLEMENTED'))
  t.same(tmpfsOptions('exec,size=1m'), ['nosuid', 'nodev', 'exec', 'size=1m'])
  fc.assert(
    fc.property(fc.string(), (text) => {
      try {
        const { type, name, source, destination } = parseBind(text)
        t.ok(destination.startsWith('/') && destination !== '/' && !destination.split('/').includes('..'))
        t.ok(type === 'bind' ? source.startsWith('/') : !/[/\0]/.test(name!))
      } catch (error) {
        t.match((error as { code: string }).code, /INVALID_ARGUMENT|NOT_IMPLEMENTED/)
      }
    }),
  )
})

t.test('which mount wins, and in which order they come', async (t) => {
  const other = planMounts({ ...PLAIN, binds: ['shared:/x', '/h:/y'] }, ['/anonymous'], () => [])
  const plan = planMounts(
    {
      ...PLAIN,
      volumesFrom: ['other:ro'],
      binds: ['mine:/a/b'],
      mounts: [
        { type: 'bind', source: '/h', target: '/a' },
        { type: 'volume', target: '/v' },
        { type: 'tmpfs', target: '/t', size: 4096, mode: 0o700 },
      ],
      tmpfs: { '/y': '' },
      volumes: ['/v', '/w'],
    },
    ['/a/b', '/x', '/z'],
    () => other,
  )
  t.same(
    plan.map(({ destination, name, source, readOnly }) => [destination, name ?? source, readOnly]).sort(),
    [
      ['/a', '/h', false],
      ['/a/b', 'mine', false],
      ['/anonymous', '', true],
      ['/t', '', false],
      ['/v', '', false],
      ['/w', '', false],
      ['/x', 'shared', true],
      ['/z', '', false],
    ],
  )
  t.ok(
    plan.findIndex(({ destination }) => destination === '/a') <
      plan.findIndex(({ destination }) => destination === '/a/b'),
    'what another lies in comes first',
  )
  t.same(plan.find(({ type }) => type === 'tmpfs')?.options, [
    'nosuid',
    'nodev',
    'noexec',
    'mode=700',
    'size=4096',
  ])
  const twice = { ...PLAIN, binds: ['a1:/a', 'b1:/a/'] }
  t.throws(() => planMounts(twice, [], () => []), { message: /Duplicate mount point: \/a/ })
  t.throws(() => planMounts({ ...PLAIN, mounts: [{ type: 'bind', target: '/a' }] }, [], () => []), /Source/)
})

t.test('volumes and the containers that have them', async (t) => {
  const { bed, engine } = await bedOf(t)
  const { volumes } = engine
  const host = join(bed.root, 'host')
  const { id } = await engine.create({
    ...PLAIN,
    name: 'one',
    binds: ['data:/d', `${host}:/h:ro`],
    volumes: ['/anonymous'],
    mounts: [{ type: 'volume', source: 'plain', target: '/p', noCopy: true }],
  })
  t.ok(existsSync(host), '-v makes the folder of the host')
  const { spec, mounts } = await engine.inspect(id)
  t.same(
    mounts?.map(({ copyUp }) => copyUp),
    [undefined, undefined, undefined, undefined],
  )
  const data = join(volumes.get('data').mountpoint, 'of-the-image')
  t.equal(readFileSync(data, 'utf8'), '/d', "the image's content came into it")
  t.same(readdirSync(volumes.get('plain').mountpoint), [], 'unless it was not to')
  t.match(spec.mounts, [
    { source: volumes.get('data').mountpoint, destination: '/d', readOnly: false },
    { source: host, destination: '/h', readOnly: true },
    { destination: '/p' },
    { destination: '/anonymous' },
  ])
  const anonymous = mounts!.find((each) => each.anonymous)!.name!
  t.match(anonymous, /^[0-9a-f]{64}$/)
  await t.rejects(volumes.remove('data'), { code: 'CONFLICT', status: 409, message: new RegExp(id) })
  writeFileSync(data, 'changed')
  await engine.create({ ...PLAIN, name: 'two', volumesFrom: ['one'], binds: ['data:/else'] })
  t.equal(readFileSync(data, 'utf8'), 'changed', 'one that has something is left as it is')
  await engine.remove('one', false, true)
  t.ok(volumes.get(anonymous), 'another container has it')
  await engine.remove('two', false, true)
  t.throws(() => volumes.get(anonymous), code('NO_SUCH_VOLUME'))
  t.same(
    volumes.list().map(({ record }) => record.name),
    ['data', 'plain'],
    'those with names stay',
  )
  await engine.create({ ...PLAIN, name: 'three', volumes: ['/v'], autoRemove: true })
  await engine.start('three')
  await (
    await engine.wait('three', 'removed').catch(() => ({ done: Promise.resolve() }))
  ).done
  t.equal(volumes.list().length, 2, '--rm takes those without names')
  await volumes.remove('data')
  await volumes.remove('data', true)
  await t.rejects(volumes.remove('data'), code('NO_SUCH_VOLUME'))
  await t.rejects(engine.create({ ...PLAIN, mounts: [{ type: 'bind', source: '/no/such', target: '/x' }] }), {
    code: 'INVALID_ARGUMENT',
    message: /does not exist: \/no\/such/,
  })
})

t.test("an image's volumes, and a creation that fails", async (t) => {
  const { bed, engine } = await bedOf(t)
  bed.images.images = [{ ...BUSYBOX, config: { ...BUSYBOX.config, Volumes: { '/d': {}, '/empty': {} } } }]
  const { id } = await engine.create(PLAIN)
  const { mounts } = await engine.inspect(id)
  t.same(mounts?.map(({ destination, anonymous, mode }) => [destination, anonymous, mode]).sort(), [
    ['/d', true, ''],
    ['/empty', true, ''],
  ])
  await engine.remove(id, false, true)
  t.same(engine.volumes.list(), [])
  await engine.create({ ...PLAIN, ignoreVolumes: true })
  t.same(engine.volumes.list(), [], 'a step of a build has none')
  const failing = await bed.open({ copyUp: () => Promise.reject(new Error('disk full')) })
  await t.rejects(failing.create({ ...PLAIN, name: 'failed' }), /disk full/)
  t.same(failing.volumes.list(), [], 'nothing of it stays')
  await t.rejects(failing.inspect('failed'), code('NO_SUCH_CONTAINER'))
})

t.test('what a crash leaves is swept, and nothing else', async (t) => {
  const { bed, engine } = await bedOf(t)
  await engine.volumes.create({ name: 'kept' })
  const root = join(bed.root, 'state', 'volumes')
  const outside = join(bed.root, 'outside')
  mkdirSync(join(root, '.creating-half', '_data'), { recursive: true })
  mkdirSync(join(root, '.removing-gone-1', '_data'), { recursive: true })
  mkdirSync(outside)
  writeFileSync(join(outside, 'file'), 'kept')
  symlinkSync(outside, join(root, '.removing-gone-1', '_data', 'link'))
  mkdirSync(join(root, 'stranger'))
  writeFileSync(join(root, 'stranger', 'file'), '')
  const again = await bed.open({ copyUp })
  t.same(readdirSync(root).sort(), ['.lock', 'kept', 'stranger'])
  t.equal(readFileSync(join(outside, 'file'), 'utf8'), 'kept', 'no link is followed')
  t.same(
    again.volumes.list().map(({ record }) => record.name),
    ['kept'],
  )
  await t.rejects(again.volumes.create({ name: 'stranger' }), { code: 'CONFLICT' })
  t.ok(existsSync(join(root, 'stranger')), 'what is no volume is left alone')

  const store = new VolumeStore(root)
  const record = store.get('kept')
  const data = store.mountpoint('kept')
  await t.rejects(
    store.fill(record, false, async (folder) => {
      mkdirSync(folder)
      writeFileSync(join(folder, 'half'), '')
      throw new Error('killed')
    }),
    /killed/,
  )
  t.same(readdirSync(data), [], 'half of a content is none')
  await store.fill(record, false, (folder) => copyUp([], '/x', folder))
  t.same(readdirSync(data), ['of-the-image'])
  await store.fill(record, false, () => Promise.reject(new Error('asked again')))
  for (const name of ['../kept', '.', '..', '.lock', 'kept/_data', ''])
    t.throws(() => store.get(name), code('NO_SUCH_VOLUME'), name)
})

t.test('the API', async (t) => {
  const { bed, engine } = await bedOf(t)
  const path = join(bed.root, 'api.sock')
  const server = createApiServer(engine).listen(path)
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  const ask = async (method: string, url: string, body?: object): Promise<{ status: number; body: Body }> => {
    const request = httpRequest({ socketPath: path, method, path: url, agent: false })
    if (body) request.setHeader('Content-Type', 'application/json')
    request.end(body && JSON.stringify(body))
    const [response] = (await once(request, 'response')) as [Readable & { statusCode: number }]
    const text = (await response.toArray()).join('')
    return { status: response.statusCode, body: text === '' ? undefined : JSON.parse(text) }
  }
  const filtered = async (filters: object): Promise<string[]> => {
    const { body } = await ask('GET', `/volumes?filters=${encodeURIComponent(JSON.stringify(filters))}`)
    return body.Volumes.map(({ Name }: { Name: string }) => Name)
  }
  t.match(await ask('POST', '/v1.51/volumes/create', { Name: 'data', Labels: { a: 'b' } }), {
    status: 201,
    body: {
      Name: 'data',
      Driver: 'local',
      Scope: 'local',
      Mountpoint: /\/volumes\/data\/_data$/,
      Labels: { a: 'b' },
    },
  })
  t.match(await ask('POST', '/volumes/create', { Name: 'data' }), {
    status: 201,
    body: { Labels: { a: 'b' } },
  })
  for (const [body, status] of [
    [{ Name: '../x' }, 400],
    [{ Name: 'x' }, 400],
    [{ Name: 'nfs', DriverOpts: { type: 'nfs', device: ':/a' } }, 501],
    [{ Name: 'other', Driver: 'rexray' }, 400],
    [{ Name: 'other', DriverOpts: { size: '1g' } }, 400],
    [{ Name: 'data', DriverOpts: { type: 'none', o: 'bind', device: '/srv' } }, 409],
  ] as const)
    t.equal((await ask('POST', '/volumes/create', body)).status, status, JSON.stringify(body))
  const own = join(bed.root, 'device')
  mkdirSync(own)
  const options = { type: 'none', o: 'bind', device: own }
  t.equal((await ask('POST', '/volumes/create', { Name: 'named', DriverOpts: options })).status, 201)
  const HostConfig = {
    Isolation: 'process',
    Binds: ['data:/d:ro', '/tmp:/tmp'],
    Mounts: [
      { Type: 'volume', Source: 'named', Target: '/n', VolumeOptions: { NoCopy: true } },
      { Type: 'tmpfs', Target: '/t', TmpfsOptions: { SizeBytes: 65536 } },
    ],
  }
  const created = await ask('POST', '/containers/create?name=user', {
    Image: 'busybox',
    Volumes: { '/anonymous': {} },
    HostConfig,
  })
  t.equal(created.status, 201, JSON.stringify(created.body))
  const { body } = await ask('GET', '/containers/user/json')
  t.match(body.HostConfig, HostConfig)
  t.same(Object.keys(body.Config.Volumes), ['/anonymous'])
  const at = (path: string): object => body.Mounts.find((each: Body) => each.Destination === path)
  const { Mountpoint } = (await ask('GET', '/volumes/data')).body
  t.same(at('/d'), {
    ...{ Type: 'volume', Name: 'data', Source: Mountpoint, Destination: '/d' },
    ...{ Driver: 'local', Mode: 'ro', RW: false, Propagation: '' },
  })
  t.same(at('/tmp'), {
    ...{ Type: 'bind', Source: '/tmp', Destination: '/tmp', Mode: '', RW: true, Propagation: 'rprivate' },
  })
  t.match(at('/n'), { Type: 'volume', Name: 'named', Source: own, Mode: 'z' })
  t.same(at('/t'), { Type: 'tmpfs', Source: '', Destination: '/t', Mode: '', RW: true, Propagation: '' })
  t.match(at('/anonymous'), { Type: 'volume', Mode: '', RW: true })
  t.same(await filtered({ dangling: ['false'] }), [(at('/anonymous') as Body).Name, 'data', 'named'].sort())
  t.same(await filtered({ label: { 'a=b': true } }), ['data'])
  t.same(await filtered({ name: { dat: true }, driver: { local: true } }), ['data'])
  t.equal((await ask('GET', '/volumes?filters={"size":["1"]}')).status, 400)
  const listed = (await ask('GET', '/containers/json?all=1&filters={"volume":["data"]}')).body
  t.equal(listed.length, 1)
  t.match(listed[0].Mounts, [{}, {}, {}, {}, {}])
  t.match(await ask('DELETE', '/volumes/data'), { status: 409, body: { message: /volume is in use/ } })
  t.match((await ask('GET', '/system/df')).body.Volumes, { length: 3, 1: { UsageData: { RefCount: 1 } } })
  t.equal((await ask('DELETE', '/containers/user?v=1')).status, 204)
  t.same(await filtered({}), ['data', 'named'])
  const { status, body: anonymous } = await ask('POST', '/volumes/create', {})
  t.equal(status, 201)
  t.match(anonymous.Name, /^[0-9a-f]{64}$/)
  t.match(await ask('POST', '/volumes/prune'), { status: 200, body: { VolumesDeleted: [anonymous.Name] } })
  t.same((await ask('POST', '/volumes/prune?filters={"all":["true"],"label!":["a"]}')).body.VolumesDeleted, [
    'named',
  ])
  t.ok(existsSync(own), "the host's folder stays")
  t.equal((await ask('DELETE', '/volumes/data')).status, 204)
  t.match(await ask('DELETE', '/volumes/data'), { status: 404, body: { message: /no such volume/ } })
  t.equal((await ask('DELETE', '/volumes/data?force=1')).status, 204)
  t.equal((await ask('GET', '/volumes/..%2F..%2Fx')).status, 404)
  for (const [config, status] of [
    [{ VolumeDriver: 'rexray' }, 400],
    [{ Binds: ['/a:/b:shared'] }, 501],
    [{ Binds: ['/a:/b:wrong'] }, 400],
    [{ VolumesFrom: ['nobody'] }, 400],
    [{ Mounts: [{ Type: 'npipe', Target: '/x' }] }, 501],
    [{ Mounts: [{ Type: 'volume', Target: '/x', BindOptions: {} }] }, 400],
    [{ Mounts: [{ Type: 'volume', Target: '/x', VolumeOptions: { Subpath: 'a' } }] }, 501],
    [{ Mounts: [{ Type: 'bind', Target: '/x', Source: '/no/such' }] }, 400],
  ] as const) {
    const answer = await ask('POST', '/containers/create', {
      Image: 'busybox',
      HostConfig: { Isolation: 'process', ...config },
    })
    t.equal(answer.status, status, JSON.stringify(config))
  }
  t.same(await filtered({}), [], 'what fails leaves no volume')
})
