import { Readable } from 'node:stream'
import t from 'tap'
import { readTap } from './tap-stream.js'

t.test('prints failures with their diagnosis and skips with their reason, and sums up', async (t) => {
  const lines: string[] = []
  const stream = Readable.from([
    'TAP version 14\n# Subtest: a\n    ok 1 - fine\n    not ok 2 - bad\n      ---\n      diff: x\n      ...\n',
    '    ok 3 - later # SKIP no device\n    1..3\nnot ok 1 - a.test.js\n  ---\n  exitCode: 1\n  ...\nok 2 - b.test.js\n',
    '# { total: 4, pass: 2, fail: 1, skip: 1 }\n',
  ])
  const totals = await readTap(stream, (line) => lines.push(line))
  t.same(totals, { passed: 2, failed: 1, skipped: 1 })
  const text = lines.join('\n')
  t.match(text, /not ok 2 - bad\n {6}---\n {6}diff: x/)
  t.match(text, /SKIP no device/)
  t.match(text, /^ok 2 - b.test.js$/m)
  t.notMatch(text, /ok 1 - fine/)
})

t.test('knows a stream that broke off', async (t) => {
  t.equal(await readTap(Readable.from(['TAP version 14\nok 1\n']), () => {}), undefined)
})
