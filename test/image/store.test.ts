import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, lstatSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { deepStrictEqual as deepEqual } from 'node:assert'
import { gzipSync } from 'node:zlib'
import fc from 'fast-check'
import t from 'tap'
import { cached } from '../../src/debian/index.js'
import { CoracleError } from '../../src/errors.js'
import { busyboxArchive } from '../../src/image/busybox.js'
import { ImageStore } from '../../src/image/store.js'
import { blobEntry, configOf, dockerArchive, ociEntries } from './archive-builder.js'
import { readErofs } from './erofs-reader.js'
import { cannotMount, Scratch } from './mounts.js'
import { sha256, stream, tar, type Raw } from './tar-builder.js'

/** Every file of a store but its lock. */
const files = (root: string): string[] =>
  (readdirSync(root, { recursive: true, encoding: 'utf8' }) as string[])
    .filter((path) => path !== 'lock' && lstatSync(join(root, path)).isFile())
    .sort()

const base = tar(
  { name: 'etc/', flag: '5' },
  { name: 'etc/a', content: 'a' },
  { name: 'etc/b', content: 'b' },
)
const change = tar({ name: 'etc/.wh.a' }, { name: 'etc/b', content: 'B' })

/** zstd's frame of raw blocks (RFC 8878): enough to be read, without a compressor. */
function zstd(data: Buffer): Buffer {
  const parts: Buffer[] = [Buffer.from('28b52ffd0058', 'hex')]
  for (let at = 0; at < data.length; at += 65536) {
    const block = data.subarray(at, at + 65536)
    const head = Buffer.alloc(3)
    head.writeUIntLE((block.length << 3) | (at + 65536 >= data.length ? 1 : 0), 0, 3)
    parts.push(head, block)
  }
  return Buffer.concat(parts)
}

t.test('archives of every form give the same image', async (t) => {
  const parts = { layers: [base, change], names: ['test:1'] }
  const oci = ociEntries(parts)
  const forms: Record<string, Buffer> = {
    'docker-archive': dockerArchive(parts),
    'OCI layout': tar(...oci),
    'OCI layout, names with ./': tar(...oci.map((entry) => ({ ...entry, name: `./${entry.name}` }))),
    'OCI layout in any order': tar(...oci.reverse()),
    'OCI layout in gzip': gzipSync(tar(...oci)),
    'OCI layout in zstd': zstd(tar(...oci)),
    'OCI layout of gzip layers': tar(...ociEntries(parts, { gzip: true })),
    'OCI layout of several platforms': tar(...ociEntries(parts, { nested: true })),
    'docker-archive in gzip': gzipSync(dockerArchive(parts)),
  }
  for (const [form, archive] of Object.entries(forms)) {
    using scratch = new Scratch()
    const store = await ImageStore.open(scratch.folder)
    const images = await store.load(stream(archive, 1000))
    t.equal(images.length, 1, form)
    const [image] = images
    t.match(image, {
      id: sha256(configOf(parts)),
      tags: ['test:1'],
      architecture: 'amd64',
      os: 'linux',
      created: '2026-01-02T03:04:05Z',
      config: { Cmd: ['sh'] },
      layers: [{ diffId: sha256(base) }, { diffId: sha256(change) }],
    })
    for (const { path, size } of image!.layers) t.equal(lstatSync(path).size, size)
    t.strictSame(store.get('test:1'), image)
    t.match(store.config(image!), { rootfs: { type: 'layers' } })
    t.strictSame((await ImageStore.open(scratch.folder)).list(), images, 'a new opening finds it')
    t.strictSame(readdirSync(join(scratch.folder, 'tmp')), [])
  }
})

