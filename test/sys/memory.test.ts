import { readFileSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { MADV_DONTNEED, MAP_PRIVATE, Mapping, PROT_READ, memfd } from '@coracle/sys'

const PAGE = 4096
const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString()

t.test('a mapping', (t) => {
  using mapping = Mapping.create({ length: 4 * PAGE })
  const view = new DataView(mapping.view())
  view.setUint32(100, 0xdead_beef)
  t.equal(new DataView(mapping.view(96, 16)).getUint32(4), 0xdead_beef, 'views share the memory')
  mapping.advise(MADV_DONTNEED, 0, PAGE)
  t.equal(view.getUint32(100), 0, 'and given back it reads as zeros')
  for (const [offset, length] of [
    [-1, 1],
    [0, 4 * PAGE + 1],
    [4 * PAGE, 1],
    [0, -1],
    [NaN, 1],
    [0, NaN],
    [0.5, 1],
  ] as const) {
    t.throws(() => mapping.view(offset, length), RangeError, `view of ${length} at ${offset}`)
    t.throws(
      () => mapping.advise(MADV_DONTNEED, offset, length),
      RangeError,
      `advice of ${length} at ${offset}`,
    )
    t.throws(() => mapping.overlay(offset, { length }), RangeError, `overlay of ${length} at ${offset}`)
  }
  t.equal(mapping.view(4 * PAGE, 0).byteLength, 0)
  t.end()
})

t.test('a mapping that is gone', (t) => {
  const mapping = Mapping.create({ length: PAGE })
  mapping.unmap()
  mapping.unmap()
  t.equal(mapping.address, 0n)
  t.throws(() => mapping.view(), RangeError)
  t.throws(() => mapping.advise(MADV_DONTNEED), RangeError)
  t.throws(() => mapping.overlay(0, { length: PAGE }), RangeError, 'else it would map over address 0')
  t.end()
})

t.test('refused mappings', (t) => {
  t.throws(() => Mapping.create({ length: 0 }), { code: 'EINVAL', syscall: 'mmap' })
  t.throws(() => Mapping.create({ length: 2 ** 52 }), { code: 'ENOMEM' })
  using file = memfd('test', PAGE)
  t.throws(() => Mapping.create({ fd: file, length: PAGE, offset: 100 }), { code: 'EINVAL' })
  t.end()
})

t.test('files side by side in one region', (t) => {
  using region = Mapping.create({ length: 4 * PAGE, prot: PROT_READ })
  const files = ['alpha', 'beta', 'gamma'].map((word) => {
    const file = memfd(word, 2 * PAGE)
    file.pwrite(Buffer.from(word), PAGE)
    return file
  })
  files.forEach((fd, i) => region.overlay(i * PAGE, { fd, offset: PAGE, length: PAGE, prot: PROT_READ }))
  t.equal(text(region.bytes(0, 5)), 'alpha')
  t.equal(text(region.bytes(PAGE, 4)), 'beta')
  t.equal(text(region.bytes(2 * PAGE, 5)), 'gamma')
  files[0]!.pwrite(Buffer.from('A'), PAGE)
  t.equal(text(region.bytes(0, 5)), 'Alpha', 'it is the file itself')
  files.forEach((file) => file.close())
  t.equal(text(region.bytes(0, 5)), 'Alpha', 'and stays when the descriptor closes')
  region.overlay(0, { length: PAGE })
  t.equal(region.bytes(0, 1)[0], 0, 'zeros over it')
  const start = region.address.toString(16)
  region.unmap()
  t.notMatch(readFileSync('/proc/self/maps', 'utf8'), new RegExp(`^${start}-`, 'm'), 'all of it goes')
  t.end()
})

t.test('private and shared mappings of a file', (t) => {
  using file = memfd('test', PAGE)
  using shared = Mapping.create({ fd: file, length: PAGE })
  using copy = Mapping.create({ fd: file, length: PAGE, flags: MAP_PRIVATE })
  copy.bytes()[0] = 1
  t.equal(shared.bytes()[0], 0)
  shared.bytes()[1] = 2
  t.equal(file.pread(new Uint8Array(2), 0), 2)
  t.equal(copy.bytes()[0], 1)
  t.end()
})

t.test('two threads see the same memory', async (t) => {
  using file = memfd('test', PAGE)
  using mapping = Mapping.create({ fd: file, length: PAGE })
  const words = new Int32Array(mapping.view())
  const worker = new Worker(
    `import { Fd, Mapping } from '@coracle/sys'
     import { workerData } from 'node:worker_threads'
     const mapping = Mapping.create({ fd: new Fd(workerData), length: ${PAGE} })
     Atomics.add(new Int32Array(mapping.view()), 3, 42)`
      .split('\n')
      .join(';'),
    { eval: true, workerData: file.number, execArgv: ['--input-type=module'] },
  )
  await new Promise((resolve) => worker.on('exit', resolve))
  t.equal(Atomics.load(words, 3), 42)
})
