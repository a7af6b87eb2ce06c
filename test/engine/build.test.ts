import { once } from 'node:events'
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { type RequestListener, createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { BuildCache } from '../../src/engine/build/cache.js'
import { BuildCaches, type CacheRequest } from '../../src/engine/build/caches.js'
import type { CopiedTree } from '../../src/engine/build/copy.js'
import { download } from '../../src/engine/build/download.js'
import { Repository, isRepository, parseRepository } from '../../src/engine/build/repository.js'
import { parseRunMount } from '../../src/engine/build/run-mounts.js'
import { remoteTree, unpackedTree } from '../../src/engine/build/trees.js'
import { parseInstruction } from '../../src/image/dockerfile/parse.js'
import { entry, sha256, tar } from '../image/tar-builder.js'
import { backend } from './git-backend.js'

const { signal } = new AbortController()

/** A server on the loopback, for the length of a test. */
async function serve(t: Test, listener: RequestListener): Promise<string> {
  const server = createServer(listener).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

t.test('ADD of an address', async (t) => {
  const root = await serve(t, (request, response) => {
    const path = request.url!
    if (path === '/loop') response.writeHead(302, { Location: '/loop' }).end()
    else if (path === '/away') response.writeHead(302, { Location: 'file:///etc/passwd' }).end()
    else if (path === '/there') response.writeHead(301, { Location: '/a%20file?x' }).end()
    else if (path === '/short')
      response.writeHead(200, { 'Content-Length': 9 }).write('four', () => response.destroy())
    else if (path === '/stall') response.writeHead(200).write('x')
    else if (path === '/endless') {
      const more = (): void =>
        void (response.write(Buffer.alloc(65536)) ? setImmediate(more) : response.once('drain', more))
      more()
    } else if (path === '/gone') response.writeHead(404).end()
    else response.writeHead(200, { 'Last-Modified': 'Thu, 01 Jan 1970 00:01:40 GMT' }).end('content')
  })
  const folder = t.testdir()
  let number = 0
  const options = { anywhere: true, signal, limit: 1024 ** 2, stall: 300 }
  const fetch = (path: string, more = {}): ReturnType<typeof download> =>
    download(`${root}${path}`, join(folder, String(number++)), { ...options, ...more })

  const tree = await remoteTree(`${root}/there`, {
    ...options,
    scratch: join(folder, 'tree'),
    isFolder: false,
    checksum: undefined,
  })
  t.equal(Buffer.concat([...tree.content(tree.entries[0]!)]).toString(), 'content', 'redirected')
  t.match(tree, {
    name: 'there',
    isFolder: false,
    entries: [{ entry: { mode: 0o600, mtime: 100, size: 7 } }],
  })
  tree[Symbol.dispose]()
  const named = { ...options, isFolder: true, checksum: undefined }
  const file = await remoteTree(`${root}/a%20file`, { ...named, scratch: join(folder, 'file') })
  t.equal(file.name, 'a file')
  file[Symbol.dispose]()
  await t.rejects(remoteTree(`${root}/x/`, { ...named, scratch: join(folder, 'none') }), {
    message: /filename/,
  })
  await t.rejects(
    remoteTree(`${root}/x`, {
      ...named,
      scratch: join(folder, 'sum'),
      checksum: sha256(Buffer.from('other')),
    }),
    { code: 'BUILD_FAILED', message: /its digest is sha256:[0-9a-f]{64}, and --checksum says/ },
  )
  for (const [path, message] of [
    ['/loop', /redirects without end/],
    ['/away', /only plain http/],
    ['/gone', /answers 404/],
    ['/short', /cannot fetch/],
    ['/stall', /sent nothing for 0.3 s/],
    ['/endless', /longer than 1048576 bytes/],
  ] as const)
    await t.rejects(fetch(path), { code: 'BUILD_FAILED', message }, path)
  const stop = new AbortController()
  const stopped = fetch('/stall', { signal: stop.signal, stall: 60_000 })
  stop.abort(new Error('called off'))
  await t.rejects(stopped, { message: 'called off' })

  const port = new URL(root).port
  for (const host of [
    '127.0.0.1',
    'localhost',
    '[::1]',
    '[::ffff:127.0.0.1]',
    '0.0.0.0',
    '169.254.169.254',
    '2130706433',
  ])
    await t.rejects(
      download(`http://${host}:${port}/x`, join(folder, String(number++)), { ...options, anywhere: false }),
      { message: /this host's own/ },
      host,
    )
})

const noGit = spawnSync('git', ['http-backend', '--help']).error ? 'there is no git' : false

t.test('ADD of a repository', { skip: noGit }, async (t) => {
  const folder = t.testdir()
  const work = join(folder, 'work')
  const git = (...words: string[]): string => {
    const own = ['-C', work, '-c', 'user.name=a', '-c', 'user.email=a@b', ...words]
    return execFileSync('git', own, { encoding: 'utf8', stdio: 'pipe' }).trim()
  }
  mkdirSync(join(work, 'sub/deep'), { recursive: true })
  git('init', '--quiet', '--initial-branch=main')
  writeFileSync(join(work, 'a'), '$Format:%H$\n')
  writeFileSync(join(work, 'sub/deep/run'), '#!/bin/sh\n', { mode: 0o755 })
  writeFileSync(join(work, '.gitattributes'), 'a export-subst\nsub export-ignore\n')
  git('add', '.')
  git('commit', '--quiet', '-m', 'one')
  git('tag', '-a', 'v1', '-m', 'one')
  const one = git('rev-parse', 'HEAD')
  git('checkout', '--quiet', '-b', 'topic/x')
  writeFileSync(join(work, 'a'), 'two\n')
  git('commit', '--quiet', '-am', 'two')
  const two = git('rev-parse', 'HEAD')
  git('checkout', '--quiet', 'main')
  execFileSync('git', ['clone', '--quiet', '--bare', work, join(folder, 'r.git')], { stdio: 'pipe' })
  const serveGit = backend(folder)
  const root = await serve(t, (request, response) => {
    if (request.url!.startsWith('/stall')) return
    if (request.url!.startsWith('/away'))
      response.writeHead(302, { Location: `${root}/r.git/info/refs` }).end()
    else if (request.url!.startsWith('/secret'))
      response.writeHead(401, { 'WWW-Authenticate': 'Basic' }).end()
    else serveGit(request, response)
  })
  const scratch = join(folder, 'scratch')
  mkdirSync(scratch)
  const options = { anywhere: true, scratch, signal }
  const repository = (path: string, more = {}): Repository =>
    new Repository(parseRepository(`${root}${path}`), { ...options, ...more })

  for (const [path, commit] of [
    ['/r.git', one],
    ['/r.git#main', one],
    ['/r.git#v1:sub', one],
    ['/r.git#topic/x', two],
    [`/r.git#${two}`, two],
  ] as const)
    t.equal(await repository(path).commit(), commit, path)
  const names = async (path: string, commit: string): Promise<(readonly [string, number, string])[]> => {
    const tree = await repository(path).tree(commit)
    const found = tree.entries.map(
      (each) => [each.name, each.entry.mode, Buffer.concat([...tree.content(each)]).toString()] as const,
    )
    t.match(tree, { isFolder: true })
    tree[Symbol.dispose]()
    return found
  }
  t.same(
    await names('/r.git', one),
    [
      ['.gitattributes', 0o644, 'a export-subst\nsub export-ignore\n'],
      ['a', 0o644, '$Format:%H$\n'],
      ['sub', 0o755, ''],
      ['sub/deep', 0o755, ''],
      ['sub/deep/run', 0o755, '#!/bin/sh\n'],
    ],
    'all of it, whatever its attributes say, as it is',
  )
  t.same(
    (await names('/r.git#v1:sub', one)).map(([name]) => name),
    ['deep', 'deep/run'],
  )
  t.same((await names('/r.git', two))[1], ['a', 0o644, 'two\n'])

  for (const [path, message] of [
    ['/r.git#nosuch', /has no branch or tag nosuch/],
    ['/none.git', /not found/],
    ['/away.git', /returned error: 302/],
    ['/secret.git', /terminal prompts disabled|Authentication failed/],
  ] as const)
    await t.rejects(repository(path).commit(), { code: 'BUILD_FAILED', message }, path)
  await t.rejects(repository('/r.git#main:nosuch').tree(one), { code: 'BUILD_FAILED', message: /nosuch/ })
  await t.rejects(repository('/r.git').tree('0'.repeat(40)), { code: 'BUILD_FAILED' })
  await t.rejects(repository('/stall.git', { limit: 500 }).commit(), { message: /took more than/ })
  const stop = new AbortController()
  const stopped = repository('/stall.git', { signal: stop.signal }).commit()
  setImmediate(() => stop.abort(new Error('called off')))
  await t.rejects(stopped, { message: 'called off' })
  await t.rejects(repository('/r.git', { anywhere: false }).commit(), { message: /this host's own/ })
  await t.rejects(repository('/r.git', { program: 'no-git-here' }).commit(), {
    code: 'HOST_TOOL',
    message: /this host has none/,
  })
  t.same(readdirSync(scratch), [], 'nothing stays')
  t.same(
    readdirSync('/var/tmp').filter((name) => name.startsWith('coracle-git-')),
    [],
  )
})

t.test("a repository's submodules, and its .git", { skip: noGit }, async (t) => {
  const folder = t.testdir()
  const git = (work: string, ...words: string[]): string => {
    const own = ['-C', join(folder, work), '-c', 'user.name=a', '-c', 'user.email=a@b', ...words]
    return execFileSync('git', own, { encoding: 'utf8', stdio: 'pipe' }).trim()
  }
  const scratch = join(folder, 'scratch')
  mkdirSync(scratch)
  const root = await serve(t, backend(folder))
  /** Makes a repository of these files and links, which is served. @returns its commit */
  const make = (
    name: string,
    files: Record<string, string>,
    links: Record<string, readonly [commit: string, url: string]> = {},
  ): string => {
    mkdirSync(join(folder, name))
    git(name, 'init', '--quiet', '--initial-branch=main')
    const modules = Object.entries(links).map(
      ([path, [, url]]) => `[submodule "of.${path}"]\n\tpath = ${path}\n\turl = "${url}"\n`,
    )
    const all = { ...(modules.length > 0 && { '.gitmodules': modules.join('') }), ...files }
    for (const [path, text] of Object.entries(all)) writeFileSync(join(folder, name, path), text)
    git(name, 'add', '.')
    for (const [path, [commit]] of Object.entries(links))
      git(name, 'update-index', '--add', '--cacheinfo', `160000,${commit},${path}`)
    git(name, 'commit', '--quiet', '-m', name)
    execFileSync('git', ['clone', '--quiet', '--bare', join(folder, name), join(folder, `${name}.git`)], {
      stdio: 'pipe',
    })
    return git(name, 'rev-parse', 'HEAD')
  }
  const open = (name: string, commit: string, keepGit = false): ReturnType<Repository['tree']> =>
    new Repository(parseRepository(`${root}/${name}`), { anywhere: true, scratch, signal }).tree(
      commit,
      keepGit,
    )
  const namesIn = async (name: string, commit: string): Promise<string[]> => {
    using tree = await open(name, commit)
    return tree.entries
      .filter(({ entry }) => entry.type === 'file')
      .map((each) => `${each.name}: ${Buffer.concat([...tree.content(each)]).toString()}`)
      .filter((text) => !text.startsWith('.gitmodules') && !text.includes('/.gitmodules'))
      .sort()
  }
  const leaf = make('leaf', { file: 'leaf' })
  const inner = make('inner', { file: 'inner' }, { 'vendor/leaf': [leaf, '../leaf.git'] })
  const outer = make(
    'outer',
    { file: 'outer' },
    { 'deps/inner': [inner, `${root}/inner.git`], 'leaf two': [leaf, './../leaf.git'] },
  )
  t.same(await namesIn('outer.git', outer), [
    'deps/inner/file: inner',
    'deps/inner/vendor/leaf/file: leaf',
    'file: outer',
    'leaf two/file: leaf',
  ])
  t.same(await namesIn('outer.git#main:deps', outer), ['inner/file: inner', 'inner/vendor/leaf/file: leaf'])
  t.same(await namesIn('outer.git#main:deps/inner/vendor', outer), ['leaf/file: leaf'], 'a folder of one')

  await t.test('with .git', async (t) => {
    using tree = await open('outer.git', outer, true)
    const work = t.testdir()
    for (const each of tree.entries) {
      const path = join(work, each.name)
      if (each.entry.type === 'directory') mkdirSync(path, { recursive: true })
      else writeFileSync(path, Buffer.concat([...tree.content(each)]))
    }
    const ask = (...words: string[]): string =>
      execFileSync('git', ['-C', work, ...words], { encoding: 'utf8', stdio: 'pipe' }).trim()
    t.equal(ask('rev-parse', 'HEAD'), outer)
    t.equal(ask('status', '--porcelain'), '', 'nothing is changed, in the submodules neither')
    t.equal(ask('remote', 'get-url', 'origin'), `${root}/outer.git`)
    t.equal(ask('-C', 'deps/inner', 'rev-parse', 'HEAD'), inner)
    using part = await open('outer.git#main:deps', outer, true)
    t.notOk(
      part.entries.some(({ name }) => name.includes('.git/')),
      'a part of it has none',
    )
  })

  const hostile: readonly (readonly [url: string, message: RegExp])[] = [
    ['file:///etc', /fetched by https, http or git/],
    ['file://localhost/etc', /fetched by https, http or git/],
    ['/etc', /it is no address/],
    ['git@127.0.0.1:x/y.git', /not by ssh: no key/],
    ['ssh://127.0.0.1/x', /not by ssh: no key/],
    ['ext::sh -c true', /fetched by https, http or git/],
    ['https://u:p@127.0.0.1/x.git', /no name and password/],
    ['--upload-pack=true', /it is no address/],
    ['./../../../../../etc', /not found/],
    [`${root}/leaf.git#main`, /a commit is not named there/],
  ]
  for (const [index, [url, message]] of hostile.entries()) {
    const commit = make(`hostile${index}`, { file: '' }, { sub: [leaf, url] })
    await t.rejects(open(`hostile${index}.git`, commit), { code: 'BUILD_FAILED', message }, url)
  }
  const stray = make('stray', { file: '', '.gitmodules': '' }, {})
  t.same(await namesIn('stray.git', stray), ['file: '], 'a list without any')
  git('stray', 'update-index', '--add', '--cacheinfo', `160000,${leaf},lost`)
  git('stray', 'commit', '--quiet', '-m', 'lost')
  git('stray', 'push', '--quiet', join(folder, 'stray.git'), 'main')
  await t.rejects(open('stray.git', git('stray', 'rev-parse', 'HEAD')), {
    code: 'BUILD_FAILED',
    message: /no url found for submodule path 'lost'/,
  })
  const gone = make('gone', { file: '' }, { sub: ['0'.repeat(39) + '1', '../leaf.git'] })
  await t.rejects(open('gone.git', gone), { code: 'BUILD_FAILED' }, 'a commit that is not there')
  let nested = leaf
  let under = 'leaf'
  for (let depth = 0; depth <= 16; depth++) {
    nested = make(`deep${depth}`, { file: '' }, { d: [nested, `../${under}.git`] })
    under = `deep${depth}`
  }
  await t.rejects(open(`${under}.git`, nested), { code: 'IMAGE_TOO_LARGE', message: /within 16 others/ })
  t.same(readdirSync(scratch), [], 'nothing stays')

  // The repository is where one may go, its submodule is not.
  const near = new Repository(parseRepository('http://nowhere.invalid/x.git'), {
    anywhere: false,
    scratch,
    signal,
  })
  await t.rejects(near.tree(leaf), { code: 'BUILD_FAILED' })
})

t.test('names of repositories', async (t) => {
  for (const [word, is] of [
    ['https://x/y.git', true],
    ['https://x/y.git#main:z', true],
    ['git://x/y', true],
    ['git@x:y', true],
    ['ssh://x/y', true],
    ['https://x/y', false],
    ['https://x/y#a.git', false],
    ['y.git', false],
  ] as const)
    t.equal(isRepository(word), is, word)
  t.match(parseRepository('git://x/y#:/a/../b/'), { ref: undefined, folder: 'b' })
  t.match(parseRepository('https://x/y.git#v1.0:a:b'), { ref: 'v1.0', folder: 'a:b' })
  for (const word of [
    'git@x:y',
    'ssh://x/y',
    'other@x:y',
    'file://x/y.git',
    'https://u:p@x/y.git',
    'https://x/y.git#--upload-pack=x',
    'https://x/y.git#a..b',
    'https://x/y.git#a b',
    'git:///y',
  ])
    t.throws(() => parseRepository(word), { code: 'INVALID_ARGUMENT' }, word)
  fc.assert(
    fc.property(fc.string(), (text) => {
      try {
        const { ref = 'x', folder } = parseRepository(`https://x/y.git#${text}`)
        return !ref.startsWith('-') && !folder.split('/').includes('..') && !folder.startsWith('/')
      } catch (error) {
        return (error as { code?: string }).code === 'INVALID_ARGUMENT'
      }
    }),
  )
})

/** A file as ADD finds it in the context. */
const file = (content: Buffer, name = 'a.tar'): CopiedTree => ({
  name,
  isFolder: false,
  entries: [
    {
      name: '',
      offset: 0,
      digest: '',
      entry: {
        ...{ name, type: 'file', mode: 0o644, uid: 0, gid: 0, size: content.length, mtime: 0, mtimeNsec: 0 },
        ...{ linkName: '', major: 0, minor: 0, xattrs: undefined },
      },
    },
  ],
  content: function* () {
    for (let at = 0; at < content.length; at += 4096) yield content.subarray(at, at + 4096)
  },
})

/** A tar of one file, `dir/x` of user 7, compressed with xz. */
const XZ = Buffer.from(
  '/Td6WFoAAATm1rRGAgAhARwAAAAQz1jM5K//AKddADIaSqcmFMYCXWq6cG4VJvPBDGrlS3JYkrU9RPL9POQk4zdsq3RuC6A418kzeQeJTZsa8sd+DD2i+3rVz/9PyqLo5aARZSdDV6k+HV4SYCzIG1Mf3kUXDgaZp3v+ZmgJjpIIQED8hS5ML34h2exaeoZVjiP2cVDbQNyJDtCmhX41raXKZviWIC6jk8QlU/j1kTYxBaWw7m/BcE1HDM9JrLFIacMJh4cAAAD+TGXAc7cIFgABwwGA4BIAP4cGVbHEZ/sCAAAAAARZWg==',
  'base64',
)

t.test('ADD of archives', async (t) => {
  const folder = t.testdir()
  const unpack = (content: Buffer, name?: string): ReturnType<typeof unpackedTree> =>
    unpackedTree(file(content, name), folder, signal)
  const names = async (content: Buffer): Promise<string[] | undefined> => {
    using tree = await unpack(content)
    return tree?.entries.map(({ name }) => name)
  }
  const plain = tar(
    { name: 'dir/', flag: '5', mode: 0o755 },
    { name: 'dir/x', content: 'x\n', uid: 7 },
    { name: 'dir/y', flag: '1', link: 'dir/x' },
    { name: 'z', flag: '1', link: 'dir/y' },
    { name: 'null', flag: '3', major: 1, minor: 3 },
  )
  t.same(await names(plain), ['dir', 'dir/x', 'dir/y', 'z', 'null'])
  t.same(await names(gzipSync(plain)), ['dir', 'dir/x', 'dir/y', 'z', 'null'])
  t.same(await names(XZ), ['dir/x'])
  using tree = await unpack(plain, 'whatever.txt')
  t.match(tree, { isFolder: true, keepsOwners: true })
  const link = tree!.entries.find(({ name }) => name === 'z')!
  t.equal(Buffer.concat([...tree!.content(link)]).toString(), 'x\n', 'a link to a link')
  t.equal(link.entry.uid, 7)

  for (const [what, content] of [
    ['text', Buffer.from('text '.repeat(200))],
    ['gzip of text', gzipSync(Buffer.from('text'.repeat(1000)))],
    ['nothing', Buffer.alloc(0)],
    ['zeros', Buffer.alloc(2048)],
    ['damaged from its beginning', Buffer.concat([gzipSync(plain).subarray(0, 12), Buffer.alloc(40)])],
  ] as const)
    t.equal(await unpack(content), undefined, `${what} is copied as it is`)
  const big = tar({ name: 'x', content: Buffer.alloc(100_000, 1) })
  for (const [what, content, message] of [
    ['a name that climbs', tar({ name: '../../etc/cron.d/x', content: 'x' }), /leads out of the archive/],
    ['a name that climbs late', tar({ name: 'a/../../x', content: 'x' }), /leads out/],
    ['a link to nothing', tar({ name: 'l', flag: '1', link: 'gone' }), /does not have/],
    ['a link to itself', tar({ name: 'l', flag: '1', link: 'l' }), /does not have/],
    ['cut off', big.subarray(0, 50_000), /cut off/],
    [
      'gzip, cut off',
      gzipSync(Buffer.concat([big, entry({ name: 'y', content: 'y' })])).subarray(0, -60),
      /cut off/,
    ],
    [
      'names without end',
      Buffer.concat(Array<Buffer>(300).fill(entry({ name: 'x'.repeat(1_000_000) }))),
      /names of more than/,
    ],
  ] as const)
    await t.rejects(unpack(content), { message }, what)
  await t.rejects(unpack(XZ.subarray(0, -40)), { code: 'IMAGE_ARCHIVE' }, 'xz, cut off')
  t.same(await names(XZ), ['dir/x'], 'and the next one is read')

  await fc.assert(
    fc.asyncProperty(fc.nat(plain.length - 1), fc.nat(255), async (at, byte) => {
      const content = Buffer.from(plain)
      content[at] = byte
      try {
        ;(await unpack(content))?.[Symbol.dispose]()
      } catch (error) {
        if (!['IMAGE_ARCHIVE', 'IMAGE_TOO_LARGE'].includes((error as { code?: string }).code ?? ''))
          throw error
      }
    }),
    { numRuns: 150 },
  )
})

t.test('what --mount says', async (t) => {
  const step = parseInstruction('RUN true', 7, () => undefined)
  const parse = (text: string): unknown => parseRunMount(step, text, (name) => ({ A: 'a' })[name], '/work')
  t.match(parse('type=cache,target=/c,sharing=locked,mode=0700,uid=5'), {
    id: '/c',
    sharing: 'locked',
    mode: 0o700,
    uid: 5,
  })
  t.match(parse('type=cache,id=x$A,dst=c'), { id: 'xa', target: '/work/c', mode: 0o755 })
  t.match(parse('target=/b'), { type: 'bind', source: '/', readOnly: true, from: undefined })
  t.match(parse('type=bind,from=one,src=/x,dst=/b,rw'), { from: 'one', source: '/x', readOnly: false })
  t.match(parse('type=secret,id=npm'), {
    target: '/run/secrets/npm',
    mode: 0o400,
    file: true,
    required: false,
  })
  t.match(parse('type=secret,id=k,env=KEY,required'), { env: 'KEY', file: false, required: true })
  t.match(parse('type=tmpfs,target=/t,size=10m'), { size: 10 * 1024 ** 2 })
  for (const [text, message] of [
    ['type=ssh', /SSH agent/],
    ['type=volume,target=/x', /no mount of type volume/],
    ['type=cache', /needs a target/],
    ['type=bind,target=/', /cannot be \//],
    ['type=tmpfs,target=/x,from=y', /from is no option of type tmpfs/],
    ['type=cache,target=/x,sharing=ours', /sharing is/],
    ['type=cache,target=/x,mode=rwx', /mode is no number/],
    ['type=tmpfs,target=/x,size=lots', /size is no number/],
    ['type=secret,id=x,env=a-b', /no name of a variable/],
  ] as const)
    t.throws(() => parse(text), { code: 'DOCKERFILE', message }, text)
  fc.assert(
    fc.property(
      fc.array(
        fc.constantFrom(
          'type=cache',
          'type=',
          'target',
          '=',
          'mode=8',
          ',',
          'size=9g',
          'from=',
          'id=..',
          '$A',
        ),
      ),
      (words) => {
        try {
          parse(words.join(','))
        } catch (error) {
          if ((error as { code?: string }).code !== 'DOCKERFILE') throw error
        }
      },
    ),
  )
})

t.test('caches between builds', async (t) => {
  const folder = join(t.testdir(), 'caches')
  const caches = new BuildCaches(folder)
  const common = { id: '/c', mode: 0o750, uid: 5, gid: 6 }
  const take = (sharing: CacheRequest['sharing'], more = {}): ReturnType<BuildCaches['take']> =>
    caches.take({ ...common, sharing, ...more }, signal)
  t.same(await caches.prune(), { ids: [], bytes: 0 }, 'there is none')
  const first = await take('shared')
  writeFileSync(join(first.path, 'x'), 'kept')
  t.match(statSync(first.path), { mode: 0o40750, uid: 5, gid: 6 })
  const second = await take('shared')
  t.equal(second.path, first.path)
  const own = await take('private')
  t.not(own.path, first.path)
  let got = false
  const locked = take('locked').then((cache) => {
    got = true
    return cache
  })
  t.same((await caches.prune()).ids, [], 'all are in use')
  first[Symbol.dispose]()
  t.notOk(got)
  second[Symbol.dispose]()
  const third = await locked
  t.equal(readFileSync(join(third.path, 'x'), 'utf8'), 'kept')
  const stop = new AbortController()
  const waiting = caches.take({ ...common, sharing: 'shared' }, stop.signal)
  stop.abort()
  await t.rejects(waiting, { name: 'AbortError' })
  own[Symbol.dispose]()
  t.match(await caches.list(), [
    { description: '/c', inUse: true, bytes: Number },
    { description: '/c', inUse: false },
  ])
  t.same((await caches.prune()).ids, ['/c'], 'the private one')
  third[Symbol.dispose]()
  const filled = await take('shared', {
    id: 'filled',
    fill: async (path: string) => writeFileSync(join(path, 'seed'), ''),
  })
  t.ok(existsSync(join(filled.path, 'seed')))
  filled[Symbol.dispose]()
  await t.rejects(take('shared', { id: 'bad', fill: () => Promise.reject(new Error('no')) }), {
    message: 'no',
  })
  const made = (await caches.list()).map(({ created }) => created).sort()
  t.same((await caches.prune((created) => created < made[0]!)).ids, [], 'none is so old')
  t.equal((await caches.list()).length, 2)
  t.match(await caches.prune((created) => created <= made.at(-1)!), { ids: [String, String], bytes: Number })
  t.notOk(existsSync(third.path))
})

t.test('steps that are forgotten are those of the images that are named', async (t) => {
  const cache = new BuildCache(t.testdir())
  const [old, young] = [BuildCache.key('old'), BuildCache.key('young')]
  cache.put(old, 'sha256:1')
  cache.put(young, 'sha256:2')
  cache.forget((id) => id === 'sha256:1')
  t.equal(cache.get(old), undefined)
  t.equal(cache.get(young), 'sha256:2')
  t.same(cache.images(), new Set(['sha256:2']))
})
