import { readdirSync } from 'node:fs'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import t from 'tap'
import { PLAIN_CONFIG, type RegistryConfig } from '../../../src/image/registry/config.js'
import { Registry, type PullOptions } from '../../../src/image/registry/registry.js'
import { ImageStore } from '../../../src/image/store.js'
import { dockerArchive } from '../archive-builder.js'
import { Scratch, cannotMount } from '../mounts.js'
import { sha256, stream, tar } from '../tar-builder.js'
import { FakeRegistry, endless, serveBlob, type Trick } from './fake-registry.js'

const PATIENCE = { stall: 300, attempts: 3, backoff: 5, longest: 2000 }
const small = tar({ name: 'a', content: 'a' })
const large = tar({ name: 'b', content: randomBytes(2 ** 20) })
const AUTH = { username: 'carol', password: 'secret' }
const BASIC = `Basic ${Buffer.from('carol:secret').toString('base64')}`

/** A store, a registry full of tricks, and a client that is quick to give up. */
class Bed implements AsyncDisposable {
  config: RegistryConfig = PLAIN_CONFIG

  private constructor(
    readonly fake: FakeRegistry,
    readonly scratch: Scratch,
    readonly store: ImageStore,
  ) {}

  static async create(): Promise<Bed> {
    const scratch = new Scratch()
    const store = await ImageStore.open(join(scratch.folder, 'images'))
    return new Bed(await FakeRegistry.start(), scratch, store)
  }

  get registry(): Registry {
    return new Registry(this.store, () => this.config, PATIENCE)
  }

  pull(options: PullOptions = {}, name = 'team/app:1'): ReturnType<Registry['pull']> {
    return this.registry.pull(`${this.fake.host}/${name}`, options)
  }

  /** The store has nothing of a pull that failed. */
  clean(t: Check): void {
    t.strictSame(readdirSync(join(this.store.root, 'tmp')), [], 'nothing is left of it')
    t.strictSame(this.store.list(), [], 'no image')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.fake[Symbol.asyncDispose]()
    this.scratch[Symbol.dispose]()
  }
}

interface Check {
  strictSame(found: unknown, wanted: unknown, message: string): boolean
}

/** How an error is known. */
interface Wanted {
  readonly code: string
  readonly message: RegExp
}

const isBlob = (request: IncomingMessage, content: Buffer): boolean =>
  request.url!.endsWith(`/blobs/${sha256(content)}`)
const isManifest = (request: IncomingMessage): boolean => request.url!.includes('/manifests/')

