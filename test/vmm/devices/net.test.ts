import { execFileSync } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { existsSync } from 'node:fs'
import fc from 'fast-check'
import t from 'tap'
import {
  CLONE_NEWNET,
  type Fd,
  SOCK_SEQPACKET,
  Tap,
  VNET_HEADER,
  createTap,
  deleteTap,
  socketPair,
  unshare,
} from '@coracle/sys'
import { Net, type NetInit } from '../../../src/vmm/devices/net/net.js'
import { type DriverBuffer, TestTransport } from '../../vhost-user-ts/driver.js'

const MAC = '02:77:00:00:00:02'
const MRG_RXBUF = 1n << 15n
const GUEST_TSO4 = 1n << 7n
const GUEST_CSUM = 1n << 1n
const RECEIVE = 0
const TRANSMIT = 1

const header = (): Uint8Array => new Uint8Array(VNET_HEADER)
const frame = (length: number, seed = 0): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 7 + seed) & 0xff)
const behindHeader = (data: Uint8Array): Uint8Array => new Uint8Array([...header(), ...data])

/** A guest on one end of a pair of sockets, and the test on the other. */
class NetGuest extends TestTransport {
  readonly peer: Fd
  readonly #wire: Fd
  readonly log: string[]
  /** `TUN_F_*` as the device last asked for them. */
  readonly offloads: number[]

  constructor(features?: bigint, more: Partial<NetInit> = {}) {
    const [ours, theirs] = socketPair(SOCK_SEQPACKET)
    const log: string[] = []
    const offloads: number[] = []
    const wire = { fd: ours, name: 'pair', setOffload: (flags: number) => void offloads.push(flags) }
    const device = new Net({ name: 'eth0', mac: MAC, wire, log: (line) => log.push(line), ...more })
    super(device, features ?? device.features)
    this.peer = theirs
    this.#wire = ours
    this.log = log
    this.offloads = offloads
    for (const index of [RECEIVE, TRANSMIT]) this.notify(index)
  }

  /** The next frame that the guest sent, with its header. */
  sent(): Uint8Array | undefined {
    const bytes = new Uint8Array(70_000)
    const length = this.peer.read(bytes)
    return length > 0 ? bytes.slice(0, length) : undefined
  }

  /** Puts a frame on the wire, and lets the device look. */
  arrive(data: Uint8Array): void {
    this.peer.write(behindHeader(data))
    this.turn()
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]()
    this.peer.close()
    this.#wire.close()
  }
}

/** The frames that the driver got: of each, its bytes behind the header, and over how many buffers. */
function received(guest: NetGuest): { data: Uint8Array; buffers: number }[] {
  const frames: { data: Uint8Array; buffers: number }[] = []
  const parts = guest.queues[RECEIVE]!.results()
  while (parts.length > 0) {
    const first = parts.shift()!
    const buffers = first[10]! | (first[11]! << 8)
    const whole = [first, ...parts.splice(0, buffers - 1)]
    frames.push({ data: new Uint8Array(whole.flatMap((each) => [...each])).slice(VNET_HEADER), buffers })
  }
  return frames
}

function offer(guest: NetGuest, ...buffers: readonly DriverBuffer[][]): void {
  for (const each of buffers) guest.queues[RECEIVE]!.submit(each)
  guest.notify(RECEIVE)
}

void t.test('configuration', async (t) => {
  using guest = new NetGuest(undefined, { mtu: 1400 })
  const config = Buffer.from(guest.device.config)
  t.equal(config.toString('hex', 0, 6), MAC.replaceAll(':', ''))
  t.same([config.readUInt16LE(6), config.readUInt16LE(10)], [1, 1400], 'link up, MTU')
  t.equal(guest.device.features & (1n << 3n), 1n << 3n)
  t.same(guest.offloads, [0xf], 'the wire may leave undone what the driver takes')
  using plain = new NetGuest(0n)
  t.same(plain.offloads, [0])
  t.throws(() => new NetGuest(0n, { mac: '02:77:00:00:02' }), RangeError)
})

void t.test('transmit', async (t) => {
  using guest = new NetGuest()
  for (const indirect of [false, true]) {
    const data = frame(100, indirect ? 1 : 2)
    const answer = guest.request(TRANSMIT, [header(), data.subarray(0, 33), data.subarray(33)], indirect)
    t.equal(answer?.length, 0)
    t.same(guest.sent(), behindHeader(data))
  }
  guest.request(TRANSMIT, [new Uint8Array(0), behindHeader(frame(60)), 10])
  t.same(guest.sent(), behindHeader(frame(60)), 'empty and writable buffers are passed over')
  guest.request(TRANSMIT, [header(), frame(65_549)])
  t.equal(guest.sent()?.length, 65_561, 'a whole segment')
  guest.request(TRANSMIT, [header(), frame(65_555)])
  guest.request(TRANSMIT, [16])
  t.equal(guest.sent(), undefined)
  t.match(guest.log, [/dropped a frame of 65567 bytes/, /dropped a frame of 0 bytes/])
  t.same(guest.failures, [])
})

