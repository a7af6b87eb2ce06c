import { deepStrictEqual as deepEqual } from 'node:assert'
import { lstatSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { gunzipSync, gzipSync } from 'node:zlib'
import fc from 'fast-check'
import t from 'tap'
import { CoracleError } from '../../src/errors.js'
import { readLayerFile } from '../../src/image/layer.js'
import { readErofs, type Node } from './erofs-reader.js'
import { cannotMount, convert, Scratch } from './mounts.js'
import { entry, header, sha256, tar, type Raw } from './tar-builder.js'

/** What a tree should come out as. */
interface Model {
  type: string
  mode: number
  uid: number
  gid: number
  mtime: number
  nsec: number
  content?: Buffer
  target?: string
  rdev?: number
  xattrs: [string, Buffer][]
  children?: Map<string, Model>
  /** Path of an earlier file that this is a hard link to. */
  linkTo?: string
}

const FLAGS: Record<string, string> = {
  file: '0',
  symlink: '2',
  character: '3',
  block: '4',
  directory: '5',
  fifo: '6',
}
const BITS: Record<string, number> = {
  file: 0o100000,
  symlink: 0o120000,
  character: 0o020000,
  block: 0o060000,
  directory: 0o040000,
  fifo: 0o010000,
}

/** Names of any bytes that a name can have, now and then as long as it can be. */
const name = fc
  .oneof(
    { weight: 8, arbitrary: fc.uint8Array({ minLength: 1, maxLength: 12 }) },
    { weight: 1, arbitrary: fc.uint8Array({ minLength: 250, maxLength: 255 }) },
  )
  .map((bytes) =>
    Buffer.from(bytes.map((byte) => (byte === 0 || byte === 0x2f ? 0x61 : byte))).toString('latin1'),
  )
  .filter((text) => text !== '.' && text !== '..' && !text.startsWith('.wh.'))
const id = fc.oneof(fc.nat(70000), fc.integer({ min: 2 ** 21, max: 0xfffffffe }))
const base = {
  mode: fc.nat(0o7777),
  uid: id,
  gid: id,
  mtime: fc.oneof(fc.nat(2 ** 31), fc.nat(2 ** 34)),
  nsec: fc.nat(999_999_999),
  xattrs: fc.uniqueArray(
    fc.tuple(
      fc.constantFrom('user.a', 'user.bb', 'trusted.ccc', 'security.capability', 'user.long-name'),
      fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
    ),
    { selector: ([key]) => key, maxLength: 3 },
  ),
}
const content = fc
  .oneof(fc.nat(100), fc.constantFrom(4095, 4096, 4097, 8192, 1_100_000))
  .chain((length) => fc.nat(255).map((seed) => Buffer.alloc(length, `${seed}content`)))
const { tree } = fc.letrec<{ tree: Map<string, Model>; node: Model }>((tie) => ({
  node: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    fc.record({ ...base, type: fc.constant('file'), content }),
    fc.record({
      ...base,
      type: fc.constant('symlink'),
      target: fc.oneof(name, fc.constantFrom('/', '../../x', 'a'.repeat(4095), '/etc/'.repeat(300))),
    }),
    fc.record({ ...base, type: fc.constantFrom('character', 'block'), rdev: fc.nat(0xffffffff) }),
    fc.record({ ...base, type: fc.constant('fifo') }),
    fc.record({ ...base, type: fc.constant('directory'), children: tie('tree') }),
  ) as fc.Arbitrary<Model>,
  tree: fc
    .uniqueArray(fc.tuple(name, tie('node')), { selector: ([key]) => key, maxLength: 8 })
    .map((pairs) => new Map(pairs)),
}))

/** Every node with its path, folders before what is in them. */
function* walk(children: Map<string, Model>, prefix = ''): Generator<[string, Model]> {
  for (const [key, node] of children) {
    yield [prefix + key, node]
    if (node.children) yield* walk(node.children, `${prefix}${key}/`)
  }
}

