import t from 'tap'
import { blockSignal, setParentDeathSignal, signalThread, takeSignal, threadId } from '@coracle/sys'

const SIGNAL = 40

t.test('a blocked signal stays until it is taken', (t) => {
  blockSignal(SIGNAL)
  t.equal(threadId(), process.pid, "the main thread's id is the process's")
  t.notOk(takeSignal(SIGNAL))
  signalThread(threadId(), SIGNAL)
  signalThread(threadId(), SIGNAL)
  t.ok(takeSignal(SIGNAL))
  t.ok(takeSignal(SIGNAL), 'realtime signals queue')
  t.notOk(takeSignal(SIGNAL))
  t.throws(() => signalThread(0x3fff_fff0, SIGNAL), { code: 'ESRCH' })
  t.throws(() => signalThread(threadId(), 99), { code: 'EINVAL' })
  t.throws(() => setParentDeathSignal(999), { code: 'EINVAL' })
  setParentDeathSignal(0)
  t.end()
})
