import fc from 'fast-check'
import t from 'tap'
import { Fd, SHUT_WR, SysError, shutdown } from '@coracle/sys'
import { BUFFER_SIZE } from '../../../src/vmm/devices/vsock/connection.js'
import {
  HEADER_SIZE,
  VIRTIO_VSOCK_OP_CREDIT_REQUEST as CREDIT_REQUEST,
  VIRTIO_VSOCK_OP_CREDIT_UPDATE as CREDIT_UPDATE,
  VIRTIO_VSOCK_OP_REQUEST as REQUEST,
  VIRTIO_VSOCK_OP_RESPONSE as RESPONSE,
  VIRTIO_VSOCK_OP_RST as RST,
  VIRTIO_VSOCK_OP_RW as RW,
  VIRTIO_VSOCK_OP_SHUTDOWN as SHUTDOWN,
} from '../../../src/vmm/devices/vsock/packet.js'
import { Vsock } from '../../../src/vmm/devices/vsock/vsock.js'
import { TestTransport } from '../../vhost-user-ts/driver.js'

const CID = 7
const RX = 0
const TX = 1

interface Packet {
  op: number
  host: number
  guest: number
  data?: Uint8Array
  flags?: number
  buffer?: number
  forwarded?: number
  cid?: number
  to?: number
  type?: number
  length?: number
}

/** The guest's vsock driver, by hand. */
class Guest extends TestTransport {
  readonly vsock: Vsock
  readonly accepted: Fd[] = []
  constructor(vsock = new Vsock({ cid: CID, maxConnections: 20 }), memory?: number) {
    super(vsock, 0n, memory)
    this.vsock = vsock
    vsock.listen(1024, (fd) => this.accepted.push(fd))
  }

  /** Offers receive buffers. */
  offer(count: number, size = 4096): this {
    for (let i = 0; i < count; i++) this.queues[RX]!.submit([HEADER_SIZE, size], true)
    this.notify(RX)
    return this
  }

  packet(packet: Packet): Uint8Array {
    const { op, host, guest, data = new Uint8Array(), flags = 0, buffer = 65536, forwarded = 0 } = packet
    const header = new DataView(new ArrayBuffer(HEADER_SIZE))
    header.setBigUint64(0, BigInt(packet.cid ?? CID), true)
    header.setBigUint64(8, BigInt(packet.to ?? 2), true)
    header.setUint32(16, guest, true)
    header.setUint32(20, host, true)
    header.setUint32(24, packet.length ?? data.length, true)
    header.setUint16(28, packet.type ?? 1, true)
    header.setUint16(30, op, true)
    header.setUint32(32, flags, true)
    header.setUint32(36, buffer, true)
    header.setUint32(40, forwarded, true)
    return new Uint8Array(header.buffer)
  }

  send(packet: Packet): Packet[] {
    const header = this.packet(packet)
    this.queues[TX]!.submit(packet.data ? [header, packet.data] : [header])
    this.notify(TX)
    this.queues[TX]!.results()
    return this.receive()
  }

  receive(): Packet[] {
    return this.queues[RX]!.results().map((bytes) => {
      const view = new DataView(bytes.buffer)
      const length = view.getUint32(24, true)
      if (length !== bytes.length - HEADER_SIZE) throw new Error('length')
      if (view.getUint32(0, true) !== 2 || view.getUint32(8, true) !== CID) throw new Error('cid')
      return {
        op: view.getUint16(30, true),
        host: view.getUint32(16, true),
        guest: view.getUint32(20, true),
        flags: view.getUint32(32, true),
        buffer: view.getUint32(36, true),
        forwarded: view.getUint32(40, true),
        ...(length > 0 ? { data: bytes.subarray(HEADER_SIZE) } : {}),
      }
    })
  }

  open(guest = 5000): Fd {
    const answers = this.send({ op: REQUEST, host: 1024, guest })
    if (answers[0]?.op !== RESPONSE) throw new Error('refused')
    return this.accepted.pop()!
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]()
    this.accepted.forEach((fd) => fd.close())
  }
}

const text = (value: string): Uint8Array => new TextEncoder().encode(value)
const read = (fd: Fd, length = 4096): string | number => {
  const into = new Uint8Array(length)
  const got = fd.read(into)
  return got > 0 ? Buffer.from(into.subarray(0, got)).toString() : got
}
const ops = (packets: Packet[]): number[] => packets.map((each) => each.op)

