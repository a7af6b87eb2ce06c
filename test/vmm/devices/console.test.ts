import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Fd, O_RDWR, socketPair } from '@coracle/sys'
import type { VirtioDevice } from 'vhost-user-ts'
import { Console, type ConsoleInit } from '../../../src/vmm/devices/console/console.js'
import { openConsole } from '../../../src/vmm/devices/console/open.js'
import { TestTransport } from '../../vhost-user-ts/driver.js'

const RECEIVE = 0
const TRANSMIT = 1
const text = (words: string): Uint8Array => new Uint8Array(Buffer.from(words))
const size = ({ config }: VirtioDevice): number[] => {
  const view = new DataView(config.buffer)
  return [view.getUint16(0, true), view.getUint16(2, true)]
}

/** A guest at one end of a socket, and the test at the other. */
class ConsoleGuest extends TestTransport {
  declare readonly device: Console
  readonly peer: Fd
  readonly log: string[]
  readonly #wire: Fd

  constructor(more: Partial<ConsoleInit> = {}) {
    const [wire, peer] = socketPair()
    const log: string[] = []
    super(new Console({ name: 'hvc', wire, log: (line) => log.push(line), ...more }))
    this.#wire = wire
    this.peer = peer
    this.log = log
    for (const index of [RECEIVE, TRANSMIT]) this.notify(index)
  }

  said(most = 1 << 20): string {
    const bytes = new Uint8Array(most)
    return Buffer.from(bytes.subarray(0, Math.max(0, this.peer.read(bytes)))).toString('latin1')
  }

  heard(): string[] {
    return this.queues[RECEIVE]!.results().map((bytes) => Buffer.from(bytes).toString('latin1'))
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]()
    this.#wire.close()
    this.peer.close()
  }
}

t.test('what the guest writes comes out, in order and once', async (t) => {
  using guest = new ConsoleGuest()
  t.equal(guest.request(TRANSMIT, [text('over '), text('several '), text('buffers\n')])?.length, 0)
  t.equal(guest.request(TRANSMIT, [text('indirect\n')], true)?.length, 0)
  t.equal(guest.said(), 'over several buffers\nindirect\n')
  t.ok(guest.interrupts.includes(TRANSMIT))
  for (let i = 0; i < 60; i++) guest.queues[TRANSMIT]!.submit([text(`${i} `)])
  guest.notify(TRANSMIT)
  const first = guest.queues[TRANSMIT]!.results().length
  t.ok(first > 0 && first < 60, 'others have their turn')
  guest.turn()
  t.equal(first + guest.queues[TRANSMIT]!.results().length, 60)
  t.equal(guest.said(), Array.from({ length: 60 }, (_, i) => `${i} `).join(''))
  t.same(guest.failures, [])
})

t.test('what comes in waits for the guest to have room for it', async (t) => {
  using guest = new ConsoleGuest()
  guest.peer.write(text('early'))
  guest.turn()
  t.same(guest.heard(), [])
  t.equal(guest.loop.wait(0), 0, 'and nobody is woken for it again and again')
  guest.queues[RECEIVE]!.submit([3])
  guest.notify(RECEIVE)
  t.same(guest.heard(), ['ear'])
  guest.queues[RECEIVE]!.submit([1, 8])
  guest.queues[RECEIVE]!.submit([8])
  guest.notify(RECEIVE)
  t.same(guest.heard(), ['ly'])
  guest.turn()
  t.same(guest.heard(), [], 'the next buffer is kept until there is something')
  guest.peer.write(text('late'))
  guest.turn()
  t.same(guest.heard(), ['late'])
  t.ok(guest.interrupts.includes(RECEIVE))
  guest.queues[RECEIVE]!.submit([text('no room in it')])
  guest.notify(RECEIVE)
  t.same(guest.heard(), [''])
  t.same(guest.failures, [])
})

t.test('a reader that is slow or gone holds up nobody', async (t) => {
  using guest = new ConsoleGuest()
  const page = new Uint8Array(4096).fill(0x61)
  for (let i = 0; i < 500; i++) t.equal(guest.request(TRANSMIT, [page])?.length, 0)
  t.match(guest.log, [/nobody reads/], 'it says so once')
  while (guest.said() !== '');
  guest.request(TRANSMIT, [text('again')])
  t.equal(guest.said(), 'again')
  guest.peer.write(text('last'))
  guest.peer.close()
  guest.turn()
  t.equal(guest.loop.wait(0), 0, 'an end that stays one wakes nobody')
  t.equal(guest.request(TRANSMIT, [page])?.length, 0)
  guest.queues[RECEIVE]!.submit([8])
  guest.queues[RECEIVE]!.submit([8])
  guest.notify(RECEIVE)
  t.same(guest.heard(), ['last'], 'what was left behind is read')
  t.same(guest.failures, [])
})

t.test('the size, the emergency register, and what is out of bounds', async (t) => {
  using guest = new ConsoleGuest({ size: { columns: 80, rows: 25 } })
  t.same(size(guest.device), [80, 25])
  guest.device.resize({ columns: 132, rows: 50 })
  t.same(size(guest.device), [132, 50])
  t.equal(guest.configChanges, 1)
  for (const columns of [-1, 65536, 1.5, NaN])
    t.throws(() => guest.device.resize({ columns, rows: 1 }), { code: 'INVALID_ARGUMENT' }, String(columns))
  guest.device.writeConfig(8, text('A\0\0\0'))
  guest.device.writeConfig(0, text('01234567B'))
  guest.device.writeConfig(0, text('0123'))
  guest.device.writeConfig(9, text('C'))
  t.equal(guest.said(), 'AB')
  t.same(size(guest.device), [132, 50], "the rest is not the guest's to write")
  t.equal(guest.device.save(), null)
  guest.request(TRANSMIT, [new Uint8Array((64 << 10) + 1)])
  t.match(guest.failures, [{ code: 'DEVICE_REQUEST' }])
})

t.test('it is opened on a descriptor, or on a file for its output alone', async (t) => {
  const log = (line: string): void => void t.fail(line)
  const path = join(t.testdir({ file: 'before' }), 'file')
  for (const wanted of [{ path: join(path, 'none') }, { path, size: { columns: 1e6, rows: 1 } }])
    t.throws(() => openConsole({ kind: 'console', name: 'x', ...wanted }, { log }), {
      code: 'INVALID_ARGUMENT',
    })
  writeFileSync(path, '')
  const file = openConsole({ kind: 'console', name: 'x', path }, { log })
  if (!('device' in file)) throw new Error('no virtio device')
  {
    using guest = new TestTransport(file.device)
    guest.queues[RECEIVE]!.submit([8])
    guest.notify(RECEIVE)
    guest.request(TRANSMIT, [text('log\n')])
    guest.turn()
    t.same(guest.queues[RECEIVE]!.results(), [])
    t.same(guest.failures, [])
  }
  file.close()
  t.equal(readFileSync(path, 'latin1'), 'log\n')
  using fd = Fd.open(path, O_RDWR)
  const given = openConsole({ kind: 'console', name: 'x', path: `/proc/self/fd/${fd.number}` }, { log })
  if (!('device' in given)) throw new Error('no virtio device')
  t.equal(given.device.name, 'console x')
  given.control?.({ columns: 3, rows: 4 })
  t.same(size(given.device), [3, 4])
  given.close()
})
