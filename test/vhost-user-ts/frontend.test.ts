import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { type Fd, memfd, sendWithFds, shutdown, SHUT_WR, socketPair } from '@coracle/sys'
import { InflightRegion, VIRTIO_F_VERSION_1, VhostUserFrontend } from 'vhost-user-ts'
import { BackendThread } from './backend-thread.js'
import { RING_FEATURES } from './driver.js'
import { Machine } from './machine.js'

const PROTOCOL = 1n << 30n
const SHORT = { timeout: 30 }

/** A test's own folder may have a name too long for a socket's. */
const folder = mkdtempSync(join(tmpdir(), 'coracle-'))
let sockets = 0
const socketPath = (): string => join(folder, `${sockets++}`)

void t.test('a frontend speaks with a backend', async (t) => {
  const path = socketPath()
  await using _backend = await BackendThread.start(path)
  using front = VhostUserFrontend.connect(path)
  t.equal(front.features, 3n | RING_FEATURES)
  t.equal(front.queues, 2)
  t.equal(front.memorySlots, 32)
  t.same([...front.getConfig(1, 2)], [2, 3])
  front.setConfig(0, new Uint8Array([7]))
  t.same([...front.getConfig(0, 4)], [7, 2, 3, 4])
  front.setFeatures(VIRTIO_F_VERSION_1)
  t.throws(() => front.setConfig(3, new Uint8Array(2)), /refused/, 'what it cannot do it says in band')
  t.throws(() => front.setFeatures(4n), /refused/)
  t.equal(front.closed, false, 'and the connection goes on')
  t.equal(front.getStatus(), 0)
  front.setStatus(3)
  t.equal(front.getStatus(), 3)
  front.resetDevice()
  t.equal(front.getStatus(), 0)

  using memory = memfd('m', 0x3000)
  const region = (n: number) => ({
    guestAddress: 0x1000 * n,
    size: 0x1000,
    userAddress: 0x1000 * n,
    offset: 0x1000 * n,
    fd: memory,
  })
  const [first, second] = [region(0), region(1)]
  front.setMemory([first, second])
  t.throws(() => front.addMemory(region(1)), /refused/, 'an overlap')
  t.throws(() => front.addMemory({ ...region(2), size: 0x2000 }), /refused/, 'beyond the file')
  front.addMemory(region(2))
  front.removeMemory(second)
  t.throws(() => front.removeMemory(second), /refused/, 'twice')
  front.setMemory([second])
  t.throws(() => memory.truncate(0), { code: 'EPERM' }, 'what it has mapped cannot be cut off any more')
  t.throws(() => front.setMemory(new Array(33).fill(first)), /32 memory regions/)
})

void t.test('a device of another process behind a transport', async (t) => {
  const path = socketPath()
  await using _backend = await BackendThread.start(path)
  using machine = new Machine(path)
  t.equal(machine.device.features, 3n)
  t.same([...machine.device.config], [1, 2, 3, 4])
  machine.queues[1]!.submit([Buffer.from('early'), 64])
  machine.activate()
  machine.answer(1)
  t.equal(String(Buffer.from(machine.queues[1]!.results()[0]!)), 'EARLY', 'offered before the start')
  t.equal(machine.request(0, 'hello'), 'HELLO')
  t.equal(machine.request(1, 'other'), 'OTHER')
  machine.device.writeConfig(1, new Uint8Array([9]))
  t.same([...machine.device.config], [1, 9, 3, 4])
  machine.until(() => machine.configChanges > 0)
  t.equal(machine.request(0, 'again'), 'AGAIN')

  t.same(machine.failures, [])
  t.throws(() => new Machine(path, { queues: 3, timeout: 50 }), /answer/, 'a second frontend has to wait')
})

void t.test('a device that fails over there fails here', async (t) => {
  const path = socketPath()
  await using _backend = await BackendThread.start(path)
  using machine = new Machine(path)
  machine.activate()
  machine.queues[0]!.submit([Buffer.from('fail'), 64])
  machine.kicks[0]!.signal()
  machine.until(() => machine.failures.length > 0)
  t.match(machine.failures, [{ code: 'BACKEND', message: /gave a queue up/ }])
})