void t.test('a connection of the guest', async (t) => {
  using guest = new Guest()
  guest.offer(16)
  using fd = guest.open()
  const link = { host: 1024, guest: 5000 }

  t.same(guest.send({ ...link, op: RW, data: text('to the host') }), [])
  t.equal(read(fd), 'to the host')

  fd.write(text('to the guest'))
  guest.turn()
  const [packet, ...more] = guest.receive()
  t.match(packet, { op: RW, ...link, buffer: BUFFER_SIZE, forwarded: 11 })
  t.same(packet?.data, text('to the guest'))
  t.same(more, [])

  t.same(ops(guest.send({ ...link, op: CREDIT_REQUEST })), [CREDIT_UPDATE])

  t.same(guest.send({ ...link, op: SHUTDOWN, flags: 2 }), [])
  t.equal(read(fd), 0, 'the guest writes no more')
  fd.write(text('still'))
  guest.turn()
  t.same(guest.receive()[0]?.data, text('still'), 'the other direction goes on')

  t.same(ops(guest.send({ ...link, op: SHUTDOWN, flags: 3 })), [RST])
  t.equal(guest.vsock.connections, 0)
  t.same(guest.failures, [])
  t.throws(() => fd.write(text('x')), SysError)
})

void t.test('half-close by the host', async (t) => {
  using guest = new Guest()
  guest.offer(16)
  const fd = guest.open()
  const link = { host: 1024, guest: 5000 }
  fd.write(text('last words'))
  shutdown(fd, SHUT_WR)
  guest.turn()
  const packets = guest.receive()
  t.same(ops(packets), [RW, SHUTDOWN])
  t.equal(packets[1]?.flags, 2)
  guest.send({ ...link, op: RW, data: text('answer') })
  t.equal(read(fd), 'answer')
  fd.close()
  guest.turn()
  t.match(guest.receive(), [{ op: SHUTDOWN, flags: 3 }])
  t.same(guest.send({ ...link, op: RW, data: text('to nobody') }), [], 'dropped')
  t.same(guest.send({ ...link, op: RST }), [])
  t.equal(guest.vsock.connections, 0)
  guest.turn()
  t.same(guest.failures, [])
})

void t.test('who is refused', async (t) => {
  using guest = new Guest()
  guest.offer(64)
  const link = { host: 1024, guest: 5000 }
  t.match(guest.send({ op: REQUEST, host: 99, guest: 5000 }), [{ op: RST, host: 99, guest: 5000 }])
  for (const op of [RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 0, 8, 65535])
    t.match(guest.send({ ...link, op }), [{ op: RST }], `operation ${op} without a connection`)
  t.same(guest.send({ ...link, op: RST }), [], 'an RST gets no answer')
  t.match(guest.send({ ...link, op: REQUEST, type: 2 }), [{ op: RST }], 'not a stream')
  t.same(guest.send({ ...link, op: REQUEST, cid: 8 }), [], "another's context id")
  t.same(guest.send({ ...link, op: REQUEST, to: 9 }), [], 'not for the host')

  using _fd = guest.open()
  t.match(guest.send({ ...link, op: REQUEST }), [{ op: RST }], 'a second connection of the same ports')
  t.equal(guest.vsock.connections, 0)

  for (let i = 0; i < 20; i++) guest.open(6000 + i)
  t.match(guest.send({ ...link, op: REQUEST }), [{ op: RST }], 'too many')
  guest.vsock.unlisten(1024)
  t.match(guest.send({ ...link, op: REQUEST }), [{ op: RST }], 'nobody listens any more')
  t.same(guest.failures, [])
})

void t.test('refusals without receive buffers wait, and are bounded', async (t) => {
  using guest = new Guest()
  for (let i = 0; i < 200; i++) {
    guest.queues[TX]!.submit([guest.packet({ op: REQUEST, host: 9, guest: i })])
    guest.notify(TX)
  }
  const taken = guest.queues[TX]!.results().length
  t.equal(taken, 128, 'then the guest has to wait')
  guest.offer(256)
  guest.turn()
  t.equal(taken + guest.queues[TX]!.results().length, 200)
  t.equal(guest.receive().length, 200)
})

void t.test('credit towards the guest', async (t) => {
  using guest = new Guest()
  guest.offer(32)
  guest.send({ op: REQUEST, host: 1024, guest: 1, buffer: 10 })
  using fd = guest.accepted.pop()!
  guest.receive()
  fd.write(text('0123456789abcdef'))
  guest.turn()
  t.same(guest.receive()[0]?.data, text('0123456789'))
  t.equal(guest.loop.wait(0), 0, 'it does not spin')
  const [packet] = guest.send({ op: CREDIT_UPDATE, host: 1024, guest: 1, buffer: 10, forwarded: 6 })
  t.same(packet?.data, text('abcdef'))
  shutdown(fd, SHUT_WR)
  guest.turn()
  t.same(ops(guest.receive()), [], 'the end of input is not known without reading')
  t.same(ops(guest.send({ op: CREDIT_UPDATE, host: 1024, guest: 1, buffer: 10, forwarded: 16 })), [SHUTDOWN])
})