t.test('several images share layers, links stand for layers, and a name moves', async (t) => {
  using scratch = new Scratch()
  const store = await ImageStore.open(scratch.folder)
  const images = await store.load(
    stream(
      dockerArchive(
        { layers: [base], names: ['one:1', 'registry.example:5000/team/one:2'] },
        { layers: [base, change], names: ['two'] },
      ),
    ),
  )
  t.equal(images.length, 2)
  t.strictSame(images[0]!.tags, ['one:1', 'registry.example:5000/team/one:2'])
  t.strictSame(images[1]!.tags, ['two:latest'])
  t.equal(files(join(scratch.folder, 'layers')).length, 2)
  const before = lstatSync(images[0]!.layers[0]!.path).ino
  const config = configOf({ layers: [base, base], config: { Cmd: ['other'] } })
  const [linked] = await store.load(
    stream(
      tar(
        { name: 'x/layer.tar', content: base },
        { name: 'y/layer.tar', flag: '2', link: '../x/layer.tar' },
        { name: 'config', content: config },
        {
          name: 'manifest.json',
          content: JSON.stringify([
            { Config: 'config', RepoTags: ['one:1'], Layers: ['x/layer.tar', 'y/layer.tar'] },
          ]),
        },
      ),
    ),
  )
  t.equal(linked!.layers.length, 1, 'of a layer that occurs twice one makes a difference')
  t.equal(lstatSync(linked!.layers[0]!.path).ino, before, 'a layer that was there stays the same file')
  t.equal(store.get('one:1').id, linked!.id)
  t.strictSame(store.get(images[0]!.id).tags, ['registry.example:5000/team/one:2'])
})

t.test('layers that change nothing, and those that hide all', async (t) => {
  using scratch = new Scratch()
  const store = await ImageStore.open(scratch.folder)
  const empty = tar({ name: './', flag: '5' })
  const opaque = tar({ name: '.wh..wh..opq' }, { name: 'only' })
  const [image] = await store.load(stream(dockerArchive({ layers: [base, empty, opaque, empty, change] })))
  t.strictSame(
    image!.layers.map(({ diffId }) => diffId),
    [sha256(opaque), sha256(change)],
  )
})

t.test('names, ids and the starts of ids', async (t) => {
  using scratch = new Scratch()
  const store = await ImageStore.open(scratch.folder)
  const archive = tar(...ociEntries({ layers: [base] }, { name: 'busybox' + ':latest' }))
  const [image] = await store.load(stream(archive))
  const { id } = image!
  t.match(image!.digests, [/^busybox@sha256:[0-9a-f]{64}$/])
  for (const reference of [
    'busybox',
    'busybox:latest',
    'library/busybox',
    'docker.io/busybox',
    'index.docker.io/library/busybox:latest',
    image!.digests[0]!,
    id,
    id.slice(7),
    id.slice(7, 19),
    id.slice(0, 12),
  ])
    t.equal(store.get(reference).id, id, reference)
  for (const reference of [
    'busybox:1',
    'example.org/busybox',
    'f'.repeat(64),
    `busybox@sha256:${'0'.repeat(64)}`,
  ])
    t.throws(() => store.get(reference), { code: 'NO_SUCH_IMAGE', message: /coracle load/ }, reference)
  for (const reference of [
    '',
    'Bus',
    'a//b',
    'a:b:c',
    'a@sha256:12',
    '-x',
    'a/../b',
    'x'.repeat(300),
    '__proto__',
  ])
    t.throws(() => store.get(reference), { code: 'INVALID_ARGUMENT' }, reference)
  t.throws(
    () => {
      store.tag('busybox', image!.digests[0]!)
    },
    { code: 'INVALID_ARGUMENT' },
  )
  store.tag(id.slice(7, 19), 'ghcr.io/team/box:v1')
  t.strictSame(store.get(id).tags, ['busybox:latest', 'ghcr.io/team/box:v1'])
})