function raw(path: string, node: Model): Raw {
  const major = ((node.rdev ?? 0) & 0xfff00) >> 8
  const minor = (((node.rdev ?? 0) & 0xff) | (((node.rdev ?? 0) >>> 12) & 0xfff00)) >>> 0
  return {
    name: path,
    flag: FLAGS[node.type]!,
    mode: node.mode,
    uid: node.uid,
    gid: node.gid,
    mtime: node.mtime,
    ...(node.content ? { content: node.content } : {}),
    ...(node.target === undefined ? {} : { link: node.target }),
    ...(node.type === 'character' || node.type === 'block' ? { major, minor } : {}),
    pax: [
      ['mtime', `${node.mtime}.${String(node.nsec).padStart(9, '0')}`],
      ...node.xattrs.map(([key, value]): [string, Buffer] => [`SCHILY.xattr.${key}`, value]),
    ],
  }
}

const typeOf = (mode: number): string => Object.keys(BITS).find((key) => BITS[key] === (mode & 0o170000))!

function comparable(node: Model): object {
  const { type, mode, uid, gid, mtime, nsec, content, target, rdev, xattrs } = node
  return {
    type,
    mode,
    uid,
    gid,
    time: `${mtime}.${nsec}`,
    content: content && sha256(content),
    target,
    rdev,
    xattrs: [...xattrs].map(([key, value]) => `${key}=${value.toString('hex')}`).sort(),
    children: node.children && [...node.children.keys()].sort(),
  }
}

function fromImage(node: Node): Model {
  const type = typeOf(node.mode)
  return {
    type,
    mode: node.mode & 0o7777,
    uid: node.uid,
    gid: node.gid,
    mtime: Number(node.mtime),
    nsec: node.nsec,
    xattrs: [...node.xattrs],
    ...(node.content ? { content: node.content } : {}),
    ...(node.target === undefined ? {} : { target: node.target }),
    ...(type === 'character' || type === 'block' ? { rdev: node.rdev } : {}),
    ...(node.entries
      ? { children: new Map([...node.entries].map(([key, child]) => [key, fromImage(child)])) }
      : {}),
  }
}

function fromMount(path: Buffer): Model {
  const stat = lstatSync(path, { bigint: true })
  const type = typeOf(Number(stat.mode))
  const children = new Map<string, Model>()
  if (type === 'directory')
    for (const key of readdirSync(path, { encoding: 'buffer' }))
      children.set(key.toString('latin1'), fromMount(Buffer.concat([path, Buffer.from('/'), key])))
  return {
    type,
    mode: Number(stat.mode) & 0o7777,
    uid: Number(stat.uid),
    gid: Number(stat.gid),
    mtime: Number(stat.mtimeNs / 1_000_000_000n),
    nsec: Number(stat.mtimeNs % 1_000_000_000n),
    xattrs: [],
    ...(type === 'file' ? { content: readFileSync(path) } : {}),
    ...(type === 'symlink' ? { target: readlinkSync(path, { encoding: 'buffer' }).toString('latin1') } : {}),
    // Node hands out st_rdev in the C library's form.
    ...(type === 'character' || type === 'block' ? { rdev: kernelDevice(stat.rdev) } : {}),
    ...(type === 'directory' ? { children } : {}),
  }
}

function kernelDevice(device: bigint): number {
  const major = Number(((device >> 8n) & 0xfffn) | ((device >> 32n) & ~0xfffn))
  const minor = Number((device & 0xffn) | ((device >> 12n) & 0xffffff00n))
  return ((minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)) >>> 0
}

/** By path. */
const flatten = (children: Map<string, Model>, withXattrs = true): Map<string, object> =>
  new Map(
    [...walk(children)].map(([path, node]) => [
      path,
      comparable(withXattrs ? node : { ...node, xattrs: [] }),
    ]),
  )