void t.test('a backend that leaves costs the device; the next one serves after a reset', async (t) => {
  const path = socketPath()
  const backend = await BackendThread.start(path)
  using machine = new Machine(path)
  machine.activate()
  t.equal(machine.request(0, 'one'), 'ONE')
  await backend[Symbol.asyncDispose]()
  machine.until(() => machine.failures.length > 0)
  t.match(machine.failures, [{ code: 'BACKEND', message: /closed the connection/ }])
  t.throws(() => machine.activate(), { code: 'BACKEND' }, 'nobody there')
  machine.device.reset()
  await using _other = await BackendThread.start(path)
  machine.activate()
  t.equal(machine.request(0, 'two'), 'TWO')
})

void t.test('what was in flight when a backend died is carried out by the next, in order', async (t) => {
  const path = socketPath()
  const backend = await BackendThread.start(path, 'hold')
  using machine = new Machine(path, { reconnect: 20_000 })
  const queue = machine.queues[0]!
  machine.activate()
  const heads = ['a', 'b', 'c', 'd'].map((text) => queue.submit([Buffer.from(text), 64], true))
  machine.kicks[0]!.signal()
  machine.answer(0)
  t.match(queue.used(), [{ head: heads[2] }], 'one was done')
  await backend[Symbol.asyncDispose]()
  machine.until(() => machine.log.length > 0)
  // A driver goes on meanwhile.
  heads.push(queue.submit([Buffer.from('e'), 64], true))
  machine.kicks[0]!.signal()
  await using _other = await BackendThread.start(path)
  machine.answer(0)
  const order: number[] = []
  machine.until(() => {
    for (const { head } of queue.used()) order.push(head)
    return order.length >= 4
  })
  t.same(order, [heads[0], heads[1], heads[3], heads[4]])
  t.match(machine.log, [/waiting for another/, /is back/])
  t.same(machine.failures, [])
})

void t.test('a backend that does not come back in time', async (t) => {
  const path = socketPath()
  const backend = await BackendThread.start(path)
  using machine = new Machine(path, { reconnect: 50 })
  machine.activate()
  await backend[Symbol.asyncDispose]()
  machine.until(() => machine.failures.length > 0)
  t.match(machine.failures, [{ code: 'BACKEND', message: /ENOENT/ }])
})

void t.test('memory that cannot be shared', async (t) => {
  const path = socketPath()
  await using _backend = await BackendThread.start(path)
  using machine = new Machine(path)
  const { memory } = machine.guest
  const { file: _, ...region } = memory.regions[0]!
  const { GuestMemory } = await import('vhost-user-ts')
  t.throws(() => machine.activate(new GuestMemory([region])), { code: 'BACKEND', message: /private/ })
})

/** A reply of a backend, as bytes. */
function reply(request: number, payload: Uint8Array, flags = 5, size = payload.length): Uint8Array {
  return Buffer.concat([new Uint8Array(new Uint32Array([request, flags, size]).buffer), payload])
}
const u64 = (value: bigint): Uint8Array => new Uint8Array(new BigUint64Array([value]).buffer)

/** Other ends, open for as long as a test runs. */
const kept: Fd[] = []

/** A frontend whose backend has said all that it will ever say, before it was asked. */
function facing(replies: readonly Uint8Array[], fds: readonly Fd[] = [], hangUp = false): VhostUserFrontend {
  const [ours, theirs] = socketPair()
  kept.push(theirs)
  replies.forEach((bytes, i) => sendWithFds(theirs, bytes, i === replies.length - 1 ? fds : []))
  if (hangUp) shutdown(theirs, SHUT_WR)
  return new VhostUserFrontend(ours, SHORT)
}

/** Up to where the connection is negotiated: MQ, CONFIG and INFLIGHT_SHMFD, no acknowledgements. */
const HELLO = [
  reply(1, u64(PROTOCOL | RING_FEATURES)),
  reply(15, u64(1n | (1n << 9n) | (1n << 12n))),
  reply(17, u64(2n)),
]

