import { existsSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import {
  connectUnix,
  Epoll,
  EventFd,
  type Fd,
  memfd,
  Mapping,
  receiveWithFds,
  SysError,
  sendWithFds,
  socketPair,
} from '@coracle/sys'
import { BackendConnection, type DeviceContext, type VirtioDevice, serve } from 'vhost-user-ts'

const GET_FEATURES = 1
const SET_FEATURES = 2
const SET_MEM_TABLE = 5
const SET_VRING_NUM = 8
const SET_VRING_ADDR = 9
const SET_VRING_BASE = 10
const GET_VRING_BASE = 11
const SET_VRING_KICK = 12
const SET_VRING_CALL = 13
const SET_VRING_ERR = 14
const GET_PROTOCOL_FEATURES = 15
const SET_PROTOCOL_FEATURES = 16
const GET_QUEUE_NUM = 17
const SET_VRING_ENABLE = 18
const SET_BACKEND_REQ_FD = 21
const GET_CONFIG = 24
const SET_CONFIG = 25
const VERSION_1 = 1n << 32n
const PROTOCOL = 1n << 30n
/** Where the frontend "has mapped" the guest's memory, and where the guest sees it. */
const USER = 0x7f00_0000_0000
const GUEST = 0x4000

/** Answers each request with its bytes in upper case. */
class Shout implements VirtioDevice {
  readonly name = 'shout'
  readonly type = 42
  readonly queueSizes = [8, 8]
  readonly features = 1n
  readonly config = new Uint8Array([1, 2, 3, 4])
  active: DeviceContext | undefined
  activations = 0
  activate(context: DeviceContext): void {
    this.active = context
    this.activations++
  }
  writeConfig(offset: number, data: Uint8Array): void {
    this.config.set(data, offset)
    this.active?.configChanged()
  }
  notify(index: number): void {
    const queue = this.active!.queues[index]!
    for (let chain = queue.pop(); chain; chain = queue.pop()) {
      const text = new Uint8Array(chain.reader.length)
      chain.reader.bytes(text)
      chain.writer.bytes(Buffer.from(Buffer.from(text).toString().toUpperCase()))
      queue.push(chain, chain.writer.position)
    }
    if (queue.flush()) this.active!.interrupt(index)
  }
  reset(): void {
    this.active = undefined
  }
}

/** A frontend by hand, in one thread with the backend: whatever it sends is handled at once. */
class Frontend implements Disposable {
  readonly device = new Shout()
  readonly loop = new Epoll()
  readonly log: string[] = []
  readonly memory = memfd('guest', 0x10000)
  readonly mapping = Mapping.create({ fd: this.memory, length: 0x10000 })
  readonly view = new DataView(this.mapping.view())
  readonly fd: Fd
  readonly connection: BackendConnection
  closed: Error | undefined | true
  readonly #kicks = [EventFd.create(), EventFd.create()]
  readonly calls = [EventFd.create(), EventFd.create()]

  constructor() {
    const [ours, theirs] = socketPair()
    this.fd = ours
    this.connection = new BackendConnection(this.device, theirs, this.loop, {
      log: (message) => this.log.push(message),
      closed: (reason) => (this.closed = reason ?? true),
    })
  }

  turn(): void {
    while (this.loop.wait(0) > 0);
  }

  send(request: number, payload: Uint8Array, fds: Fd[] = [], flags = 1): DataView | undefined {
    const bytes = new Uint8Array(12 + payload.length)
    new Uint32Array(bytes.buffer, 0, 3).set([request, flags, payload.length])
    bytes.set(payload, 12)
    sendWithFds(this.fd, bytes, fds)
    this.turn()
    const into = new Uint8Array(1024)
    try {
      const { length } = receiveWithFds(this.fd, into)
      return length > 0 ? new DataView(into.buffer, 0, length) : undefined
    } catch (error) {
      // The backend closed on us, with bytes unread.
      if (!(error instanceof SysError) || error.code !== 'ECONNRESET') throw error
      return undefined
    }
  }

  u64(request: number, value: bigint, fds: Fd[] = [], flags = 1): DataView | undefined {
    return this.send(request, new Uint8Array(new BigUint64Array([value]).buffer), fds, flags)
  }

  pair(request: number, index: number, value: number): DataView | undefined {
    return this.send(request, new Uint8Array(new Uint32Array([index, value]).buffer))
  }

  get(request: number): bigint | undefined {
    return this.send(request, new Uint8Array())?.getBigUint64(12, true)
  }

  table(size = 0x10000, offset = 0, fds = [this.memory], count = 1): DataView | undefined {
    const payload = new BigUint64Array([
      BigInt(count),
      BigInt(GUEST),
      BigInt(size),
      BigInt(USER),
      BigInt(offset),
    ])
    return this.send(SET_MEM_TABLE, new Uint8Array(payload.buffer), fds)
  }

  /** Rings as QEMU sets them up: everything, then the doorbells, then enabling. */
  ring(index: number, size = 8, base = 0): void {
    const at = BigInt(USER + 0x1000 * (index + 1))
    this.pair(SET_VRING_NUM, index, size)
    this.pair(SET_VRING_BASE, index, base)
    const addresses = new BigUint64Array([BigInt(index), at, at + 0x200n, at + 0x100n, 0n])
    this.send(SET_VRING_ADDR, new Uint8Array(addresses.buffer))
    this.u64(SET_VRING_CALL, BigInt(index), [this.calls[index]!.fd])
    this.u64(SET_VRING_KICK, BigInt(index), [this.#kicks[index]!.fd])
  }

  start(features = VERSION_1 | PROTOCOL): void {
    this.u64(SET_PROTOCOL_FEATURES, 1n | 8n | 32n | 512n)
    this.u64(SET_FEATURES, features)
    this.table()
    this.ring(0)
    this.ring(1)
    if ((features & PROTOCOL) !== 0n) for (const i of [0, 1]) this.pair(SET_VRING_ENABLE, i, 1)
  }

  /** The driver's request number `n` on a ring; its answer. */
  request(index: number, n: number, text: string): string {
    const at = 0x1000 * (index + 1)
    const { view } = this
    new Uint8Array(view.buffer).set(Buffer.from(text), 0x8000)
    const descriptor = (i: number, address: number, length: number, flags: number): void => {
      view.setBigUint64(at + i * 16, BigInt(address), true)
      view.setUint32(at + i * 16 + 8, length, true)
      view.setUint16(at + i * 16 + 12, flags, true)
      view.setUint16(at + i * 16 + 14, 1, true)
    }
    descriptor(0, GUEST + 0x8000, text.length, 1)
    descriptor(1, GUEST + 0x9000, 100, 2)
    view.setUint16(at + 0x104 + ((n - 1) % 8) * 2, 0, true)
    view.setUint16(at + 0x102, n, true)
    this.#kicks[index]!.signal()
    this.turn()
    if (view.getUint16(at + 0x202, true) !== n) return ''
    const written = view.getUint32(at + 0x204 + ((n - 1) % 8) * 8 + 4, true)
    return Buffer.from(this.mapping.bytes(0x9000, written)).toString()
  }

  [Symbol.dispose](): void {
    this.connection[Symbol.dispose]()
    this.loop.close()
    this.mapping.unmap()
    for (const each of [this.fd, this.memory, ...this.#kicks, ...this.calls]) each.close()
  }
}

void t.test('a device is negotiated, served, stopped and served again', async (t) => {
  using front = new Frontend()
  t.equal(front.get(GET_FEATURES), 1n | VERSION_1 | PROTOCOL | (3n << 28n))
  t.equal(front.get(GET_PROTOCOL_FEATURES), 1n | 8n | 32n | 512n | (0b1_1011n << 12n))
  t.equal(front.get(GET_QUEUE_NUM), 2n)
  front.start()
  t.equal(front.connection.state, 'running')
  t.equal(front.device.activations, 1, 'once for all rings')
  t.equal(front.device.active?.features, VERSION_1, "the protocol's own bit is not the device's")
  t.equal(front.request(0, 1, 'hello'), 'HELLO')
  t.equal(front.calls[0]!.drain(), true)
  t.equal(front.request(1, 1, 'other ring'), 'OTHER RING')
  t.equal(front.request(0, 2, 'again'), 'AGAIN')

  t.equal(front.pair(GET_VRING_BASE, 0, 0)?.getUint32(16, true), 2)
  t.equal(front.device.active, undefined, 'stopped')
  t.equal(front.pair(GET_VRING_BASE, 1, 0)?.getUint32(16, true), 1)
  t.equal(front.request(0, 3, 'nobody'), '')
  front.u64(SET_FEATURES, VERSION_1)
  front.ring(0, 8, 2)
  t.equal(front.request(0, 4, 'without protocol features'), 'WITHOUT PROTOCOL FEATURES')
  t.equal(front.view.getUint16(0x1202, true), 4, 'and what came in between was served too')
  t.same(front.log, [])
})

void t.test('a ring that starts after another was served is served too', async (t) => {
  using front = new Frontend()
  front.u64(SET_FEATURES, VERSION_1 | PROTOCOL)
  front.table()
  // As QEMU starts a network adapter: enabled first, then one ring after the other.
  for (const i of [0, 1]) front.pair(SET_VRING_ENABLE, i, 1)
  front.ring(0)
  t.equal(front.request(0, 1, 'first'), 'FIRST')
  front.ring(1)
  t.equal(front.request(1, 1, 'second'), 'SECOND')
  t.equal(front.request(0, 2, 'the first goes on'), 'THE FIRST GOES ON')
})

void t.test('a new memory table under a running device', async (t) => {
  using front = new Frontend()
  front.start()
  front.request(0, 1, 'x')
  front.table()
  t.equal(front.connection.state, 'running')
  t.equal(front.request(0, 2, 'goes on'), 'GOES ON')
})

void t.test('configuration space', async (t) => {
  using front = new Frontend()
  front.start()
  const config = (request: number, offset: number, data: number[], flags = 1): DataView | undefined => {
    const payload = new Uint8Array(12 + data.length)
    new Uint32Array(payload.buffer, 0, 2).set([offset, data.length])
    payload.set(data, 12)
    return front.send(request, payload, [], flags)
  }
  const read = config(GET_CONFIG, 2, [0, 0, 0, 0])!
  t.same([...new Uint8Array(read.buffer, 24, 4)], [3, 4, 0, 0], 'zeroes beyond what the device has')
  const [ours, theirs] = socketPair()
  t.equal(front.send(SET_BACKEND_REQ_FD, new Uint8Array(), [theirs], 9)?.getBigUint64(12, true), 0n)
  theirs.close()
  t.equal(config(SET_CONFIG, 1, [9, 8], 9)?.getBigUint64(12, true), 0n, 'acknowledged')
  t.same([...front.device.config], [1, 9, 8, 4])
  const change = new Uint32Array(3)
  ours.read(change)
  t.same([...change], [2, 1, 0], 'and the frontend is told of the change')
  ours.close()
  config(SET_CONFIG, 3, [1, 2])
  t.match(front.closed, { name: 'VhostUserError' })
})

void t.test('a driver that breaks a rule stops the device, not the connection', async (t) => {
  using front = new Frontend()
  front.start()
  using error = EventFd.create()
  front.u64(SET_VRING_ERR, 0n, [error.fd])
  front.view.setUint16(0x1102, 9, true)
  front.request(0, 500, 'x')
  t.equal(front.connection.state, 'failed')
  t.equal(error.drain(), true)
  t.match(front.log, [/^shout: stopped: queue 0/])
  t.equal(front.device.active, undefined)
  front.pair(GET_VRING_BASE, 0, 0)
  front.pair(GET_VRING_BASE, 1, 0)
  front.view.setUint16(0x1102, 0, true)
  front.view.setUint16(0x1202, 0, true)
  front.start()
  t.equal(front.request(0, 1, 'after a reset'), 'AFTER A RESET')
})

void t.test('what ends the connection', async (t) => {
  const bad: [string, (front: Frontend) => void][] = [
    ['another version', (f) => f.send(GET_FEATURES, new Uint8Array(), [], 2)],
    ['a reply', (f) => f.send(GET_FEATURES, new Uint8Array(), [], 5)],
    ['an oversized payload', (f) => f.send(GET_FEATURES, new Uint8Array(513))],
    ['an unknown request', (f) => f.send(99, new Uint8Array())],
    ['a short payload', (f) => f.send(SET_FEATURES, new Uint8Array(7))],
    ['descriptors where none belong', (f) => f.u64(SET_FEATURES, 0n, [f.memory])],
    ['too many descriptors', (f) => f.table(4096, 0, new Array<Fd>(9).fill(f.memory), 9)],
    [
      'more descriptors than a message can have',
      (f) => f.table(4096, 0, new Array<Fd>(32).fill(f.memory), 32),
    ],
    ['features that were not offered', (f) => f.u64(SET_FEATURES, 2n)],
    ['protocol features that were not offered', (f) => f.u64(SET_PROTOCOL_FEATURES, 2n)],
    ['regions without descriptors', (f) => f.table(4096, 0, [], 1)],
    ['fewer regions than descriptors', (f) => f.table(4096, 0, [f.memory, f.memory], 1)],
    ['a region beyond its file', (f) => f.table(0x10001)],
    ['a region that overflows', (f) => f.table(4096, 2 ** 63)],
    ['a ring that is not there', (f) => f.pair(SET_VRING_NUM, 2, 8)],
    ['a doorbell without a descriptor', (f) => f.u64(SET_VRING_KICK, 0x100n)],
    ['a doorbell whose descriptor is missing', (f) => f.u64(SET_VRING_KICK, 0n)],
    [
      'a size while the ring runs',
      (f) => {
        f.start()
        f.pair(SET_VRING_NUM, 0, 4)
      },
    ],
    [
      'features while the device runs',
      (f) => {
        f.start()
        f.u64(SET_FEATURES, VERSION_1)
      },
    ],
  ]
  for (const [name, act] of bad) {
    using front = new Frontend()
    act(front)
    t.match(front.closed, Error, name)
    t.equal(front.connection.state, 'closed')
    t.equal(front.device.active, undefined)
    t.equal(front.log.length, 1)
  }
  using front = new Frontend()
  front.u64(SET_PROTOCOL_FEATURES, 8n)
  t.equal(front.send(99, new Uint8Array(), [], 9)?.getBigUint64(12, true), 1n, 'unless it asks for an answer')
  t.equal(front.closed, undefined)
})

void t.test('rings that are no rings stop the device', async (t) => {
  for (const size of [0, 3, 16]) {
    using front = new Frontend()
    front.u64(SET_FEATURES, VERSION_1)
    front.table()
    front.ring(0, size)
    front.request(0, 1, 'x')
    t.equal(front.connection.state, size === 0 ? 'setup' : 'failed', `size ${size}`)
  }
})

void t.test('the other end closes', async (t) => {
  const front = new Frontend()
  front.start()
  front.fd.close()
  front.turn()
  t.equal(front.closed, true)
  t.equal(front.device.active, undefined)
  front[Symbol.dispose]()
})

void t.test('any bytes: the connection ends or waits, nothing else', async (t) => {
  const message = fc.record({
    request: fc.oneof(fc.nat(45), fc.nat(0xffff_ffff)),
    flags: fc.constantFrom(1, 9, 1, 9, 0, 5),
    size: fc.option(fc.nat(0xffff_ffff)),
    payload: fc.oneof(
      fc.uint8Array({ maxLength: 80 }),
      fc.array(fc.oneof(fc.nat(4), fc.nat(0xffff)), { maxLength: 20 }).map((each) => {
        return new Uint8Array(new Uint32Array(each).buffer)
      }),
    ),
    fds: fc.nat(3),
  })
  fc.assert(
    fc.property(fc.array(message, { maxLength: 12 }), fc.boolean(), (messages, started) => {
      using front = new Frontend()
      if (started) front.start()
      for (const { request, flags, size, payload, fds } of messages) {
        if (front.closed) break
        const bytes = new Uint8Array(12 + payload.length)
        new Uint32Array(bytes.buffer, 0, 3).set([request, flags, size ?? payload.length])
        bytes.set(payload, 12)
        try {
          sendWithFds(front.fd, bytes, new Array<Fd>(fds).fill(front.memory))
        } catch {
          break
        }
        front.turn()
      }
    }),
    { numRuns: 300 },
  )
  t.pass('so it is')
})

void t.test('serve: one frontend after another', async (t) => {
  const path = join(t.testdir(), 's')
  using loop = new Epoll()
  const turn = (): void => {
    while (loop.wait(0) > 0);
  }
  const server = serve(new Shout(), path, loop)
  t.throws(() => serve(new Shout(), path, loop), { code: 'EADDRINUSE' })
  for (let i = 0; i < 2; i++) {
    const fd = connectUnix(path)
    turn()
    t.equal(server.connected, true)
    fd.close()
    turn()
    t.equal(server.connected, false)
  }
  const fd = connectUnix(path)
  turn()
  server[Symbol.dispose]()
  t.equal(fd.read(new Uint8Array(1)), 0)
  fd.close()
  t.equal(existsSync(path), false)
})