t.test('removal unties names first, and keeps what others need', async (t) => {
  using scratch = new Scratch()
  const store = await ImageStore.open(scratch.folder)
  const [one, two] = await store.load(
    stream(dockerArchive({ layers: [base], names: ['one'] }, { layers: [base, change], names: ['two'] })),
  )
  store.tag('one', 'other/one:x')
  t.throws(() => store.remove(one!.id), { code: 'CONFLICT', message: /one:latest, other\/one:x/ })
  t.strictSame(store.remove('one'), [{ Untagged: 'one:latest' }])
  const inUse = (): string => 'container 0123 is using it'
  t.throws(() => store.remove('other/one:x', { inUse }), { code: 'CONFLICT', message: /container 0123/ })
  t.strictSame(store.remove('other/one:x'), [{ Untagged: 'other/one:x' }, { Deleted: one!.id }])
  t.throws(() => store.get(one!.id), { code: 'NO_SUCH_IMAGE' })
  t.ok(two!.layers.every(({ path }) => existsSync(path)))
  t.strictSame(store.remove(two!.id.slice(7, 15)), [{ Untagged: 'two:latest' }, { Deleted: two!.id }])
  t.strictSame(files(scratch.folder), ['index.json'])
  const [oci] = await store.load(stream(tar(...ociEntries({ layers: [base] }, { name: 'r:1' }))))
  t.match(store.remove('r:1'), [{ Untagged: 'r:1' }, { Untagged: /^r@sha256/ }, { Deleted: oci!.id }])
})

const good = { layers: [base], names: ['a:1'] }
const changed = (name: RegExp, content: (old: Buffer) => Buffer | undefined): Buffer =>
  tar(
    ...ociEntries(good).flatMap((entry): Raw[] => {
      if (!name.test(entry.name)) return [entry]
      const bytes = content(entry.content as Buffer)
      return bytes ? [{ ...entry, content: bytes }] : []
    }),
  )
const layerName = new RegExp(sha256(base).slice(7))
const configName = new RegExp(sha256(configOf(good)).slice(7))
const HOSTILE: Record<string, [Buffer, RegExp, string?]> = {
  nothing: [Buffer.alloc(0), /neither manifest\.json/],
  'no image archive': [base, /neither manifest\.json/],
  'no archive': [Buffer.from('hello '.repeat(500)), /checksum/],
  'cut off': [dockerArchive(good).subarray(0, 700), /cut off/],
  'before Docker 1.10': [tar({ name: 'repositories', content: '{}' }), /1\.10/],
  'out by ..': [tar({ name: '../manifest.json', content: '[]' }), /leads out of the archive/],
  'a link out': [tar({ name: 'manifest.json', flag: '2', link: '../../etc/passwd' }), /leads out/],
  'links in a circle': [
    tar({ name: 'manifest.json', flag: '2', link: 'b' }, { name: 'b', flag: '2', link: 'manifest.json' }),
    /lead nowhere/,
  ],
  'a device': [tar({ name: 'dev', flag: '3', major: 1, minor: 3 }), /device/],
  'a list of no images': [tar({ name: 'manifest.json', content: '[]' }), /no list of images/],
  'no JSON': [tar({ name: 'manifest.json', content: '[{' }), /no JSON/],
  'JSON of another shape': [
    tar({ name: 'manifest.json', content: '[{"Config":1,"Layers":[]}]' }),
    /Config and Layers/,
  ],
  'a config that is not there': [
    tar({ name: 'manifest.json', content: '[{"Config":"x","Layers":[]}]' }),
    /x: it is not in the archive/,
  ],
  'a config with a lying name': [
    tar(
      { name: `${'0'.repeat(64)}.json`, content: configOf(good) },
      { name: 'manifest.json', content: `[{"Config":"${'0'.repeat(64)}.json","Layers":[]}]` },
    ),
    /its content is another/,
  ],
  'a bad name': [dockerArchive({ ...good, names: ['UPPER:1'] }), /invalid image name/],
  'fewer layers than the config says': [
    dockerArchive({ ...good, diffIds: [sha256(base), sha256(change)] }),
    /1 layers, but the config tells of 2/,
  ],
  'a diffID that lies': [dockerArchive({ ...good, diffIds: [sha256(change)] }), /its content is another/],
  'a diffID that is none': [dockerArchive({ ...good, diffIds: ['../../x'] }), /diff_id/],
  'another platform': [
    dockerArchive({ ...good, platform: { os: 'linux', architecture: 's390x' } }),
    /no image for linux\/amd64.*linux\/s390x/,
  ],
  'a config of the wrong shape': [dockerArchive({ ...good, config: { Env: 'PATH=/' } }), /Env/],
  'a manifest too large': [
    tar({ name: 'manifest.json', content: Buffer.alloc(5 * 2 ** 20, ' ') }),
    /5242880 bytes/,
    'IMAGE_TOO_LARGE',
  ],
  'too many layers': [
    dockerArchive({ layers: Array.from({ length: 128 }, (_, i) => tar({ name: String(i) })) }),
    /128 layers/,
    'IMAGE_TOO_LARGE',
  ],
  'a layer blob that lies': [changed(layerName, () => Buffer.alloc(base.length)), /its content is another/],
  'a layer blob of another length': [changed(layerName, (old) => old.subarray(512)), /bytes, but/],
  'a layer blob that is missing': [changed(layerName, () => undefined), /not in the archive/],
  'a config blob that lies': [
    changed(configName, (old) => Buffer.from(old.toString().replace('"sh"', '"zz"'))),
    /its content is another/,
  ],
  'an index of another version': [
    changed(/index/, () => Buffer.from('{"schemaVersion":1}')),
    /no image index/,
  ],
  'an index with no images': [
    changed(/index/, () => Buffer.from('{"schemaVersion":2,"manifests":[]}')),
    /no image is in it/,
  ],
  'an index with a path for a digest': [
    changed(/index/, () =>
      Buffer.from('{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x","size":1}]}'),
    ),
    /without a sha256 digest/,
  ],
  'a hostile layer': [dockerArchive({ layers: [tar({ name: '../x' })] }), /leads out of the layer/],
}