void t.test('what ends a connection to a backend', async (t) => {
  using file = memfd('f', 4096)
  const bad: [string, RegExp, () => unknown][] = [
    ['silence', /no answer/, () => facing([])],
    ['hanging up', /closed|gone/, () => facing([], [], true)],
    ['hanging up within a message', /within a message/, () => facing([new Uint8Array(5)], [], true)],
    ['half a message', /no answer|closed/, () => facing([reply(1, u64(0n)).subarray(0, 15)])],
    ['another request', /in place of/, () => facing([reply(2, u64(0n))])],
    ['a request', /a request where a reply/, () => facing([reply(1, u64(0n), 1)])],
    ['another version', /version/, () => facing([reply(1, u64(0n), 6)])],
    ['an oversized payload', /payload/, () => facing([reply(1, u64(0n), 5, 513)])],
    ['a short payload', /a reply of 4 bytes/, () => facing([reply(1, new Uint8Array(4))])],
    ['a descriptor that nobody asked for', /in place of/, () => facing([reply(1, u64(0n))], [file])],
    ['too many descriptors', /descriptors/, () => facing([reply(1, u64(0n))], new Array<Fd>(9).fill(file))],
    ['no queues', /0 queues/, () => facing([...HELLO.slice(0, 2), reply(17, u64(0n))])],
    ['a wealth of queues', /queues/, () => facing([...HELLO.slice(0, 2), reply(17, u64(1n << 40n))])],
    [
      'another configuration than was asked for',
      /configuration/,
      () => facing([...HELLO, reply(24, new Uint8Array(13))]).getConfig(0, 4),
    ],
    [
      'a refused configuration',
      /refused/,
      () => facing([...HELLO, reply(24, new Uint8Array())]).getConfig(0, 4),
    ],
    ['another ring', /stopped as/, () => facing([...HELLO, reply(11, u64(1n))]).stopVring(0)],
    [
      'in-flight memory without memory',
      /descriptor/,
      () => facing([...HELLO, reply(31, new Uint8Array(24))]).getInflight(2, 8),
    ],
    [
      'in-flight memory beyond its file',
      /region/,
      () =>
        facing([...HELLO, reply(31, Buffer.concat([u64(8192n), u64(0n), u64(0n)]))], [file]).getInflight(
          2,
          8,
        ),
    ],
  ]
  for (const [name, message, act] of bad) {
    t.throws(act, { name: 'VhostUserError', message }, name)
    for (const fd of kept.splice(0)) fd.close()
  }
})

void t.test('any bytes of a backend: an error or an answer, nothing else', async () => {
  using file = memfd('f', 4096)
  const message = fc.record({
    request: fc.oneof(fc.constantFrom(1, 11, 15, 17, 24, 31, 36), fc.nat(45)),
    flags: fc.constantFrom(5, 5, 5, 1, 4, 13),
    size: fc.option(fc.nat(600)),
    payload: fc.oneof(fc.uint8Array({ maxLength: 64 }), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }).map(u64)),
  })
  fc.assert(
    fc.property(fc.array(message, { maxLength: 8 }), fc.boolean(), fc.nat(9), (messages, hello, fds) => {
      const bytes = messages.map(({ request, flags, size, payload }) =>
        reply(request, payload, flags, size ?? payload.length),
      )
      const all = hello ? [...HELLO, ...bytes] : bytes
      try {
        using front = facing(all, all.length > 0 ? new Array<Fd>(fds).fill(file) : [], true)
        front.getConfig(0, 16)
        front.stopVring(0)
        using _region = front.getInflight(1, 4)
      } catch (error) {
        if ((error as Error).name !== 'VhostUserError') throw error
      } finally {
        for (const fd of kept.splice(0)) fd.close()
      }
    }),
    { numRuns: 300 },
  )
})

void t.test('in-flight memory: whatever stands in it', async (t) => {
  using region = InflightRegion.create(2, 8)
  t.equal(region.queue(2), undefined)
  t.same(region.queue(0)!.recover(5), [], 'a new one')
  const queue = region.queue(0)!
  queue.recover(5)
  for (const head of [3, 1, 2]) queue.take(head)
  queue.give(1)
  t.same(region.queue(0)!.recover(5), [3, 1, 2], 'written, but not shown to the driver')
  queue.give(1)
  t.same(region.queue(0)!.recover(6), [3, 2], 'shown, but not struck off')
  queue.publish(6)
  t.same(region.queue(0)!.recover(6), [3, 2])
  t.throws(() => region.queue(0)!.recover(100), { name: 'VhostUserError' })
  t.throws(() => InflightRegion.create(0, 8), { name: 'VhostUserError' })
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 192, maxLength: 192 }), fc.nat(0xffff), (bytes, used) => {
      region.fd.pwrite(bytes, 0)
      try {
        const heads = region.queue(0)!.recover(used)
        return heads.length <= 8 && heads.every((head) => head < 8)
      } catch (error) {
        return (error as Error).name === 'VhostUserError'
      }
    }),
  )
})

t.teardown(() => rmSync(folder, { recursive: true }))