void t.test('without receive buffers bytes stay in the socket', async (t) => {
  using guest = new Guest()
  guest.offer(1)
  using fd = guest.open()
  fd.write(text('hello'))
  guest.turn()
  t.equal(guest.loop.wait(0), 0, 'it does not spin')
  t.same(guest.receive(), [])
  guest.offer(1, 3).offer(1, 3)
  t.same(
    guest.receive().map((each) => each.data),
    [text('hel'), text('lo')],
  )
})

void t.test('a slow reader fills its credit, no more', async (t) => {
  using guest = new Guest(undefined, 64 << 20)
  guest.offer(64)
  using fd = guest.open()
  const link = { host: 1024, guest: 5000 }
  let sent = 0
  let free = BUFFER_SIZE
  const block = new Uint8Array(4096).map((_, i) => i * 7)
  const credit = (packets: Packet[]): void => {
    for (const each of packets) free = BUFFER_SIZE - (sent - each.forwarded!)
  }
  do {
    while (free >= block.length) {
      sent += block.length
      free -= block.length
      credit(guest.send({ ...link, op: RW, data: block }))
    }
    credit(guest.send({ ...link, op: CREDIT_REQUEST }))
  } while (free >= block.length && sent < 4 << 20)
  t.ok(free < block.length, 'the buffer is full')
  t.ok(sent < BUFFER_SIZE + (1 << 20), 'and what the socket took is the rest')
  let got = 0
  let right = true
  const into = new Uint8Array(10_000)
  for (let n = fd.read(into); n > 0 || got < sent; n = fd.read(into)) {
    for (let i = 0; i < n; i++) right &&= into[i] === block[(got + i) % 4096]
    got += Math.max(n, 0)
    guest.turn()
  }
  t.equal(got, sent)
  t.ok(right, 'every byte in its place')
  t.ok(
    guest.receive().some((each) => each.op === CREDIT_UPDATE),
    'the guest learns of the space',
  )
  t.same(guest.failures, [])
})

void t.test('a guest that ignores its credit loses the connection', async (t) => {
  using guest = new Guest(undefined, 64 << 20)
  guest.offer(64)
  using _fd = guest.open()
  const seen: number[] = []
  for (let i = 0; i < 300 && guest.vsock.connections > 0; i++)
    seen.push(...ops(guest.send({ host: 1024, guest: 5000, op: RW, data: new Uint8Array(8192) })))
  t.equal(guest.vsock.connections, 0)
  t.ok(seen.includes(RST))
  t.same(guest.failures, [], 'the device goes on')
})

void t.test('what the guest sent before it closed arrives, however slow the reader', async (t) => {
  for (const end of [{ op: SHUTDOWN, flags: 3 }, { op: RST }]) {
    using guest = new Guest(undefined, 64 << 20)
    guest.offer(64)
    using fd = guest.open()
    const link = { host: 1024, guest: 5000 }
    for (let i = 0; i < 96; i++) guest.send({ ...link, op: RW, data: new Uint8Array(4096).fill(i) })
    guest.send({ ...link, ...end })
    t.equal(guest.vsock.connections, 1)
    let got = 0
    const into = new Uint8Array(4096)
    for (let n = fd.read(into); n !== 0; n = fd.read(into)) {
      got += Math.max(n, 0)
      guest.turn()
    }
    t.equal(got, 96 * 4096)
    t.equal(guest.vsock.connections, 0)
    t.same(ops(guest.receive()).filter((op) => op === RST).length, end.op === RST ? 0 : 1)
  }
})

void t.test('a packet that lies about its length (CVE-2019-18960) stops the device', async (t) => {
  using guest = new Guest()
  guest.offer(4)
  using _fd = guest.open()
  guest.send({ host: 1024, guest: 5000, op: RW, data: text('short'), length: 65536 })
  t.match(guest.failures, [{ code: 'DEVICE_REQUEST' }])
})