t.test('a random tree comes out as it went in', async (t) => {
  const reason = await cannotMount()
  if (reason) t.comment(`compared by reading the image alone: ${reason}`)
  await fc.assert(
    fc.asyncProperty(tree, fc.integer({ min: 1, max: 5000 }), async (children, piece) => {
      using scratch = new Scratch()
      const archive = tar(...[...walk(children)].map(([path, node]) => raw(path, node)))
      const path = scratch.path()
      const file = await convert(archive, path, { piece: archive.length > 100_000 ? 65536 : piece })
      const image = readFileSync(path)
      deepEqual(image.length % (2 * 2 ** 20), 0)
      deepEqual(file.size, image.length)
      deepEqual(flatten(fromImage(readErofs(image)).children!), flatten(children))
      if (!reason)
        deepEqual(
          flatten(fromMount(Buffer.from(scratch.mount(path, 'erofs'))).children!, false),
          flatten(children, false),
        )
    }),
    { numRuns: 60 },
  )
})

t.test('the same layer gives the same bytes, however it comes', async (t) => {
  using scratch = new Scratch()
  const layer = tar({ name: 'd/', flag: '5' }, { name: 'd/f', content: 'x'.repeat(5000), mtime: 5 })
  const paths = [scratch.path(), scratch.path(), scratch.path()]
  await convert(layer, paths[0]!)
  await convert(layer, paths[1]!, { piece: 1 })
  await convert(gzipSync(layer), paths[2]!, { diffId: sha256(layer), piece: 7 })
  const [first, ...others] = paths.map((path) => sha256(readFileSync(path)))
  for (const other of others) t.equal(other, first)
})

t.test('a folder of thousands of names', async (t) => {
  using scratch = new Scratch()
  const names = Array.from({ length: 3000 }, (_, i) => `name-${(i * 7919) % 3000}`)
  const path = scratch.path()
  await convert(tar(...names.map((key): Raw => ({ name: `d/${key}` }))), path)
  const root = readErofs(readFileSync(path))
  t.strictSame([...root.entries!.get('d')!.entries!.keys()], [...names].sort())
  const reason = await cannotMount()
  if (reason) return t.comment(reason)
  t.strictSame(readdirSync(`${scratch.mount(path, 'erofs')}/d`).sort(), [...names].sort())
})

t.test('hard links share an inode, and a name taken twice is the later one', async (t) => {
  using scratch = new Scratch()
  const path = scratch.path()
  await convert(
    tar(
      { name: './a', content: 'old' },
      { name: '/b', flag: '1', link: './a' },
      { name: 'c', flag: '1', link: '/b' },
      { name: 'a', content: 'new' },
      { name: 's', flag: '2', link: 'a' },
      { name: 't', flag: '1', link: 's' },
    ),
    path,
  )
  const entries = readErofs(readFileSync(path)).entries!
  t.equal(entries.get('a')!.content!.toString(), 'new')
  t.equal(entries.get('a')!.links, 1)
  t.equal(entries.get('b')!.nid, entries.get('c')!.nid)
  t.equal(entries.get('b')!.links, 2)
  t.equal(entries.get('b')!.content!.toString(), 'old')
  t.equal(entries.get('t')!.target, 'a')
})

t.test('whiteouts, opaque folders and what aufs left', async (t) => {
  using scratch = new Scratch()
  const path = scratch.path()
  const file = await convert(
    tar(
      { name: 'x/.wh.gone' },
      { name: 'x/.wh.again' },
      { name: 'x/again/', flag: '5' },
      { name: 'x/.wh.file' },
      { name: 'x/file', content: '1' },
      { name: 'y/.wh..wh..opq' },
      { name: 'y/.wh.needless' },
      { name: '.wh..wh.plnk/1.2' },
      { name: 'overlay', pax: [['SCHILY.xattr.trusted.overlay.redirect', '/etc']] },
    ),
    path,
  )
  t.match(file, { empty: false, opaque: false })
  const { entries } = readErofs(readFileSync(path))
  const x = entries!.get('x')!.entries!
  t.strictSame([...x.keys()], ['again', 'file', 'gone'])
  t.match(x.get('gone'), { mode: 0o020000 | 0, rdev: 0 })
  t.equal(x.get('again')!.xattrs.get('trusted.overlay.opaque')?.toString(), 'y')
  t.equal(entries!.get('y')!.xattrs.get('trusted.overlay.opaque')?.toString(), 'y')
  t.equal(entries!.get('y')!.entries!.size, 0)
  t.notOk(entries!.has('.wh..wh.plnk'))
  t.equal(entries!.get('overlay')!.xattrs.size, 0, "overlayfs's own attributes are not an image's to set")
})

