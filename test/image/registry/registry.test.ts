import t from 'tap'
import { ImageStore } from '../../../src/image/store.js'
import { Registry } from '../../../src/image/registry/registry.js'
import type { PullProgress } from '../../../src/image/registry/pull.js'
import { dockerArchive } from '../archive-builder.js'
import { Scratch } from '../mounts.js'
import { sha256, stream, tar } from '../tar-builder.js'
import { makeCertificates } from './certificate.js'
import { DebianRegistry, USER } from './debian-registry.js'
import { TokenServer } from './token-server.js'

const base = tar({ name: 'etc/', flag: '5' }, { name: 'etc/a', content: 'a'.repeat(300_000) })
const change = tar({ name: 'etc/b', content: 'b' })
const other = tar({ name: 'etc/c', content: 'c' })

t.test("Debian's docker-registry, TLS and a password", async (t) => {
  await using server = await DebianRegistry.start()
  using here = new Scratch()
  using there = new Scratch()
  const store = await ImageStore.open(here.folder)
  const registry = new Registry(store, () => server.config)
  const name = `${server.host}/team/app:1`
  await store.load(stream(dockerArchive({ layers: [base, change], names: [name] })))
  const sent = store.get(name)

  await t.rejects(registry.push(name), { code: 'REGISTRY_DENIED' }, 'without a login')
  await t.rejects(registry.push(name, { auth: { ...USER, password: 'no' } }), { code: 'REGISTRY_DENIED' })
  await t.rejects(registry.login(server.host, { auth: { ...USER, password: 'no' } }), {
    code: 'REGISTRY_DENIED',
  })
  await registry.login(server.host, { auth: USER })

  const pushes: string[] = []
  const pushed = await registry.push(name, { auth: USER, onProgress: ({ phase }) => pushes.push(phase) })
  t.equal(pushes.filter((phase) => phase === 'done').length, 2)
  const again: string[] = []
  t.strictSame(
    await registry.push(name, { auth: USER, onProgress: ({ phase }) => again.push(phase) }),
    pushed,
  )
  t.strictSame(again, ['wait', 'wait', 'exists', 'exists'], 'what is there is not sent again')

  const second = await ImageStore.open(there.folder)
  const puller = new Registry(second, () => server.config)
  await t.rejects(puller.pull(name), { code: 'REGISTRY_DENIED' })
  await t.rejects(puller.pull(`${server.host}/team/none:1`, { auth: USER }), { code: 'REGISTRY_NOT_FOUND' })
  const phases: PullProgress[] = []
  const pulled = await puller.pull(name, { auth: USER, onProgress: (event) => phases.push(event) })
  t.equal(pulled.image.id, sent.id)
  t.equal(pulled.digest, pushed.digest)
  t.equal(pulled.changed, true)
  t.strictSame(
    second.get(name).layers.map(({ diffId }) => diffId),
    [sha256(base), sha256(change)],
  )
  t.strictSame(second.get(name).digests, [`${server.host}/team/app@${pushed.digest}`])
  t.equal(phases.filter(({ phase }) => phase === 'done').length, 2)

  t.equal((await puller.pull(name, { auth: USER })).changed, false, 'nothing new')
  t.equal((await puller.pull(`${server.host}/team/app@${pushed.digest}`, { auth: USER })).image.id, sent.id)

  t.match(await puller.describe(name, { auth: USER }), {
    digest: pushed.digest,
    platforms: [{ os: 'linux', architecture: 'amd64' }],
  })

  await t.test('an image that shares layers fetches and converts the new one alone', async (t) => {
    const next = `${server.host}/team/next:2`
    await store.load(stream(dockerArchive({ layers: [base, other], names: [next] })))
    const sends: string[] = []
    await registry.push(next, { auth: USER, onProgress: ({ phase, from }) => sends.push(from ?? phase) })
    t.ok(sends.includes('team/app'), 'the shared layer is mounted')
    const events: PullProgress[] = []
    await puller.pull(next, { auth: USER, onProgress: (event) => events.push(event) })
    t.strictSame(
      events.filter(({ phase }) => phase === 'exists').map(({ layer }) => layer),
      [sha256(base)],
    )
    t.strictSame(
      [...new Set(events.filter(({ phase }) => phase === 'download').map(({ layer }) => layer))],
      [sha256(other)],
    )
    t.strictSame(await puller.tags(`${server.host}/team/next`, { auth: USER }), ['2'])
  })

  await t.test('a certificate of an unknown authority is refused', async (t) => {
    const strict = new Registry(second, () => ({ ...server.config, authorities: { [server.host]: 'none' } }))
    await t.rejects(strict.pull(name, { auth: USER }), { code: 'REGISTRY_FAILED', message: /certificate/ })
  })
})

t.test('bearer tokens of a server apart', async (t) => {
  const certificates = makeCertificates()
  await using tokens = await TokenServer.start(certificates)
  await using server = await DebianRegistry.start({ tokens: { realm: tokens.realm, certificates } })
  using scratch = new Scratch()
  const store = await ImageStore.open(scratch.folder)
  const registry = new Registry(store, () => server.config)
  const names = ['team/app', 'team/next'].map((path) => `${server.host}/${path}:1`)
  await store.load(stream(dockerArchive({ layers: [base, change], names })))

  await t.rejects(registry.push(names[0]!), { code: 'REGISTRY_DENIED' })
  await registry.push(names[0]!, { auth: USER })
  t.strictSame(
    tokens.asked.filter((scopes) => scopes.length === 1),
    [['repository:team/app:pull,push']],
    'one token serves all',
  )
  const phases: string[] = []
  await registry.push(names[1]!, { auth: USER, onProgress: ({ phase }) => phases.push(phase) })
  t.equal(phases.filter((phase) => phase === 'mounted').length, 2)
  t.match(tokens.asked.at(-1), ['repository:team/next:pull,push', 'repository:team/app:pull'])

  store.remove(store.get(names[1]!).id, { force: true })
  const both = names.map((name) => registry.pull(name, { auth: USER }))
  const [first, second] = await Promise.all(both)
  t.equal(first!.image.id, second!.image.id, 'two pulls at once do not hinder each other')
  t.strictSame(
    store.list().map(({ tags }) => tags),
    [names],
  )
})
