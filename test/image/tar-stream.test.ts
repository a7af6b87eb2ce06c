import fc from 'fast-check'
import t from 'tap'
import { rewriteTar, tarEntries } from '../../src/image/tar-stream.js'
import { TAR_END, tarHeader, tarPadding } from '../../src/image/tar-writer.js'
import type { TarEntry, TarType } from '../../src/image/tar.js'

const ENTRY: TarEntry = {
  name: 'file',
  type: 'file',
  mode: 0o644,
  uid: 0,
  gid: 0,
  size: 0,
  mtime: 0,
  mtimeNsec: 0,
  linkName: '',
  major: 0,
  minor: 0,
  xattrs: undefined,
}
const bytes = (most: number): fc.Arbitrary<string> =>
  fc.string({
    unit: fc.integer({ min: 1, max: 255 }).map((code) => String.fromCharCode(code)),
    maxLength: most,
  })

const entries: fc.Arbitrary<{ entry: TarEntry; content: Buffer }> = fc
  .record({
    name: bytes(300).map((name) => `n${name}`),
    type: fc.constantFrom<TarType>('file', 'link', 'symlink', 'character', 'block', 'directory', 'fifo'),
    mode: fc.integer({ min: 0, max: 0o7777 }),
    uid: fc.integer({ min: 0, max: 0xffff_fffe }),
    gid: fc.integer({ min: 0, max: 0xffff_fffe }),
    content: fc.uint8Array({ maxLength: 2000 }),
    mtime: fc.integer({ min: 0, max: 2 ** 38 }),
    mtimeNsec: fc.integer({ min: 0, max: 999_999_999 }),
    linkName: bytes(300).map((name) => `l${name}`),
    major: fc.integer({ min: 0, max: 4095 }),
    minor: fc.integer({ min: 0, max: 1_048_575 }),
    xattr: fc.option(fc.uint8Array({ maxLength: 100 })),
  })
  .map(({ content, xattr, ...rest }) => {
    const file = rest.type === 'file'
    const device = rest.type === 'character' || rest.type === 'block'
    // Before ustar a folder was a file with such a name.
    const name = file ? rest.name.replace(/\/+$/, '') : rest.name
    const entry: TarEntry = {
      ...rest,
      name,
      size: file ? content.length : 0,
      linkName: rest.type === 'link' || rest.type === 'symlink' ? rest.linkName : '',
      major: device ? rest.major : 0,
      minor: device ? rest.minor : 0,
      xattrs: xattr ? new Map([['user.x', Buffer.from(xattr)]]) : undefined,
    }
    return { entry, content: Buffer.from(content) }
  })

async function* stream(
  all: readonly { entry: TarEntry; content: Buffer }[],
  step: number,
): AsyncGenerator<Buffer> {
  const whole = Buffer.concat([
    ...all.flatMap(({ entry, content }) =>
      entry.type === 'file' ? [tarHeader(entry), content, tarPadding(content.length)] : [tarHeader(entry)],
    ),
    TAR_END,
  ])
  for (let at = 0; at < whole.length; at += step) yield whole.subarray(at, at + step)
}

const collect = async <T>(source: AsyncIterable<T>): Promise<T[]> => {
  const all = []
  for await (const each of source) all.push(each)
  return all
}

t.test('what is written is what is read', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(entries, { maxLength: 8 }),
      fc.integer({ min: 1, max: 5000 }),
      async (all, step) => {
        const read = await collect(tarEntries(stream(all, step)))
        t.strictSame(
          read.map(({ xattrs, ...rest }) => [rest, xattrs?.get('user.x')]),
          all.map(({ entry: { xattrs, ...rest } }) => [rest, xattrs?.get('user.x')]),
        )
        const whole = Buffer.concat(await collect(stream(all, 10_000)))
        t.ok(
          Buffer.concat(await collect(rewriteTar(stream(all, step)))).equals(whole),
          'and written the same',
        )
      },
    ),
    { numRuns: 200 },
  )
})

t.test('entries are changed or left out on their way, with their content', async (t) => {
  const all = ['a', 'b', 'c'].map((name) => ({
    entry: { ...ENTRY, name, size: 600 },
    content: Buffer.alloc(600, name),
  }))
  const change = (entry: TarEntry): TarEntry | undefined =>
    entry.name === 'b' ? undefined : { ...entry, name: `x/${entry.name}` }
  const changed = Buffer.concat(await collect(rewriteTar(stream(all, 100), change)))
  t.notOk(changed.includes('bbbb'))
  t.same(
    (await collect(tarEntries([changed] as never))).map(({ name }) => name),
    ['x/a', 'x/c'],
  )
})

t.test('what is no tar, and holes without end, are refused', async (t) => {
  const garbage = Buffer.alloc(1024, 'x')
  await t.rejects(collect(rewriteTar([garbage] as never)), { code: 'IMAGE_ARCHIVE' })
  const cut = Buffer.concat(
    await collect(stream([{ entry: { ...ENTRY, size: 5 }, content: Buffer.alloc(5) }], 99)),
  )
  await t.rejects(collect(rewriteTar([cut.subarray(0, 515)] as never)), { code: 'IMAGE_ARCHIVE' })
  const size = 2 ** 43
  // GNU's old format: the real size in the header, and no data at all.
  const header = Buffer.from(tarHeader(ENTRY))
  header.write('S', 156)
  header.write('ustar  \0', 257, 'latin1')
  header.write('00000000000\x0000000000000\x00', 386, 'latin1')
  header[483] = 0x80
  header.writeBigUInt64BE(BigInt(size), 487)
  header.fill(' ', 148, 156)
  header.write(
    `${header
      .reduce((sum, byte) => sum + byte, 0)
      .toString(8)
      .padStart(6, '0')}\0 `,
    148,
    'latin1',
  )
  await t.rejects(collect(rewriteTar([Buffer.concat([header, TAR_END])] as never)), {
    code: 'IMAGE_TOO_LARGE',
  })
})