void t.test('a driver that sends more than the wire takes waits for it, and nothing is lost', async (t) => {
  using guest = new NetGuest()
  const queue = guest.queues[TRANSMIT]!
  let next = 0
  let got = 0
  const total = 2000
  const seen: number[] = []
  while (got < total) {
    for (let used = 0; next < total && next - got < 250 && used < 250; used++, next++)
      queue.submit([behindHeader(frame(1000, next))])
    guest.notify(TRANSMIT)
    for (let bytes = guest.sent(); bytes; bytes = guest.sent()) {
      seen.push(bytes[VNET_HEADER]!)
      got++
    }
    guest.turn()
    queue.results()
  }
  t.same(
    seen,
    Array.from({ length: total }, (_, i) => i & 0xff),
  )
  t.same(guest.failures, [])
})

void t.test('others have their turn', async (t) => {
  using guest = new NetGuest()
  for (let i = 0; i < 200; i++) guest.queues[TRANSMIT]!.submit([behindHeader(frame(60))])
  guest.notify(TRANSMIT)
  const first = guest.queues[TRANSMIT]!.results().length
  t.ok(first > 0 && first < 200)
  guest.turn()
  while (guest.sent());
  guest.turn()
  t.equal(first + guest.queues[TRANSMIT]!.results().length, 200)
})

void t.test('receive into one buffer each', async (t) => {
  using guest = new NetGuest(GUEST_CSUM)
  guest.arrive(frame(60, 1))
  t.same(received(guest), [], 'without a buffer it waits on the wire')
  offer(guest, [2000], [12, 1000, 1000])
  guest.arrive(frame(1500, 2))
  t.match(received(guest), [
    { data: frame(60, 1), buffers: 1 },
    { data: frame(1500, 2), buffers: 1 },
  ])
  offer(guest, [1000], [1000])
  guest.arrive(frame(1500))
  guest.arrive(frame(60, 3))
  t.match(received(guest), [{ data: frame(60, 3), buffers: 1 }], 'one that is too long is dropped, not cut')
  t.same(guest.failures, [])
  t.ok(guest.interrupts.includes(RECEIVE))
})

void t.test('receive into several buffers', async (t) => {
  using guest = new NetGuest(MRG_RXBUF | GUEST_TSO4)
  offer(guest, ...Array.from({ length: 60 }, () => [1536]))
  for (const [length, buffers] of [
    [60, 1],
    [1524, 1],
    [1525, 2],
    [9000, 6],
    [65_000, 43],
  ] as const) {
    guest.arrive(frame(length, length))
    t.match(received(guest), [{ data: frame(length, length), buffers }], `${length} bytes`)
    offer(guest, ...Array.from({ length: buffers }, () => [1536]))
  }
  t.same(guest.failures, [])
})

void t.test('a frame longer than the buffers at hand waits for more', async (t) => {
  using guest = new NetGuest(MRG_RXBUF)
  offer(guest, [100], [100])
  guest.arrive(frame(1000, 5))
  guest.arrive(frame(60, 6))
  t.same(received(guest), [])
  offer(guest, [300], [300])
  t.same(received(guest), [])
  offer(guest, [300], [300])
  t.match(received(guest), [
    { data: frame(1000, 5), buffers: 5 },
    { data: frame(60, 6), buffers: 1 },
  ])
  t.same(guest.failures, [])
})

void t.test('buffers of many pieces', async (t) => {
  using guest = new NetGuest(MRG_RXBUF, {})
  offer(guest, ...Array.from({ length: 8 }, () => Array.from({ length: 30 }, () => 20)))
  guest.arrive(frame(3000, 9))
  t.match(received(guest), [{ data: frame(3000, 9), buffers: 6 }])
  guest.arrive(frame(500, 1))
  t.match(received(guest), [{ data: frame(500, 1), buffers: 1 }])
  t.same(guest.failures, [])
})