t.test('what is wrong for good fails at once, and leaves nothing', async (t) => {
  const answer =
    (status: number, headers: Record<string, string | number> = {}, body = '') =>
    (_request: IncomingMessage, response: ServerResponse): true => {
      response.writeHead(status, headers).end(body)
      return true
    }
  const onManifest =
    (trick: Trick): Trick =>
    (request, response) =>
      isManifest(request) && trick(request, response)
  const onBlob =
    (trick: Trick): Trick =>
    (request, response) =>
      isBlob(request, large) && trick(request, response)
  const bearer = (server: string, more = ''): string => `Bearer realm="${server}/token",service="s"${more}`

  const cases: Record<string, [(fake: FakeRegistry) => Trick, Wanted, PullOptions?]> = {
    'a blob of another content': [
      () => onBlob((request, response) => (serveBlob(request, response, Buffer.alloc(large.length)), true)),
      { code: 'REGISTRY_FAILED', message: /its content is another/ },
    ],
    'a blob with another length': [
      () => onBlob(answer(200, { 'Content-Length': 3 }, 'abc')),
      { code: 'REGISTRY_FAILED', message: /3 bytes, but the manifest says/ },
    ],
    'a blob without end': [
      () => onBlob((_request, response) => (response.writeHead(200), endless(response), true)),
      { code: 'REGISTRY_FAILED', message: /more bytes than/ },
    ],
    'a manifest of another digest than its header says': [
      (fake) =>
        onManifest(
          answer(200, { 'Docker-Content-Digest': sha256(large) }, String(fake.manifests.get('1')!.bytes)),
        ),
      { code: 'REGISTRY_FAILED', message: /its content is/ },
    ],
    'a manifest without end': [
      () => onManifest((_request, response) => (response.writeHead(200), endless(response), true)),
      { code: 'REGISTRY_FAILED', message: /longer than the 4194304 bytes/ },
    ],
    'a manifest that is no JSON': [
      () => onManifest(answer(200, {}, '{')),
      { code: 'IMAGE_ARCHIVE', message: /./ },
    ],
    'a manifest of schema 1': [
      () =>
        onManifest(
          answer(200, { 'Content-Type': 'application/vnd.docker.distribution.manifest.v1+prettyjws' }, '{}'),
        ),
      { code: 'REGISTRY_FAILED', message: /schema 1/ },
    ],
    'redirects in a circle': [
      (fake) => (_request, response) => answer(302, { Location: `${fake.url}/v2/round` })(_request, response),
      { code: 'REGISTRY_FAILED', message: /redirects without end/ },
    ],
    'a redirect to a file': [
      () => onManifest(answer(307, { Location: 'file:///etc/passwd' })),
      { code: 'REGISTRY_FAILED', message: /not to be used/ },
    ],
    'a redirect with a password in it': [
      (fake) => onManifest(answer(307, { Location: `http://a:b@${fake.host}/` })),
      { code: 'REGISTRY_FAILED', message: /not to be used/ },
    ],
    'a redirect to nowhere': [() => onManifest(answer(307)), { code: 'REGISTRY_FAILED', message: /nowhere/ }],
    '401 for ever, basic': [
      () => onManifest(answer(401, { 'WWW-Authenticate': 'Basic realm="x"' })),
      { code: 'REGISTRY_DENIED', message: /./ },
      { auth: AUTH },
    ],
    '401 for ever, tokens': [
      (fake) => (request, response) =>
        request.url!.startsWith('/token')
          ? answer(200, {}, '{"token":"t"}')(request, response)
          : answer(401, { 'WWW-Authenticate': bearer(fake.url) })(request, response),
      { code: 'REGISTRY_DENIED', message: /./ },
      { auth: AUTH },
    ],
    '401 without a challenge': [() => onManifest(answer(401)), { code: 'REGISTRY_FAILED', message: /./ }],
    '401 with a malformed challenge': [
      () => onManifest(answer(401, { 'WWW-Authenticate': 'Bearer realm="x' })),
      { code: 'REGISTRY_FAILED', message: /malformed/ },
    ],
    '401 with a foreign scheme': [
      () => onManifest(answer(401, { 'WWW-Authenticate': 'Negotiate' })),
      { code: 'REGISTRY_FAILED', message: /other than basic and bearer/ },
    ],
    'a realm that is a file': [
      () => onManifest(answer(401, { 'WWW-Authenticate': 'Bearer realm="file:///etc/passwd"' })),
      { code: 'REGISTRY_FAILED', message: /not to be used/ },
    ],
    'a token with a line break': [
      (fake) => (request, response) =>
        request.url!.startsWith('/token')
          ? answer(200, {}, '{"token":"a\\r\\nb"}')(request, response)
          : answer(401, { 'WWW-Authenticate': bearer(fake.url) })(request, response),
      { code: 'REGISTRY_FAILED', message: /no token/ },
    ],
    'a token without end': [
      (fake) => (request, response) =>
        request.url!.startsWith('/token')
          ? (response.writeHead(200), endless(response), true)
          : answer(401, { 'WWW-Authenticate': bearer(fake.url) })(request, response),
      { code: 'REGISTRY_FAILED', message: /longer than/ },
    ],
    'an error without end': [
      () => onManifest((_request, response) => (response.writeHead(418), endless(response), true)),
      { code: 'REGISTRY_FAILED', message: /answers 418/ },
    ],
    'an error that would paint the terminal': [
      () => onManifest(answer(400, {}, JSON.stringify({ errors: [{ message: 'x\u001b[2J' }] }))),
      { code: 'REGISTRY_FAILED', message: /\(x\?\[2J\)/ },
    ],
    'no such image': [() => onManifest(answer(404)), { code: 'REGISTRY_NOT_FOUND', message: /./ }],
    '500 for ever': [
      () => onManifest(answer(500)),
      { code: 'REGISTRY_FAILED', message: /500.*tried 3 times/ },
    ],
    '429 for ever': [
      () => onManifest(answer(429, { 'Retry-After': 0 })),
      { code: 'REGISTRY_FAILED', message: /429.*tried 3 times/ },
    ],
    '429 for an hour': [
      () => onManifest(answer(429, { 'Retry-After': 3600 })),
      { code: 'REGISTRY_FAILED', message: /come back in 3600 s/ },
    ],
    silence: [() => onManifest(() => true), { code: 'REGISTRY_FAILED', message: /sent nothing for 0.3 s/ }],
    'a blob that stalls for ever': [
      () =>
        onBlob((_request, response) => {
          response.writeHead(200, { 'Content-Length': large.length }).write(large.subarray(0, 1000))
          return true
        }),
      { code: 'REGISTRY_FAILED', message: /sent nothing/ },
    ],
    'a connection that always breaks': [
      () => (request) => (request.socket.destroy(), true),
      { code: 'REGISTRY_FAILED', message: /./ },
    ],
    'a part that was not asked for': [
      () => {
        let count = 0
        return onBlob((_request, response) => {
          if (count++ === 0) {
            response.writeHead(200, { 'Content-Length': large.length })
            response.write(large.subarray(0, 300_000), () => response.destroy())
          } else
            answer(206, { 'Content-Range': `bytes 0-9/${large.length}` }, 'x'.repeat(10))(_request, response)
          return true
        })
      },
      { code: 'REGISTRY_FAILED', message: /asked for a part/ },
    ],
  }
  for (const [what, [trick, error, options]] of Object.entries(cases)) {
    await using bed = await Bed.create()
    bed.fake.image([small, large], '1')
    bed.fake.trick = trick(bed.fake)
    await t.rejects(bed.pull(options), error, what)
    bed.clean(t)
    t.ok(bed.fake.requests.length < 40, `${what}: not asked again and again`)
  }
})

t.test('documents that do not fit', async (t) => {
  const cases: Record<string, [(fake: FakeRegistry) => unknown, Wanted]> = {
    'an image for another platform': [
      (fake) => fake.image([small], '1', { config: { platform: { os: 'linux', architecture: 'arm64' } } }),
      { code: 'REGISTRY_FAILED', message: /linux\/arm64/ },
    ],
    'a diff_id of another content': [
      (fake) => fake.image([small], '1', { config: { diffIds: [sha256(large)] } }),
      { code: 'IMAGE_ARCHIVE', message: /its content is another/ },
    ],
    'fewer layers than the config has': [
      (fake) => fake.image([small, large], '1', { change: (manifest) => manifest.layers.pop() }),
      { code: 'REGISTRY_FAILED', message: /1 layers, but/ },
    ],
    'a layer larger than all may be': [
      (fake) => fake.image([small], '1', { change: ({ layers }) => (layers[0]!.size = 2 ** 50) }),
      { code: 'IMAGE_TOO_LARGE', message: /./ },
    ],
    'a config larger than it may be': [
      (fake) =>
        fake.image([small], '1', { change: ({ config }) => Object.assign(config, { size: 2 ** 40 }) }),
      { code: 'IMAGE_TOO_LARGE', message: /./ },
    ],
    'an index without an image for us': [
      (fake) => {
        const platform = { os: 'linux', architecture: 's390x' }
        const manifests = [{ ...fake.image([small], ''), platform }]
        fake.document({ schemaVersion: 2, manifests }, 'application/vnd.oci.image.index.v1+json', '1')
      },
      { code: 'REGISTRY_NOT_FOUND', message: /linux\/amd64.*s390x/ },
    ],
    'indexes in indexes': [
      (fake) => {
        let entry = fake.image([small], '')
        for (let depth = 0; depth < 6; depth++)
          entry = fake.document(
            { schemaVersion: 2, manifests: [entry] },
            'application/vnd.oci.image.index.v1+json',
            '1',
          )
      },
      { code: 'REGISTRY_FAILED', message: /nested too deeply/ },
    ],
    'an index that lies about a size': [
      (fake) => {
        const manifests = [{ ...fake.image([small], ''), size: 7 }]
        fake.document({ schemaVersion: 2, manifests }, 'application/vnd.oci.image.index.v1+json', '1')
      },
      { code: 'REGISTRY_FAILED', message: /another size/ },
    ],
  }
  for (const [what, [fill, error]] of Object.entries(cases)) {
    await using bed = await Bed.create()
    fill(bed.fake)
    await t.rejects(bed.pull(), error, what)
    bed.clean(t)
  }
  await using bed = await Bed.create()
  bed.fake.image([small], '1')
  const { digest } = bed.fake.image([large], '2')
  bed.fake.manifests.set(digest, bed.fake.manifests.get('1')!)
  await t.rejects(bed.pull({}, `team/app@${digest}`), {
    code: 'REGISTRY_FAILED',
    message: /content is another/,
  })
})

t.test('what passes is gone through', async (t) => {
  await t.test('connections that break in the middle of a blob go on where they were', async (t) => {
    await using bed = await Bed.create()
    bed.fake.image([small, large], '1')
    const ranges: (string | undefined)[] = []
    bed.fake.trick = (request, response) => {
      if (!isBlob(request, large)) return false
      ranges.push(request.headers.range)
      if (ranges.length > 3) return false
      const from = Number(/\d+/.exec(request.headers.range ?? '0')![0])
      response.writeHead(from === 0 ? 200 : 206, {
        'Content-Length': large.length - from,
        ...(from === 0 ? {} : { 'Content-Range': `bytes ${from}-${large.length - 1}/${large.length}` }),
      })
      // Broken off once, and twice silent.
      response.write(large.subarray(from, from + 300_000), () => {
        if (ranges.length === 1) response.destroy()
      })
      return true
    }
    const { image } = await bed.pull()
    t.equal(image.layers.length, 2)
    t.equal(ranges.length, 4)
    t.strictSame(ranges.slice(0, 2), [undefined, ranges[1]])
    t.ok(ranges.slice(1).every((range) => /^bytes=[1-9]\d*-$/.test(range!)))
  })

  await t.test('a registry that knows no ranges', async (t) => {
    await using bed = await Bed.create()
    bed.fake.image([large], '1')
    let count = 0
    bed.fake.trick = (request, response) => {
      if (!isBlob(request, large)) return false
      response.writeHead(200, { 'Content-Length': large.length })
      if (count++ === 0) response.write(large.subarray(0, 500_000), () => response.destroy())
      else response.end(large)
      return true
    }
    await bed.pull()
    t.equal(count, 2)
  })

  await t.test('500, 503 and 429', async (t) => {
    await using bed = await Bed.create()
    bed.fake.image([small], '1')
    const answers = [500, 503]
    bed.fake.trick = (request, response) => {
      const status = isManifest(request) ? answers.shift() : undefined
      if (status === undefined) return false
      response.writeHead(status, { 'Retry-After': new Date().toUTCString() }).end()
      return true
    }
    t.equal((await bed.pull()).changed, true)
    answers.push(429)
    t.equal((await bed.pull()).changed, false)
    t.strictSame(answers, [])
  })

  await t.test('an index leads to our platform', async (t) => {
    await using bed = await Bed.create()
    const entry = (layer: Buffer, architecture: string): object => ({
      ...bed.fake.image([layer], '', { config: { platform: { os: 'linux', architecture } } }),
      platform: { os: 'linux', architecture },
    })
    const manifests = [entry(large, 'arm64'), entry(small, 'amd64')]
    const type = 'application/vnd.docker.distribution.manifest.list.v2+json'
    const { digest } = bed.fake.document({ schemaVersion: 2, mediaType: type, manifests }, type, '1')
    const pulled = await bed.pull()
    t.equal(pulled.digest, digest)
    t.strictSame(
      pulled.image.layers.map(({ diffId }) => diffId),
      [sha256(small)],
    )
    t.strictSame(pulled.image.digests, [`${bed.fake.host}/team/app@${digest}`])
    t.notOk(bed.fake.requests.some((line) => line.includes(sha256(large))))
    t.match(await bed.registry.describe(`${bed.fake.host}/team/app:1`), {
      mediaType: type,
      digest,
      platforms: [{ architecture: 'arm64' }, { architecture: 'amd64' }],
    })
  })
})

t.test('credentials go where they belong', async (t) => {
  await t.test('a bearer token by the password, kept for all blobs', async (t) => {
    await using bed = await Bed.create()
    bed.fake.image([small, large], '1')
    const seen: string[] = []
    bed.fake.trick = (request, response) => {
      const { authorization } = request.headers
      if (request.url!.startsWith('/token')) {
        seen.push(`${request.url} ${authorization}`)
        response.end('{"token":"abc","expires_in":300}')
        return true
      }
      if (authorization === 'Bearer abc') return false
      response
        .writeHead(401, { 'WWW-Authenticate': `Bearer realm="${bed.fake.url}/token",service="here"` })
        .end()
      return true
    }
    await bed.pull({ auth: AUTH })
    t.strictSame(seen, [`/token?service=here&scope=repository%3Ateam%2Fapp%3Apull&account=carol ${BASIC}`])
  })

  await t.test('another host sees none', async (t) => {
    await using bed = await Bed.create()
    await using elsewhere = await FakeRegistry.start()
    bed.fake.image([small], '1')
    elsewhere.blob(small)
    const seen: (string | undefined)[] = []
    elsewhere.trick = (request) => {
      seen.push(request.headers.authorization)
      return false
    }
    bed.fake.trick = (request, response) => {
      if (request.headers.authorization !== BASIC)
        response.writeHead(401, { 'WWW-Authenticate': 'Basic realm="x"' }).end()
      else if (isBlob(request, small))
        response.writeHead(307, { Location: elsewhere.url + request.url }).end()
      else return false
      return true
    }
    await bed.pull({ auth: AUTH })
    t.strictSame(seen, [undefined])
  })

  await t.test('mirrors are asked first, without them; where one fails the next is', async (t) => {
    await using bed = await Bed.create()
    await using broken = await FakeRegistry.start()
    bed.fake.image([small], 'latest')
    const seen: (string | undefined)[] = []
    bed.fake.trick = (request) => {
      seen.push(request.headers.authorization)
      return false
    }
    bed.config = { ...PLAIN_CONFIG, mirrors: [broken.url, `${bed.fake.url}/hub/`] }
    await bed.registry.pull('app', { auth: AUTH })
    t.strictSame(bed.store.get('app').tags, ['app:latest'])
    t.strictSame(broken.requests, ['GET /v2/library/app/manifests/latest'])
    t.equal(bed.fake.requests[0], 'GET /hub/v2/library/app/manifests/latest')
    t.ok(seen.every((header) => header === undefined))
  })
})

t.test('pushes', async (t) => {
  await t.test('an upload that breaks is begun again; its address may be relative', async (t) => {
    await using bed = await Bed.create()
    const name = `${bed.fake.host}/team/app:1`
    await bed.store.load(stream(dockerArchive({ layers: [small], names: [name] })))
    let broken = 0
    const received = new Map<string, Buffer>()
    bed.fake.trick = (request, response) => {
      const { method, url } = request
      if (method === 'HEAD') return false
      if (method === 'POST') {
        response.writeHead(202, { Location: '/v2/team/app/blobs/uploads/1?state=x' }).end()
      } else if (broken++ === 0) {
        request.socket.destroy()
      } else {
        const chunks: Buffer[] = []
        request.on('data', (chunk: Buffer) => chunks.push(chunk))
        request.on('end', () => {
          received.set(url!, Buffer.concat(chunks))
          response.writeHead(201).end()
        })
      }
      return true
    }
    const { digest } = await bed.registry.push(name)
    const blob = received.get(
      `/v2/team/app/blobs/uploads/1?state=x&digest=${encodeURIComponent(sha256(small))}`,
    )
    t.strictSame(blob, small)
    t.equal(sha256(received.get('/v2/team/app/manifests/1')!), digest)
    t.strictSame(readdirSync(join(bed.store.root, 'tmp')), [])
  })

  await t.test('a registry that refuses, or leads astray', async (t) => {
    await using bed = await Bed.create()
    const name = `${bed.fake.host}/team/app:1`
    await bed.store.load(stream(dockerArchive({ layers: [small], names: [name] })))
    for (const [status, headers, error] of [
      [403, {}, { code: 'REGISTRY_DENIED', message: /./ }],
      [202, {}, { code: 'REGISTRY_FAILED', message: /no address/ }],
      [202, { Location: 'ftp://x/' }, { code: 'REGISTRY_FAILED', message: /not to be used/ }],
      [500, {}, { code: 'REGISTRY_FAILED', message: /tried 3 times/ }],
    ] as const) {
      bed.fake.trick = ({ method }, response) => {
        if (method === 'HEAD') return false
        response.writeHead(status, headers).end()
        return true
      }
      await t.rejects(bed.registry.push(name), error)
    }
    t.strictSame(readdirSync(join(bed.store.root, 'tmp')), [])
  })
})

t.test('an abort ends a pull at once, in the middle of what it does', async (t) => {
  for (const where of ['manifest', 'blob', 'wait'] as const) {
    await using bed = await Bed.create()
    bed.fake.image([large], '1')
    const abort = new AbortController()
    bed.fake.trick = (request, response) => {
      if (where === 'manifest' ? !isManifest(request) : !isBlob(request, large)) return false
      setImmediate(() => abort.abort(new Error('enough')))
      if (where === 'wait') response.writeHead(503, { 'Retry-After': 1 }).end()
      else if (where === 'blob') response.writeHead(200).write(large.subarray(0, 1000))
      return true
    }
    const began = performance.now()
    await t.rejects(bed.pull({ signal: abort.signal }), { message: 'enough' }, where)
    t.ok(performance.now() - began < 290, 'it waited for nothing')
    bed.clean(t)
  }
})

t.test('a full disk', { skip: await cannotMount() }, async (t) => {
  await using bed = await Bed.create()
  const folder = bed.scratch.mount('none', 'tmpfs', 'size=3m')
  const store = await ImageStore.open(folder)
  const registry = new Registry(store, () => PLAIN_CONFIG, PATIENCE)
  const name = `${bed.fake.host}/team/app:1`
  // First the blob does not fit, then its root layer beside it.
  for (const size of [4, 2]) {
    bed.fake.image([tar({ name: 'x', content: randomBytes(size * 2 ** 20) })], '1')
    await t.rejects(registry.pull(name), { code: 'IMAGE_TOO_LARGE', message: /no space/ })
    t.strictSame(readdirSync(join(folder, 'tmp')), [])
  }
  bed.fake.image([small], '1')
  await registry.pull(name)
  t.equal(store.list().length, 1)
})

t.test('a search', async (t) => {
  await using bed = await Bed.create()
  const search = (limit = 25): Promise<unknown> => bed.registry.search(`${bed.fake.host}/some words`, limit)
  const answer =
    (body: unknown, status = 200): Trick =>
    (_request, response) => {
      response.writeHead(status).end(typeof body === 'string' ? body : JSON.stringify(body))
      return true
    }
  bed.fake.trick = answer({
    results: [
      { name: 'team/app', description: 'an\u001b[2J app – größer', star_count: 7, is_official: true },
      { name: 5 },
      'no object',
      { name: 'other', description: null, star_count: 'many' },
    ],
  })
  t.same(await search(), [
    { name: 'team/app', description: 'an?[2J app – größer', stars: 7, official: true },
    { name: 'other', description: '', stars: 0, official: false },
  ])
  t.equal(((await search(1)) as unknown[]).length, 1)
  t.match(bed.fake.requests.at(-1), 'GET /v1/search?q=some+words&n=1')
  bed.fake.trick = () => false
  await t.rejects(search(), { code: 'NOT_IMPLEMENTED', message: /has no search/ })
  for (const trick of [answer('no json'), answer({}), answer({}, 500), answer('x'.repeat(2 << 20))]) {
    bed.fake.trick = trick
    await t.rejects(search(), { code: 'REGISTRY_FAILED' })
  }
  bed.fake.trick = (_request, response) => (response.destroy(), true)
  await t.rejects(search(), { code: 'REGISTRY_FAILED', message: /the connection broke|cannot reach it/ })
})
