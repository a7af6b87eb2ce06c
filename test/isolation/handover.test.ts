import { mkdtempSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { Fd, O_RDONLY, O_RDWR, SysError, detachedFolder, memfd, sendWithFds, socketPair } from '@coracle/sys'
import { Handover, receiveHandover, sendHandover } from '../../src/isolation/handover.js'

const folder = mkdtempSync(join(tmpdir(), 'coracle-handover-'))
t.teardown(() => rmSync(folder, { recursive: true }))
const openFds = (): number => readdirSync('/proc/self/fd').length
const code = (expected: string) => ({ code: expected })

t.test('descriptors arrive under their names, more than one message of them too', async (t) => {
  const before = openFds()
  {
    const [ours, theirs] = socketPair()
    using _ours = ours
    using _theirs = theirs
    using sent = new Handover()
    for (let i = 0; i < 100; i++) {
      const fd = memfd('part', 0)
      fd.write(Buffer.from(`part ${i}`))
      sent.add(`layer.${i}`, fd)
    }
    sendHandover(ours, sent)
    using got = receiveHandover(theirs)!
    t.same(got.names, sent.names)
    for (const i of [0, 31, 32, 99]) {
      const bytes = new Uint8Array(16)
      const length = got.get(`layer.${i}`).pread(bytes, 0)
      t.equal(Buffer.from(bytes.subarray(0, length)).toString(), `part ${i}`)
    }
    const taken = got.take('layer.0')
    t.notOk(got.has('layer.0'))
    taken.close()
    t.throws(() => got.get('tap'), code('SANDBOX_FAILED'))
    t.throws(() => got.add('layer.1', taken), code('INVALID_ARGUMENT'))
    t.throws(() => got.add('../x', taken), code('INVALID_ARGUMENT'))
  }
  t.equal(openFds(), before)
})

t.test('a descriptor is used by its path, with the rights that it was opened with', async (t) => {
  const path = join(folder, 'file')
  writeFileSync(path, 'here')
  using handover = new Handover()
  handover.add('file', Fd.open(path, O_RDONLY))
  rmSync(path)
  using again = Fd.openOrDuplicate(handover.path('file'), O_RDWR)
  const bytes = new Uint8Array(4)
  again.pread(bytes, 0)
  t.equal(Buffer.from(bytes).toString(), 'here')
  t.throws(() => again.write(bytes), code('EBADF'))
  t.throws(() => Fd.openOrDuplicate('/proc/self/fd/9999', O_RDONLY), code('EBADF'))
  t.throws(() => Fd.openOrDuplicate(path, O_RDONLY), code('ENOENT'))
})

t.test('nothing leads out of a folder that was handed over', async (t) => {
  mkdirSync(join(folder, 'mine'))
  writeFileSync(join(folder, 'mine', 'inside'), 'mine')
  writeFileSync(join(folder, 'outside'), 'not mine')
  using handover = new Handover()
  try {
    handover.add('state', detachedFolder(join(folder, 'mine')))
  } catch (error) {
    if (!(error instanceof SysError && error.code === 'EPERM')) throw error
    t.comment('no rights to clone a mount')
    return
  }
  const at = handover.path('state')
  t.equal(readFileSync(`${at}/inside`, 'utf8'), 'mine')
  writeFileSync(`${at}/made`, 'by path')
  t.equal(readFileSync(join(folder, 'mine', 'made'), 'utf8'), 'by path')
  t.throws(() => readFileSync(`${at}/../outside`), code('ENOENT'))
  t.same(readdirSync(`${at}/..`), readdirSync(at))
})

t.test('what is no hand-over is refused, and nothing of it stays open', async (t) => {
  const before = openFds()
  const receive = (messages: readonly { line: string; fds: number }[]): unknown => {
    const [ours, theirs] = socketPair()
    using _theirs = theirs
    {
      using _ours = ours
      for (const { line, fds } of messages) {
        const some = Array.from({ length: fds }, () => memfd('x', 0))
        sendWithFds(ours, Buffer.from(line), some)
        for (const fd of some) fd.close()
      }
    }
    using got = receiveHandover(theirs, 0)
    return got?.names
  }
  t.equal(receive([]), undefined)
  t.same(receive([{ line: '{"names":["a"]}\n{"end":true}\n', fds: 1 }]), ['a'])
  for (const messages of [
    [{ line: '{"names":["a"]}\n', fds: 1 }],
    [{ line: '{"names":["a","b"]}\n{"end":true}\n', fds: 1 }],
    [{ line: '{"names":["a"]}\n{"end":true}\n', fds: 2 }],
    [{ line: '{"names":["a","a"]}\n{"end":true}\n', fds: 2 }],
    [{ line: '{"names":[7]}\n{"end":true}\n', fds: 1 }],
    [{ line: 'null\n', fds: 0 }],
    [{ line: '{"end":true}\n{"names":[]}\n', fds: 0 }],
  ])
    try {
      receive(messages)
      t.fail(`taken: ${JSON.stringify(messages)}`)
    } catch (error) {
      t.match((error as { code: string }).code, /^(SANDBOX_FAILED|INVALID_ARGUMENT)$/)
    }
  fc.assert(
    fc.property(fc.array(fc.record({ line: fc.string(), fds: fc.nat(3) }), { maxLength: 4 }), (messages) => {
      try {
        receive(messages.map(({ line, fds }) => ({ line: `${line}\n`, fds })))
      } catch (error) {
        return ['SANDBOX_FAILED', 'INVALID_ARGUMENT'].includes((error as { code: string }).code)
      }
      return true
    }),
  )
  {
    const [ours, theirs] = socketPair()
    using _ours = ours
    using _theirs = theirs
    t.throws(() => receiveHandover(theirs, 0), code('SANDBOX_FAILED'), 'silence is not waited for')
  }
  t.equal(openFds(), before)
})