t.test('hostile archives leave nothing but one line', async (t) => {
  using scratch = new Scratch()
  const store = await ImageStore.open(scratch.folder)
  for (const [what, [archive, words, code = 'IMAGE_ARCHIVE']] of Object.entries(HOSTILE)) {
    const error = await store.load(stream(archive)).then(
      () => undefined,
      (reason: unknown) => reason as CoracleError,
    )
    t.match({ code: error?.code, message: error?.message }, { code, message: words }, what)
    t.notMatch(error?.message, /\n/)
    t.strictSame(files(scratch.folder), [], what)
  }
})

t.test('an index that goes round in circles ends', async (t) => {
  using scratch = new Scratch()
  const store = await ImageStore.open(scratch.folder)
  let inner = Buffer.from('{"schemaVersion":2,"manifests":[]}')
  const entries: Raw[] = []
  for (let depth = 0; depth < 9; depth++) {
    entries.push(blobEntry(inner))
    const descriptor = {
      mediaType: 'application/vnd.oci.image.index.v1+json',
      digest: sha256(inner),
      size: inner.length,
    }
    inner = Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: [descriptor] }))
  }
  await t.rejects(store.load(stream(tar(...entries, { name: 'index.json', content: inner }))), {
    code: 'IMAGE_ARCHIVE',
    message: /nested too deeply/,
  })
})

t.test('limits hold for archives', async (t) => {
  using scratch = new Scratch()
  const big = { layers: [tar({ name: 'zeros', content: Buffer.alloc(3_000_000) })] }
  const store = await ImageStore.open(scratch.folder, { bytes: 2_000_000 })
  await t.rejects(
    store.load(stream(gzipSync(dockerArchive(big)))),
    { code: 'IMAGE_TOO_LARGE' },
    'the archive',
  )
  await t.rejects(
    store.load(stream(tar(...ociEntries(big, { gzip: true })))),
    { code: 'IMAGE_TOO_LARGE' },
    'a layer',
  )
  t.strictSame(files(scratch.folder), [])
})

t.test('a full disk', { skip: await cannotMount() }, async (t) => {
  using scratch = new Scratch()
  const store = await ImageStore.open(scratch.mount('tmpfs', 'tmpfs', 'size=1m'))
  const big = { layers: [tar({ name: 'zeros', content: Buffer.alloc(3_000_000) })] }
  await t.rejects(store.load(stream(dockerArchive(big))), { code: 'IMAGE_TOO_LARGE', message: /no space/ })
  await t.rejects(store.load(stream(gzipSync(tar(...ociEntries(big, { gzip: true }))))), {
    message: /no space/,
  })
  t.strictSame(files(store.root), [])
})