t.test('the label tells empty layers and those that hide all', async (t) => {
  using scratch = new Scratch()
  const [empty, opaque] = [scratch.path(), scratch.path()]
  t.match(await convert(tar({ name: './', flag: '5' }), empty), { empty: true, opaque: false })
  t.match(await convert(tar({ name: '.wh..wh..opq' }), opaque), { empty: false, opaque: true })
  t.match(await readLayerFile(empty), { empty: true, opaque: false, size: 2 ** 21 })
  t.match(await readLayerFile(opaque), { empty: false, opaque: true })
})

t.test('sparse files of all four formats', async (t) => {
  using scratch = new Scratch()
  const stored = Buffer.from('A'.repeat(600) + 'B'.repeat(100))
  const expected = Buffer.alloc(20000)
  stored.copy(expected, 1000, 0, 600)
  stored.copy(expected, 9000, 600)
  const map = '1000,600,9000,100'
  const lines = `2\n${map.replaceAll(',', '\n')}\n`
  const sparseHeader = (block: Buffer): void => {
    const octal = (value: number): string => `${value.toString(8).padStart(11, '0')}\0`
    map.split(',').forEach((value, i) => block.write(octal(Number(value)), 386 + 12 * i, 'latin1'))
    block.write(octal(20000), 483, 'latin1')
  }
  const path = scratch.path()
  await convert(
    tar(
      { name: 'old', flag: 'S', content: stored, magic: 'ustar  \0', change: sparseHeader },
      entry({
        name: 'v00',
        content: stored,
        pax: [
          ['GNU.sparse.size', '20000'],
          ['GNU.sparse.numblocks', '2'],
          ...map
            .split(',')
            .map((value, i): [string, string] => [
              i % 2 ? 'GNU.sparse.numbytes' : 'GNU.sparse.offset',
              value,
            ]),
        ],
      }),
      {
        name: 'GNUSparseFile.1/v01',
        content: stored,
        pax: [
          ['GNU.sparse.size', '20000'],
          ['GNU.sparse.map', map],
          ['GNU.sparse.name', 'v01'],
        ],
      },
      {
        name: 'GNUSparseFile.1/v10',
        content: Buffer.concat([Buffer.from(lines.padEnd(512, '\0')), stored]),
        pax: [
          ['GNU.sparse.major', '1'],
          ['GNU.sparse.minor', '0'],
          ['GNU.sparse.name', 'v10'],
          ['GNU.sparse.realsize', '20000'],
        ],
      },
    ),
    path,
  )
  const { entries } = readErofs(readFileSync(path))
  for (const key of ['old', 'v00', 'v01', 'v10']) t.ok(entries!.get(key)?.content?.equals(expected), key)
})

