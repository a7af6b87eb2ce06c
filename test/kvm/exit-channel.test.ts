import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { EPOLLIN, Epoll, EventFd } from '@coracle/sys'
import {
  CONTINUE,
  type ExitHandler,
  ExitServer,
  FAILED,
  MMIO,
  PIO,
  RESET,
  newExitChannel,
} from '../../src/kvm/index.js'

const CLIENT = new URL('./channel-client.js', import.meta.url)

function client(doorbell: EventFd, rounds: number, port: number) {
  const channel = newExitChannel(doorbell)
  const worker = new Worker(CLIENT, { workerData: { channel, rounds, port } })
  const result = once(worker, 'message').then(([message]) => message as { wrong: number; verdicts: number })
  return { channel, worker, result }
}

t.test('no wake-up is lost in 10^5 round trips of two processors', async (t) => {
  const ROUNDS = 50_000
  using doorbell = EventFd.create()
  const next = new Map<number, number>()
  let served = 0
  let outOfOrder = 0
  const handler: ExitHandler = {
    access(space, address, size, isWrite, data, offset) {
      served++
      if (isWrite) {
        if (space !== PIO || size !== 4 || data.getUint32(offset, true) !== (next.get(address) ?? 0))
          outOfOrder++
        next.set(address, data.getUint32(offset, true) + 2)
      } else {
        if (space !== MMIO || size !== 8 || data.getFloat64(offset, true) !== 0) outOfOrder++
        data.setFloat64(offset, address + 1, true)
      }
      return CONTINUE
    },
  }
  using server = new ExitServer(doorbell, handler, (error) => t.fail(String(error)))
  const clients = [client(doorbell, ROUNDS, 0x60), client(doorbell, ROUNDS, 0x70)]
  clients.forEach(({ channel }) => server.add(channel))
  using loop = new Epoll()
  loop.add(doorbell.fd, EPOLLIN, () => server.serve())
  // As the thread of the devices does: in the loop, blocked, with no look at Node's own loop. A lost wake-up ends it.
  while (served < 2 * ROUNDS) if (loop.wait(20_000) === 0) break
  t.equal(served, 2 * ROUNDS)
  t.equal(outOfOrder, 0)
  for (const { result } of clients) t.same(await result, { wrong: 0, verdicts: 0 })
})

t.test('a handler that throws, or ends the guest', async (t) => {
  using doorbell = EventFd.create()
  const errors: unknown[] = []
  let calls = 0
  const handler: ExitHandler = {
    access() {
      if (calls++ === 0) throw new Error('a bug')
      return RESET
    },
  }
  using server = new ExitServer(doorbell, handler, (error) => errors.push(error))
  const { channel, result } = client(doorbell, 2, 0x60)
  server.add(channel)
  using loop = new Epoll()
  loop.add(doorbell.fd, EPOLLIN, () => server.serve())
  while (calls < 2) if (loop.wait(20_000) === 0) break
  t.equal((await result).verdicts, FAILED + RESET)
  t.match(errors, [{ message: 'a bug' }])
})

t.test('a server that goes lets nobody wait', async (t) => {
  using doorbell = EventFd.create()
  const server = new ExitServer(doorbell, { access: () => CONTINUE }, () => undefined)
  const { channel, result } = client(doorbell, 3, 0x60)
  server.add(channel)
  using loop = new Epoll()
  let rung = false
  loop.add(doorbell.fd, EPOLLIN, () => (rung = doorbell.drain()))
  loop.wait(20_000)
  t.ok(rung, 'the first request waits')
  server.close()
  t.equal((await result).verdicts, 3 * FAILED)
})