t.test('a signal ends a load', async (t) => {
  using scratch = new Scratch()
  const store = await ImageStore.open(scratch.folder)
  const reason = new Error('enough')
  await t.rejects(store.load(stream(dockerArchive(good)), { signal: AbortSignal.abort(reason) }), reason)
  const late = new AbortController()
  const onProgress = ({ phase }: { phase: string }): void => {
    if (phase === 'convert') late.abort(reason)
  }
  await t.rejects(store.load(stream(dockerArchive(good)), { signal: late.signal, onProgress }), reason)
  t.strictSame(files(scratch.folder), [])
})

t.test('two loads of the same, and two stores on one folder', async (t) => {
  using scratch = new Scratch()
  const [first, second] = [await ImageStore.open(scratch.folder), await ImageStore.open(scratch.folder)]
  const archive = dockerArchive({ layers: [base, change], names: ['a'] })
  const loads = await Promise.all([first.load(stream(archive)), second.load(stream(archive))])
  t.strictSame(loads[0], loads[1])
  second.tag('a', 'b')
  t.equal(first.get('b').id, loads[0][0]!.id, "one sees the other's changes")
  t.strictSame(files(join(scratch.folder, 'layers')).length, 2)
})

t.test('killed in the middle, a load leaves a store that opens clean', async (t) => {
  using scratch = new Scratch()
  const root = join(scratch.folder, 'store')
  const archive = join(scratch.folder, 'archive.tar')
  const noise = Buffer.alloc(3_000_000, sha256(base))
  writeFileSync(
    archive,
    dockerArchive({ layers: [tar({ name: 'noise', content: noise }), base], names: ['killed'] }),
  )
  const store = await ImageStore.open(root)
  const [kept] = await store.load(stream(dockerArchive({ layers: [change], names: ['kept'] })))
  const before = files(root)
  for (let round = 0; round < 6; round++) {
    const child = spawn(
      process.execPath,
      [fileURLToPath(new URL('./load-child.js', import.meta.url)), root, archive],
      {
        stdio: ['ignore', 'pipe', 'inherit'],
      },
    )
    const exited = once(child, 'exit')
    // Each round kills after another number of steps.
    let steps = 0
    for await (const chunk of child.stdout) {
      steps += (chunk as Buffer).toString().split('\n').length - 1
      if (steps > round * 2) child.kill('SIGKILL')
    }
    await exited
    writeFileSync(join(root, 'index.json.1.new'), 'half an ind')
    const again = await ImageStore.open(root)
    t.strictSame(again.get('kept').id, kept!.id)
    const killed = again.list().find(({ tags }) => tags.includes('killed:latest'))
    // Acknowledged in full, or not at all.
    if (killed) {
      for (const layer of killed.layers)
        t.equal(readErofs(readFileSync(layer.path)).mode & 0o170000, 0o040000)
      again.remove('killed')
    }
    t.strictSame(files(root), before, `round ${round}`)
    t.strictSame(readdirSync(join(root, 'tmp')), [])
  }
})

/** A layer's content in names a, b, c. */
type Change =
  | { kind: 'file'; content: number }
  | { kind: 'link'; target: string }
  | { kind: 'gone' }
  | { kind: 'folder'; mode: number; opaque: boolean; children: Record<string, Change> }

const { folder } = fc.letrec<{ folder: Record<string, Change>; change: Change }>((tie) => ({
  change: fc.oneof(
    { depthSize: 'medium', withCrossShrink: true },
    fc.record({ kind: fc.constant('file'), content: fc.nat(9) }),
    fc.record({ kind: fc.constant('link'), target: fc.constantFrom('a', '../b') }),
    fc.record({ kind: fc.constant('gone') }),
    fc.record({
      kind: fc.constant('folder'),
      mode: fc.constantFrom(0o755, 0o1777, 0o700),
      opaque: fc.boolean(),
      children: tie('folder'),
    }),
  ) as fc.Arbitrary<Change>,
  folder: fc.dictionary(fc.constantFrom('a', 'b', 'c'), tie('change'), { maxKeys: 3, noNullPrototype: true }),
}))