/** What strangers may send, and the words that the refusal must hold. */
const deep = Array.from({ length: 40 }, () => 'd'.repeat(120)).join('/')
const HOSTILE: Record<string, [Buffer, RegExp]> = {
  'out by ..': [tar({ name: '../evil' }), /\.\.\/evil.*"\.\."/],
  'out by .. in the middle': [tar({ name: 'a/../../evil' }), /leads out/],
  'out by .. behind a slash': [tar({ name: '/../evil' }), /leads out/],
  'a hard link out': [tar({ name: 'a', flag: '1', link: '../../etc/passwd' }), /hard link leads out/],
  'a hard link to nothing': [tar({ name: 'a', flag: '1', link: 'etc/passwd' }), /not before it/],
  'a hard link to a folder': [
    tar({ name: 'd/', flag: '5' }, { name: 'a', flag: '1', link: 'd' }),
    /to a folder/,
  ],
  'a hard link through a symbolic one': [
    tar({ name: 's', flag: '2', link: '/etc' }, { name: 'a', flag: '1', link: 's/passwd' }),
    /not before it/,
  ],
  'a folder that is a symbolic link': [
    tar({ name: 's', flag: '2', link: '/etc' }, { name: 's/passwd', content: 'x' }),
    /s\/passwd.*symbolic link/,
  ],
  'a folder that is a file': [tar({ name: 's' }, { name: 's/x' }), /not a folder/],
  'one name, two types': [tar({ name: 'a' }, { name: 'a', flag: '2', link: 'b' }), /twice/],
  'a folder, then a file': [tar({ name: 'a/b' }, { name: 'a' }), /twice/],
  'a NUL in a name': [tar({ name: 'x', pax: [['path', 'a\0b']] }), /NUL/],
  'a NUL in a link': [tar({ name: 'x', flag: '2', pax: [['linkpath', 'a\0b']] }), /without NUL/],
  'a long part': [tar({ name: 'n'.repeat(256) }), /255/],
  'a long path': [tar({ name: deep }), /4096/],
  'an empty symbolic link': [tar({ name: 'a', flag: '2' }), /target/],
  'a device that cannot be': [tar({ name: 'a', flag: '3', major: 5000 }), /device 5000:0/],
  'a type of tapes': [tar({ name: 'a', flag: 'M' }), /type "M"/],
  'a root that is a file': [tar({ name: './', flag: '2', link: 'x' }), /root/],
  'a whiteout of nothing': [tar({ name: 'd/.wh.' }), /whiteout/],
  'a whiteout of ..': [tar({ name: 'd/.wh...' }), /whiteout/],
  'a file in a whiteout': [tar({ name: '.wh.a/b' }), /inside a whiteout/],
  'a size that is no number': [
    tar({ name: 'a', change: (block) => block.write('9x', 124) }),
    /size is no number/,
  ],
  'a negative size': [tar({ name: 'a', change: (block) => block.fill(0xff, 124, 136) }), /negative/],
  'a size beyond all': [
    tar({ name: 'a', change: (block) => block.fill(0x7f, 125, 136).writeUInt8(0x80, 124) }),
    /no number/,
  ],
  'a wrong checksum': [
    Buffer.concat([header({ name: 'a' }).fill('7', 148, 150), Buffer.alloc(1024)]),
    /checksum/,
  ],
  'no tar at all': [Buffer.alloc(2000, 'hello '), /checksum/],
  'cut off in a header': [tar({ name: 'a' }).subarray(0, 300), /cut off/],
  'cut off in a content': [
    entry({ name: 'a', content: 'x'.repeat(5000) }).subarray(0, 2000),
    /a: the archive is cut off/,
  ],
  'cut off in an extended header': [entry({ name: 'n'.repeat(200) }).subarray(0, 700), /cut off/],
  'an extended header and nothing': [entry({ name: 'n'.repeat(200) }).subarray(0, 1024), /cut off/],
  'an extended header that is huge': [
    header({ name: 'a', flag: 'x', size: 2 ** 30 }),
    /extended header of 1073741824 bytes/,
  ],
  'an extended header that is damaged': [
    Buffer.concat([header({ name: 'a', flag: 'x', size: 4 }), Buffer.from('99 a'.padEnd(512, '\0'))]),
    /damaged/,
  ],
  'a user id that is none': [tar({ name: 'a', uid: 2 ** 32 }), /no user id/],
  'attributes without end': [
    tar({ name: 'a', pax: [['SCHILY.xattr.user.a', 'x'.repeat(70000)]] }),
    /attribute user\.a is too long/,
  ],
  'a sparse file whose map lies': [
    tar({
      name: 'a',
      content: 'xyz',
      pax: [
        ['GNU.sparse.size', '10'],
        ['GNU.sparse.map', '0,9'],
      ],
    }),
    /sparse map/,
  ],
  'a sparse file beyond its end': [
    tar({
      name: 'a',
      content: 'xyz',
      pax: [
        ['GNU.sparse.size', '10'],
        ['GNU.sparse.map', '8,3'],
      ],
    }),
    /sparse map/,
  ],
  xz: [Buffer.from('fd377a585a000000', 'hex'), /xz.*understood/],
  'gzip that is cut off': [
    gzipSync(tar({ name: 'a', content: 'abc'.repeat(9000) })).subarray(0, 60),
    /cut off/,
  ],
  'gzip that is damaged': [gzipSync(tar({ name: 'a' })).fill(0xee, 20, 40), /gzip/],
  'zstd that is damaged': [Buffer.from('28b52ffd2400010000ff', 'hex'), /zstd/],
}

