import { appendFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { logBounds } from '../../src/engine/log-bounds.js'
import { readLog, type LogOptions } from '../../src/engine/logs.js'
import { logFiles, type LogFiles } from '../../src/isolation/index.js'
import { JsonLog } from '../../src/isolation/monitor/log.js'
import { STDERR, STDOUT } from '../../src/isolation/protocol.js'

/* What a monitor writes and the engine reads, which need nothing but a folder. */

const ALL = { stdout: true, stderr: true }
const NEVER = new Promise(() => undefined)
let count = 0

function place(folder: string, files: number, maxSize?: number): LogFiles {
  const stateDirectory = join(folder, String(count++))
  mkdirSync(stateDirectory)
  return logFiles({ stateDirectory, runDirectory: '/nowhere', log: { files, ...(maxSize && { maxSize }) } })
}

async function read(log: LogFiles, options: Partial<LogOptions> = {}): Promise<string[]> {
  const seen: string[] = []
  for await (const { data } of readLog(log, { ...ALL, ...options }, Promise.resolve()))
    seen.push(String(data).trim())
  return seen
}

t.test('files in turn hold the end of what was written, in order', async (t) => {
  const folder = t.testdir()
  const scenario = fc.record({
    files: fc.integer({ min: 1, max: 5 }),
    // An entry takes from 60 bytes on.
    maxSize: fc.integer({ min: 1, max: 900 }),
    // What is written at a time, and whether the monitor is another one from then on.
    writes: fc.array(fc.tuple(fc.integer({ min: 1, max: 9 }), fc.boolean()), { minLength: 1, maxLength: 12 }),
    tail: fc.integer({ min: 0, max: 30 }),
  })
  await fc.assert(
    fc.asyncProperty(scenario, async ({ files, maxSize, writes, tail }) => {
      const log = place(folder, files, maxSize)
      const written: string[] = []
      let writer = new JsonLog(log)
      for (const [lines, restarts] of writes) {
        const some = Array.from({ length: lines }, (_, i) => `line ${written.length + i}`)
        written.push(...some)
        writer.write(STDOUT, Buffer.from(some.map((line) => `${line}\n`).join('')))
        if (!restarts) continue
        writer.close()
        writer = new JsonLog(log)
      }
      writer.close()
      const seen = await read(log)
      const fits = log.files.every((path) => {
        const text = readFileSync(path, 'utf8')
        return text.length <= maxSize || text.indexOf('\n') === text.length - 1
      })
      return (
        fits &&
        seen.length > 0 &&
        seen.join() === written.slice(-seen.length).join() &&
        (await read(log, { tail })).join() === (tail === 0 ? '' : seen.slice(-tail).join())
      )
    }),
    { numRuns: 60 },
  )
})

t.test('a reader that follows goes on over turns, and loses only what the writer overtakes', async (t) => {
  const log = place(t.testdir(), 3, 300)
  const writer = new JsonLog(log)
  const stop = new AbortController()
  const lines = readLog(log, { ...ALL, follow: true }, NEVER, stop.signal)
  const next = async (): Promise<string> => String((await lines.next()).value?.data)
  for (let i = 0; i < 40; i++) {
    writer.write(i % 2 ? STDOUT : STDERR, Buffer.from(`${i}\n`))
    t.equal(await next(), `${i}\n`)
  }
  for (let i = 40; i < 400; i++) writer.write(STDOUT, Buffer.from(`${i}\n`))
  const late = [Number(await next())]
  while (late.at(-1) !== 399) late.push(Number(await next()))
  t.ok(late.length < 100 && late.every((value, i) => i === 0 || value > late[i - 1]!), late.join())
  t.same(late.slice(-6), [394, 395, 396, 397, 398, 399])
  stop.abort()
  t.same(await lines.next(), { done: true, value: undefined })
  writer.close()
})

t.test('a monitor that was killed spoils nothing but its last line', async (t) => {
  const log = place(t.testdir(), 2, 400)
  const write = (line: string): void => {
    const writer = new JsonLog(log)
    writer.write(STDOUT, Buffer.from(`${line}\n`))
    writer.close()
  }
  write('one')
  appendFileSync(log.files[0]!, '{"log":"half')
  write('two')
  t.same(await read(log), ['one', 'two'])
  // Between the emptying of the next file and the note of it.
  writeFileSync(log.files[1]!, '')
  write('three')
  t.same(await read(log), ['one', 'two', 'three'])
  for (const strange of ['', 'x', '9'.repeat(40), '-1']) {
    writeFileSync(log.turns!, strange)
    t.ok((await read(log)).includes('one'), strange)
  }
  writeFileSync(log.files[0]!, `${'x'.repeat(3 << 20)}\n`)
  write('after')
  t.ok((await read(log)).includes('after'), 'a line without end is not kept in memory')
})

t.test('bounds in the words of Docker', async (t) => {
  const of = (options: Record<string, string>, driver = 'json-file'): unknown =>
    logBounds({ driver, options })
  t.equal(of({}), undefined)
  t.same(of({ 'max-size': '10m' }), { files: 1, maxSize: 10_000_000 })
  t.same(of({ 'max-size': '1.5k', 'max-file': '3' }, ''), { files: 3, maxSize: 1500 })
  t.same(of({}, 'none'), { files: 0 })
  for (const [options, driver, message] of [
    [{}, 'syslog', /no log driver named 'syslog'.*json-file or none/],
    [{ tag: 'x' }, 'json-file', /unknown log opt 'tag' for json-file/],
    [{ 'max-size': '1m' }, 'none', /unknown log opt 'max-size' for none/],
    [{ 'max-size': 'much' }, '', /max-size is a number of bytes/],
    [{ 'max-size': '0' }, '', /max-size is a number of bytes/],
    [{ 'max-file': '0', 'max-size': '1k' }, '', /from 1 to 100/],
    [{ 'max-file': '2' }, '', /needs max-size/],
    [{ compress: 'true' }, '', /compress/],
  ] as const)
    t.throws(() => of(options, driver), { code: 'INVALID_ARGUMENT', message })
})