void t.test('hostile drivers', async (t) => {
  for (const buffers of [[11], [new Uint8Array(100)], [0]] as DriverBuffer[][]) {
    using guest = new NetGuest()
    offer(guest, buffers)
    guest.arrive(frame(60))
    t.match(guest.failures, [{ code: 'DEVICE_REQUEST' }], 'no room for a header')
  }
  for (const index of [RECEIVE, TRANSMIT]) {
    using guest = new NetGuest()
    guest.queues[index]!.offer(256)
    guest.notify(index)
    t.match(guest.failures, [{ code: 'DESCRIPTOR_INDEX' }])
  }
  using guest = new NetGuest(undefined, {})
  const piece = fc.oneof(
    fc.nat(3000),
    fc.nat(40),
    fc.uint8Array({ maxLength: 40 }),
    fc.uint8Array({ minLength: 1000, maxLength: 2000 }),
  )
  fc.assert(
    fc.property(fc.array(piece, { minLength: 1, maxLength: 6 }), fc.boolean(), (parts, indirect) => {
      const readable = parts.filter((each) => typeof each !== 'number')
      const writable = parts.filter((each) => typeof each === 'number')
      guest.queues[TRANSMIT]!.submit([...readable, ...writable], indirect)
      guest.notify(TRANSMIT)
      guest.turn()
      guest.sent()
      return guest.queues[TRANSMIT]!.results().length === 1
    }),
    { numRuns: 300 },
  )
  t.same(guest.failures, [], 'any chain is sent or dropped')
})

void t.test('frames of any length arrive whole in buffers of any length', async () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 40, max: 3000 }), { minLength: 1, maxLength: 40 }),
      fc.array(fc.integer({ min: 1, max: 6000 }), { minLength: 1, maxLength: 10 }),
      (buffers, lengths) => {
        using guest = new NetGuest(MRG_RXBUF)
        lengths.forEach((length, i) => guest.peer.write(behindHeader(frame(length, i))))
        const got: Uint8Array[] = []
        for (let i = 0; got.length < lengths.length; i++) {
          offer(guest, [buffers[i % buffers.length]!])
          guest.turn()
          got.push(...received(guest).map(({ data }) => data))
        }
        return got.every((data, i) => Buffer.from(data).equals(frame(lengths[i]!, i)))
      },
    ),
    { numRuns: 60 },
  )
})

void t.test('what was held goes back for a snapshot, and it goes on', async (t) => {
  using guest = new NetGuest(MRG_RXBUF)
  offer(guest, [1000], [1000], [1000])
  guest.arrive(frame(60, 1))
  t.equal(received(guest).length, 1)
  t.equal(guest.device.save?.(), null)
  guest.arrive(frame(60, 2))
  t.match(received(guest), [{ data: frame(60, 2), buffers: 1 }])
  guest.device.restore?.(null)
  t.throws(() => guest.device.restore?.({}), /no state/)
})

void t.test('a wire that is gone is a cable unplugged', async (t) => {
  using guest = new NetGuest()
  offer(guest, [1000])
  guest.peer.close()
  guest.turn()
  t.equal(guest.configChanges, 1)
  t.equal(guest.device.config[6], 0)
  t.match(guest.log, [/net eth0: pair is gone/])
  guest.request(TRANSMIT, [header(), frame(60)])
  guest.turn()
  t.same(guest.failures, [])
})

void t.test('rates', async (t) => {
  const limits = {
    transmit: { operations: { perSecond: 100, burst: 5 } },
    receive: { bytes: { perSecond: 20_000, burst: 1000 } },
  }
  using guest = new NetGuest(MRG_RXBUF, { limits })
  for (let i = 0; i < 20; i++) guest.queues[TRANSMIT]!.submit([behindHeader(frame(60))])
  let began = performance.now()
  guest.notify(TRANSMIT)
  let sent = 0
  while (guest.sent()) sent++
  t.ok(sent >= 5 && sent < 15, `${sent} at once`)
  while (sent < 20) {
    guest.turn(1000)
    while (guest.sent()) sent++
  }
  t.ok(performance.now() - began >= 140, 'fifteen frames at a hundred a second')
  offer(guest, ...Array.from({ length: 10 }, () => [2000]))
  for (let i = 0; i < 5; i++) guest.peer.write(behindHeader(frame(988)))
  began = performance.now()
  let got = 0
  for (; got < 5; got += received(guest).length) guest.turn(1000)
  t.ok(performance.now() - began >= 145, 'three thousand bytes beyond the burst at twenty thousand a second')
})

const noTap = process.getuid?.() !== 0 ? 'needs root' : existsSync('/dev/net/tun') ? false : 'no /dev/net/tun'

