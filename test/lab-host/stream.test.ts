import { PassThrough } from 'node:stream'
import type { Socket } from 'node:net'
import t from 'tap'
import fc from 'fast-check'
import { commandScript, quote } from '../../src/lab/init.js'
import { run } from '../../src/debian/index.js'
import { copyUntilMark, markStart } from '../../src/lab/stream.js'

const MARK = Buffer.from('aab')

t.test('the start of a mark is found wherever it is cut', async (t) => {
  t.equal(markStart(Buffer.from('xxaa'), MARK), 2)
  t.equal(markStart(Buffer.from('aaa'), MARK), 2)
  t.equal(markStart(Buffer.from('aab'), MARK), 3)
  t.equal(markStart(Buffer.from('aabx'), MARK), 0)
  t.equal(markStart(Buffer.alloc(0), MARK), 0)
})

t.test('any bytes in any pieces come out as they went in', async () => {
  const mark = Buffer.from('0f3a-end')
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.oneof(fc.uint8Array(), fc.constant(mark.subarray(0, 5)), fc.constant(mark.subarray(1)))),
      fc.array(fc.nat(400)),
      async (parts, cuts) => {
        const content = Buffer.concat(parts.map((part) => Buffer.from(part)))
        const sent = Buffer.concat([content, mark])
        const port = new PassThrough()
        const out = new PassThrough()
        const done = copyUntilMark(port as unknown as Socket, out, mark)
        let at = 0
        for (const cut of [...cuts.sort((a, b) => a - b), sent.length]) {
          port.write(sent.subarray(at, Math.max(at, cut)))
          at = Math.max(at, cut)
        }
        port.end()
        if (!(await done)) throw new Error('the mark was not seen')
        out.end()
        const received: Buffer[] = []
        for await (const chunk of out) received.push(chunk as Buffer)
        if (!Buffer.concat(received).equals(content)) throw new Error('other bytes came out')
      },
    ),
  )
})

t.test('a machine that dies leaves what it said', async (t) => {
  const port = new PassThrough()
  const out = new PassThrough()
  const done = copyUntilMark(port as unknown as Socket, out, MARK)
  port.write('half a line aa')
  port.end()
  port.resume()
  t.equal(await done, false)
  t.equal(String(out.read()), 'half a line aa')
})

t.test('words and variables pass through the shell unharmed', async (t) => {
  const words = ["it's", '$HOME `id` "q" \\', '', '-n', 'a\nb', '*', 'ü€']
  const script = commandScript('/usr/bin/printf', ['%s|', ...words], '/', {
    ODD: "a'b\n$c",
    'not a name': 'x',
  })
  const { stdout } = await run(['/bin/sh', '-c', script])
  t.equal(stdout, words.map((word) => `${word}|`).join(''))
  const { stdout: value } = await run([
    '/bin/sh',
    '-c',
    commandScript('/usr/bin/printenv', ['ODD'], '/', { ODD: "a'b\n$c" }),
  ])
  t.equal(value, "a'b\n$c\n")
  t.equal(quote("'"), `''\\'''`)
})