function* entriesOf(children: Record<string, Change>, prefix = ''): Generator<Raw> {
  for (const [name, node] of Object.entries(children)) {
    const path = prefix + name
    if (node.kind === 'gone') yield { name: `${prefix}.wh.${name}` }
    else if (node.kind === 'file') yield { name: path, content: String(node.content) }
    else if (node.kind === 'link') yield { name: path, flag: '2', link: node.target }
    else {
      yield { name: `${path}/`, flag: '5', mode: node.mode }
      if (node.opaque) yield { name: `${path}/.wh..wh..opq` }
      yield* entriesOf(node.children, `${path}/`)
    }
  }
}

type Tree = Map<string, string | { mode: number; children: Tree }>

/** What unpacking the layer over what is there gives (OCI image-spec layer.md, "Applying Changesets"). */
function apply(below: Tree, children: Record<string, Change>): Tree {
  const result: Tree = new Map(below)
  for (const [name, node] of Object.entries(children)) {
    if (node.kind === 'gone') result.delete(name)
    else if (node.kind === 'file') result.set(name, `file ${node.content}`)
    else if (node.kind === 'link') result.set(name, `link ${node.target}`)
    else {
      const old = below.get(name)
      const merged = typeof old === 'object' && !node.opaque ? old.children : new Map()
      result.set(name, { mode: node.mode, children: apply(merged as Tree, node.children) })
    }
  }
  return result
}

function readTree(path: string): Tree {
  const tree: Tree = new Map()
  for (const name of readdirSync(path).sort()) {
    // In a folder that no layer below has, overlayfs lists a whiteout's name, though nothing is there.
    const stat = lstatSync(join(path, name), { throwIfNoEntry: false })
    if (!stat) continue
    if (stat.isDirectory()) tree.set(name, { mode: stat.mode & 0o7777, children: readTree(join(path, name)) })
    else if (stat.isSymbolicLink()) tree.set(name, `link ${readlinkSync(join(path, name))}`)
    else tree.set(name, `file ${readFileSync(join(path, name), 'utf8')}`)
  }
  return tree
}

const plain = (tree: Tree): object =>
  Object.fromEntries(
    [...tree]
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([name, node]) => [
        name,
        typeof node === 'string' ? node : { mode: node.mode, in: plain(node.children) },
      ]),
  )

t.test(
  'layers over one another show what unpacking them in turn would',
  { skip: await cannotMount() },
  async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(folder, { minLength: 1, maxLength: 4 }), async (layers) => {
        using scratch = new Scratch()
        const store = await ImageStore.open(join(scratch.folder, 'store'))
        const [image] = await store.load(
          stream(dockerArchive({ layers: layers.map((layer) => tar(...entriesOf(layer))) })),
        )
        const expected = layers.reduce((below: Tree, layer) => apply(below, layer), new Map())
        const shown =
          image!.layers.length === 0
            ? new Map()
            : readTree(scratch.overlay(image!.layers.map(({ path }) => path)))
        deepEqual(plain(shown as Tree), plain(expected))
      }),
      { numRuns: 60 },
    )
  },
)

const busybox = cached('tools')?.file('busybox')
t.test(
  'the embedded busybox',
  { skip: busybox ? false : 'set-up has not fetched busybox here' },
  async (t) => {
    const program = busybox!
    using scratch = new Scratch()
    const archive = await busyboxArchive(program)
    t.ok(archive.equals(await busyboxArchive(program)), 'the same bytes every time')
    const store = await ImageStore.open(scratch.folder)
    const [image] = await store.load(stream(archive))
    t.match(image, { tags: ['busybox:latest'], config: { Cmd: ['sh'] } })
    const root = readErofs(readFileSync(image!.layers[0]!.path)).entries!
    t.equal(root.get('tmp')!.mode & 0o7777, 0o1777)
    t.equal(root.get('bin')!.entries!.get('sh')!.nid, root.get('bin')!.entries!.get('busybox')!.nid)
  },
)