void t.test('buffers too small for a header stop the device', async (t) => {
  using short = new Guest()
  short.queues[TX]!.submit([new Uint8Array(43)])
  short.notify(TX)
  t.match(short.failures, [{ code: 'CHAIN_SHORT' }])
  using small = new Guest()
  small.queues[RX]!.submit([43])
  small.send({ op: REQUEST, host: 1, guest: 1 })
  t.match(small.failures, [{ code: 'CHAIN_SHORT' }])
  using bare = new Guest()
  bare.offer(1)
  using fd = bare.open()
  bare.queues[RX]!.submit([44])
  fd.write(text('x'))
  bare.turn()
  t.match(bare.failures, [{ code: 'DEVICE_REQUEST' }])
})

void t.test('connections of the host', async (t) => {
  using guest = new Guest()
  guest.offer(16)
  const got: (Fd | undefined)[] = []
  guest.vsock.connect(80, (fd) => got.push(fd))
  guest.vsock.connect(81, (fd) => got.push(fd))
  guest.vsock.connect(82, (fd) => got.push(fd))
  const [first, second, third] = guest.receive()
  t.match(
    [first, second],
    [
      { op: REQUEST, guest: 80 },
      { op: REQUEST, guest: 81 },
    ],
  )
  guest.send({ op: RESPONSE, host: first!.host, guest: 80 })
  guest.send({ op: RST, host: second!.host, guest: 81 })
  t.match(guest.send({ op: RW, host: third!.host, guest: 82, data: text('early') }), [{ op: RST }])
  using fd = got[0]!
  t.same(got.slice(1), [undefined, undefined])
  guest.send({ op: RW, host: first!.host, guest: 80, data: text('served') })
  t.equal(read(fd), 'served')
  t.equal(guest.vsock.connections, 1)
})

void t.test('resets', async (t) => {
  const guest = new Guest()
  guest.offer(4)
  using fd = guest.open()
  guest.queues[2]!.submit([8])
  guest.vsock.transportReset()
  t.same(guest.queues[2]!.results(), [new Uint8Array(4)])
  t.equal(read(fd), 0)
  t.equal(guest.vsock.connections, 0)
  guest.vsock.transportReset()
  const events = guest.queues[2]!
  t.equal(
    guest.guest.memory.readU16(events.usedRing + 4 + events.size * 8),
    1,
    'without a buffer it asks for the doorbell',
  )
  events.submit([8])
  guest.notify(2)
  t.same(events.results(), [new Uint8Array(4)])
  const got: unknown[] = []
  guest.vsock.connect(80, (each) => got.push(each))
  guest[Symbol.dispose]()
  t.same(got, [undefined])
  guest.vsock.connect(80, (each) => got.push(each))
  t.same(got, [undefined, undefined], 'no driver')
})

void t.test('any packets in any order: no crash, no leak, the device lives on', async (t) => {
  const step = fc.oneof(
    fc.record({
      kind: fc.constant('send' as const),
      op: fc.oneof({ weight: 9, arbitrary: fc.nat(8) }, fc.nat(65535)),
      guest: fc.nat(3),
      host: fc.constantFrom(1024, 1024, 1024, 9),
      flags: fc.nat(3),
      buffer: fc.constantFrom(0, 10, 65536, 0xffff_ffff),
      forwarded: fc.constantFrom(0, 5, 0xffff_ffff),
      length: fc.nat(3000),
    }),
    fc.record({ kind: fc.constantFrom('write', 'read', 'end', 'close'), which: fc.nat(3) }),
    fc.record({
      kind: fc.constant('offer' as const),
      count: fc.nat(4),
      size: fc.integer({ min: 1, max: 5000 }),
    }),
  )
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      using guest = new Guest()
      for (const each of steps) {
        if (each.kind === 'offer') guest.offer(each.count, each.size)
        else if (each.kind === 'send') {
          const { op, guest: port, host, flags, buffer, forwarded } = each
          const data = op === RW ? { data: new Uint8Array(each.length) } : {}
          guest.send({ op, guest: port, host, flags, buffer, forwarded, ...data })
        } else {
          const fd = guest.accepted[each.which]
          if (!fd || fd.closed) continue
          try {
            if (each.kind === 'write') fd.write(new Uint8Array(5000))
            else if (each.kind === 'read') read(fd)
            else if (each.kind === 'end') shutdown(fd, SHUT_WR)
            else fd.close()
          } catch (error) {
            if (!(error instanceof SysError)) throw error
          }
        }
        guest.turn()
        guest.receive()
        if (guest.loop.wait(0) !== 0 && guest.loop.wait(0) !== 0) throw new Error('it spins')
      }
      if (guest.failures.length > 0) throw guest.failures[0]!
      guest.vsock.reset()
      if (guest.vsock.connections !== 0) throw new Error('connections leak')
    }),
    { numRuns: 400 },
  )
  t.pass('none')
})