void t.test('on a tap', { skip: noTap }, async (t) => {
  unshare(CLONE_NEWNET)
  const ip = (words: string): string => execFileSync('ip', words.split(' '), { encoding: 'utf8' })
  t.throws(() => Tap.open('tap0'), { code: 'ENODEV' })
  t.throws(() => Tap.open('a-name-that-is-too-long'), { code: 'ENODEV' })
  t.throws(() => createTap(''), { code: 'EINVAL' })
  createTap('tap0')
  t.throws(() => createTap('tap0'), { code: 'EBUSY' })
  ip('addr add 10.78.0.1/24 dev tap0')
  ip('link set tap0 up')
  ip('neigh add 10.78.0.2 lladdr 02:77:00:00:00:02 dev tap0')
  const tap = Tap.open('tap0')
  t.throws(() => Tap.open('tap0'), { code: 'EBUSY' })
  t.match(ip('link show tap0'), /LOWER_UP/)
  const adopted = Tap.adopt(tap.fd.duplicate())
  t.equal(adopted.name, 'tap0')
  adopted.close()
  t.throws(() => Tap.adopt(socketPair()[0]), { code: 'ENOTTY' })

  using guest = new TestTransport(new Net({ name: 'eth0', mac: MAC, wire: tap }))
  offer(guest as NetGuest, ...Array.from({ length: 40 }, () => [2000]))
  const socket = createSocket('udp4')
  t.teardown(() => socket.close())
  await new Promise<void>((resolve) => socket.bind(4000, '10.78.0.1', resolve))
  const datagram = frame(5000, 3)
  socket.send(datagram, 5001, '10.78.0.2')
  const ours: Uint8Array[] = []
  const mine = (data: Uint8Array): boolean => Buffer.from(data).readUInt16BE(12) === 0x800 && data[23] === 17
  for (let bytes = 0; bytes < 5008;) {
    await new Promise((resolve) => setImmediate(resolve))
    guest.turn(100)
    for (const { data } of received(guest as NetGuest).filter((each) => mine(each.data))) {
      ours.push(data.slice(34))
      bytes += data.length - 34
    }
  }
  const whole = Buffer.concat(ours)
  t.same([whole.readUInt16BE(0), whole.readUInt16BE(2)], [4000, 5001], 'fragments of one datagram')
  t.ok(whole.subarray(8).equals(datagram))

  // From the guest: the header asks the host to fill in the checksum (VIRTIO_NET_HDR_F_NEEDS_CSUM).
  const answer = new Promise<Buffer>((resolve) => socket.once('message', resolve))
  const packet = udp(Buffer.from('from the guest'))
  const request = header()
  request[0] = 1
  new DataView(request.buffer).setUint16(6, 34, true)
  new DataView(request.buffer).setUint16(8, 6, true)
  const destination = ip('link show tap0').match(/link\/ether ([0-9a-f:]+)/)![1]!
  packet.set(Buffer.from(destination.replaceAll(':', ''), 'hex'))
  guest.request(TRANSMIT, [request, packet])
  t.equal((await answer).toString(), 'from the guest')

  // Headers that promise what is not there, and any others: the kernel takes them or refuses them.
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 12, maxLength: 12 }),
      fc.uint8Array({ maxLength: 300 }),
      (random, data) => {
        guest.queues[TRANSMIT]!.submit([random, data])
        guest.notify(TRANSMIT)
        guest.turn()
        return guest.queues[TRANSMIT]!.results().length === 1
      },
    ),
    { numRuns: 300 },
  )
  t.same(guest.failures, [])

  ip('link del tap0')
  guest.turn(100)
  t.equal(guest.configChanges, 1, 'a tap that is deleted is a cable unplugged')
  t.equal(guest.turn(), undefined)
  guest.request(TRANSMIT, [header(), frame(60)])
  t.same(guest.failures, [])
  tap.close()

  createTap('tap1', 1234)
  t.match(ip('-d link show tap1'), /user 1234/)
  deleteTap('tap1')
  t.throws(() => ip('link show tap1'))
})

/** An Ethernet frame with a datagram from 10.78.0.2:5001 to 10.78.0.1:4000, whose checksum is left to the host. */
function udp(data: Buffer): Buffer {
  const bytes = Buffer.alloc(42 + data.length)
  bytes.set(Buffer.from(MAC.replaceAll(':', ''), 'hex'), 6)
  bytes.writeUInt16BE(0x800, 12)
  bytes.set([0x45, 0], 14)
  bytes.writeUInt16BE(28 + data.length, 16)
  bytes.set([64, 17], 22)
  bytes.set([10, 78, 0, 2, 10, 78, 0, 1], 26)
  const sum = (from: number, to: number, more = 0): number => {
    let total = more
    for (let at = from; at < to; at += 2) total += bytes.readUInt16BE(at)
    while (total > 0xffff) total = (total & 0xffff) + (total >>> 16)
    return total
  }
  bytes.writeUInt16BE(~sum(14, 34) & 0xffff, 24)
  bytes.writeUInt16BE(5001, 34)
  bytes.writeUInt16BE(4000, 36)
  bytes.writeUInt16BE(8 + data.length, 38)
  // The pseudo-header's sum stands in the field.
  bytes.writeUInt16BE(sum(26, 34, 17 + 8 + data.length), 40)
  data.copy(bytes, 42)
  return bytes
}
