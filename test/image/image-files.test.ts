import { join } from 'node:path'
import t from 'tap'
import { ImageFiles } from '../../src/image/image-files.js'
import type { Image } from '../../src/image/image.js'
import { packTar, type PackEntry } from '../../src/image/pack.js'
import { ImageStore } from '../../src/image/store.js'

const history = [{ created: '2026-01-01T00:00:00Z', created_by: 'a test' }] as const

t.test('an image of layers, looked through without a mount', async (t) => {
  const store = await ImageStore.open(join(t.testdir({}), 'images'))
  const add = async (base: Image | undefined, entries: PackEntry[]): Promise<Image> =>
    store.compose({
      base,
      layer: (async function* () {
        yield await packTar(entries)
      })(),
      config: { Env: ['A=b'], Shell: ['/bin/ash'] },
      history: [...history],
    })
  const big = Buffer.alloc(3 * 1024 * 1024 + 5, 'x')
  const first = await add(undefined, [
    { name: 'etc/', type: 'directory', mode: 0o750, uid: 5 },
    { name: 'etc/passwd', content: 'root:x:0:0::/:/bin/sh\n' },
    { name: 'etc/gone', content: 'gone' },
    { name: 'old/', type: 'directory' },
    { name: 'old/hidden', content: 'hidden' },
    { name: 'var/run', type: 'symlink', linkname: '/run' },
    { name: 'run/', type: 'directory' },
    { name: 'loop', type: 'symlink', linkname: 'loop' },
    { name: 'big', content: big },
  ])
  const second = await add(first, [
    { name: 'etc/', type: 'directory', mode: 0o750, uid: 5 },
    { name: 'etc/.wh.gone', content: '' },
    { name: 'old/.wh..wh..opq', content: '' },
    { name: 'old/new', content: 'new' },
    { name: 'run/x', type: 'symlink', linkname: '../etc/passwd' },
  ])
  t.equal(second.layers.length, 2)
  t.match(store.config(second), { history: [{ created_by: 'a test' }, { created_by: 'a test' }] })
  t.match(store.config(second)['config'], { Shell: ['/bin/ash'] }, 'what the store makes no use of is kept')

  using files = new ImageFiles(second.layers)
  t.match(files.resolve('/etc'), { path: '/etc', node: { uid: 5, mode: 0o40750 } })
  t.equal(files.resolve('/etc/gone').node, undefined, 'a whiteout')
  t.equal(files.resolve('/old/hidden').node, undefined, 'an opaque folder')
  t.match(files.resolve('/var/run/x'), { path: '/etc/passwd', node: {} }, 'links in one layer to another')
  t.match(files.resolve('/var/run/nosuch/a'), { path: '/run/nosuch/a', node: undefined })
  t.equal(files.readText('/var/run/x'), 'root:x:0:0::/:/bin/sh\n')
  t.equal(files.readText('/etc'), undefined)
  t.throws(() => files.resolve('/loop'), { code: 'INVALID_ARGUMENT' })
  t.same(
    [...files.tree('/old')].map(({ name }) => name),
    ['new'],
  )
  const [whole] = [...files.tree('/big')]
  t.ok(Buffer.concat([...whole!.content()]).equals(big))
  t.same(
    [...files.tree('/')].map(({ name }) => name).filter((name) => name.startsWith('etc')),
    ['etc', 'etc/passwd'],
  )
  t.equal(store.get(first.id).layers.length, 1)
  await t.rejects(
    store.compose({
      base: undefined,
      layer: [Buffer.alloc(1024, 'x')] as never,
      config: {},
      history: [...history],
    }),
    { code: 'IMAGE_ARCHIVE' },
  )
})