t.test('hostile layers are refused in one line', async (t) => {
  for (const [what, [layer, words]] of Object.entries(HOSTILE)) {
    using scratch = new Scratch()
    const error = await convert(layer, scratch.path()).then(
      () => undefined,
      (reason: unknown) => reason as CoracleError,
    )
    t.match({ code: error?.code, message: error?.message }, { code: 'IMAGE_ARCHIVE', message: words }, what)
    t.ok(error instanceof CoracleError && !error.message.includes('\n'))
  }
})

t.test('limits hold', async (t) => {
  using scratch = new Scratch()
  const zeros = tar({ name: 'zeros', content: Buffer.alloc(4_000_000) })
  const bomb = gzipSync(zeros)
  t.ok(bomb.length < zeros.length / 500, 'a layer that inflates')
  const cases: [Buffer, object][] = [
    [bomb, { bytes: 1_000_000 }],
    [
      tar({
        name: 'hole',
        pax: [
          ['GNU.sparse.size', String(2 ** 50)],
          ['GNU.sparse.map', '0,0'],
        ],
      }),
      { bytes: 2 ** 40 },
    ],
    [tar({ name: 'a' }, { name: 'b' }, { name: 'c' }), { entries: 2 }],
    [tar({ name: 'a/'.repeat(2000) }), { entries: 1000 }],
    [tar({ name: 'n'.repeat(200) }, { name: 'm'.repeat(200) }), { metadata: 300 }],
  ]
  for (const [layer, limits] of cases)
    await t.rejects(convert(layer, scratch.path(), { limits, diffId: sha256(layer) }), {
      code: 'IMAGE_TOO_LARGE',
    })
  await t.rejects(convert(gunzipSync(bomb), scratch.path(), { diffId: sha256(bomb) }), {
    code: 'IMAGE_ARCHIVE',
    message: /its content is another/,
  })
})

t.test('damaged layers end in an error of ours or not at all', async () => {
  const whole = tar(
    { name: 'd/', flag: '5' },
    { name: `d/${'n'.repeat(150)}`, content: 'x'.repeat(700), pax: [['SCHILY.xattr.user.a', 'b']] },
    { name: 'l', flag: '1', link: `d/${'n'.repeat(150)}` },
    {
      name: 's',
      content: 'xyz',
      pax: [
        ['GNU.sparse.size', '10'],
        ['GNU.sparse.map', '3,3'],
      ],
    },
  )
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { minLength: 1, maxLength: 6 }),
      fc.nat(whole.length),
      async (changes, cut) => {
        using scratch = new Scratch()
        const damaged = Buffer.from(whole)
        for (const [at, value] of changes) {
          damaged[at] = value
          // Make its header's checksum right again, or nothing but the checksum would be tested.
          const start = at - (at % 512)
          const block = damaged.subarray(start, start + 512)
          block.fill(' ', 148, 156)
          const sum = block.reduce((total, byte) => total + byte, 0)
          block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
        }
        const layer = cut % 5 === 0 ? damaged.subarray(0, cut) : damaged
        try {
          await convert(layer, scratch.path(), { limits: { bytes: 2 ** 24 } })
        } catch (error) {
          if (!(error instanceof CoracleError)) throw error
        }
      },
    ),
    { numRuns: 300 },
  )
})
