import t from 'tap'
import { Log, isLogLevel } from '../src/log.js'

t.test('one object a line, from a level on', (t) => {
  const lines: string[] = []
  const log = new Log('warn', (line) => lines.push(line))
  log.debug('no')
  log.info('no')
  log.warn('device', { container: 'abc', message: 'two\nlines' })
  log.error('end')
  t.equal(lines.length, 2)
  t.ok(lines.every((line) => line.endsWith('\n') && !line.slice(0, -1).includes('\n')))
  t.match(JSON.parse(lines[0]!), {
    time: /^\d{4}-.*Z$/,
    level: 'warn',
    event: 'device',
    container: 'abc',
    message: 'two\nlines',
  })
  t.match(JSON.parse(lines[1]!), { level: 'error', event: 'end' })
  t.same(['info', 'loud', undefined].map(isLogLevel), [true, false, false])
  t.end()
})
