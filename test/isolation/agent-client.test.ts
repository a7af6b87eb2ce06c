import type { Socket } from 'node:net'
import { Duplex, PassThrough } from 'node:stream'
import { setImmediate } from 'node:timers/promises'
import fc from 'fast-check'
import t from 'tap'
import { AgentClient } from '../../src/isolation/microvm/agent-client.js'
import * as protocol from '../../src/isolation/microvm/agent-protocol.js'
import {
  BodyReader,
  BodyWriter,
  FrameParser,
  encodeFrame,
} from '../../src/isolation/microvm/agent-protocol.js'
import { greet } from '../../src/isolation/microvm/greet.js'
import { CoracleError } from '../../src/errors.js'

const config = {
  ociVersion: '1.0.2',
  process: { user: { uid: 0, gid: 0 }, args: ['nope'], env: [], cwd: '/' },
}
const layers = [{ device: '/dev/vdb', type: 'erofs' }]

/** Both ends of a connection in memory. */
function pair(): [Duplex, Duplex] {
  const [there, back] = [new PassThrough(), new PassThrough()]
  return [Duplex.from({ readable: there, writable: back }), Duplex.from({ readable: back, writable: there })]
}

/** A guest that a test plays by hand. */
class Guest {
  readonly client: AgentClient
  readonly #end: Duplex
  readonly #frames: AsyncGenerator<protocol.Frame>

  constructor() {
    const [host, guest] = pair()
    this.#end = guest.on('error', () => undefined)
    this.client = new AgentClient(host)
    this.#frames = (async function* () {
      const parser = new LargeParser()
      for await (const chunk of guest) yield* parser.push(chunk as Buffer)
    })()
  }

  send(type: number, body = new BodyWriter(), request = 0): void {
    this.#end.write(encodeFrame({ type, flags: 0, request, body: body.end() }))
  }

  raw(bytes: Uint8Array): void {
    this.#end.write(bytes)
  }

  close(): void {
    this.#end.end()
  }

  hello(version = protocol.PROTOCOL_VERSION, state = 0): void {
    this.send(protocol.HELLO, new BodyWriter().u32(version).string('6.1.0').string('0.1.0').u32(state))
  }

  async request(): Promise<protocol.Frame> {
    return (await this.#frames.next()).value as protocol.Frame
  }
}

/** Requests may be longer than answers. */
class LargeParser {
  #held = Buffer.alloc(0)
  push(chunk: Buffer): protocol.Frame[] {
    this.#held = Buffer.concat([this.#held, chunk])
    const frames: protocol.Frame[] = []
    while (this.#held.length >= 12 && this.#held.length >= 12 + this.#held.readUInt32LE()) {
      const end = 12 + this.#held.readUInt32LE()
      const [type, flags] = [this.#held.readUInt16LE(4), this.#held.readUInt16LE(6)]
      frames.push({ type, flags, request: this.#held.readUInt32LE(8), body: this.#held.subarray(12, end) })
      this.#held = this.#held.subarray(end)
    }
    return frames
  }
}

const frame = fc.record({
  type: fc.nat(0xffff),
  flags: fc.nat(0xffff),
  request: fc.nat(0xffffffff),
  body: fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
})

t.test('frames survive any cutting of the stream', async () => {
  fc.assert(
    fc.property(
      fc.array(frame, { maxLength: 8 }),
      fc.array(fc.integer({ min: 1, max: 40 })),
      (frames, cuts) => {
        const bytes = Buffer.concat(frames.map(encodeFrame))
        const parser = new FrameParser()
        const seen: protocol.Frame[] = []
        for (let at = 0, turn = 0; at < bytes.length; turn++) {
          const size = cuts.length > 0 ? cuts[turn % cuts.length]! : bytes.length
          seen.push(...parser.push(bytes.subarray(at, at + size)))
          at += size
        }
        return (
          seen.length === frames.length &&
          seen.every((one, index) => encodeFrame(one).equals(encodeFrame(frames[index]!)))
        )
      },
    ),
  )
})

t.test('fields survive, and no bytes make the reader throw anything but GUEST_FAILED', async () => {
  fc.assert(
    fc.property(
      fc.nat(0xffffffff),
      fc.bigInt(0n, 2n ** 64n - 1n),
      fc.uint8Array(),
      (number, large, bytes) => {
        const reader = new BodyReader(new BodyWriter().u32(number).u64(large).bytes(bytes).end())
        const same = reader.u32() === number && reader.u64() === large && reader.bytes().equals(bytes)
        reader.end()
        return same
      },
    ),
  )
  const kind = fc.constantFrom('u32', 'u64', 'bytes', 'string', 'end')
  fc.assert(
    fc.property(fc.uint8Array(), fc.array(kind), (bytes, reads) => {
      const reader = new BodyReader(Buffer.from(bytes))
      try {
        for (const read of reads) reader[read]()
      } catch (error) {
        return error instanceof CoracleError && error.code === 'GUEST_FAILED'
      }
      return true
    }),
  )
})

t.test('a string for people cannot drive a terminal', async (t) => {
  const text = new BodyReader(new BodyWriter().string('a\u001b[2Jb\nc\u009bd').end()).string()
  t.equal(text, 'a\ufffd[2Jb\ufffdc\ufffdd')
  t.throws(() => new BodyWriter().string('a\0b'), RangeError)
})

t.test('any bytes from the guest end in a client that is well or has failed, never in a crash', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.boolean(),
      fc.array(fc.oneof(frame.map(encodeFrame), fc.uint8Array())),
      async (greet, chunks) => {
        const guest = new Guest()
        if (greet) guest.hello()
        for (const chunk of chunks) guest.raw(chunk)
        guest.close()
        const error = await guest.client.failed
        return error.code === 'GUEST_FAILED'
      },
    ),
    { numRuns: 50 },
  )
})

t.test('a run from hello to exit', async (t) => {
  const guest = new Guest()
  guest.hello()
  t.match(await guest.client.hello, { kernelRelease: '6.1.0', agentVersion: '0.1.0', state: 'empty' })
  const created = guest.client.create({ tty: false, stdin: true, config })
  const { type, request, body } = await guest.request()
  t.equal(type, protocol.CREATE)
  const tokens = tokensOf(body)
  const sockets = tokens.map((token) => {
    const [host, far] = pair()
    guest.client.acceptStream(host)
    const header = Buffer.alloc(4)
    header.writeUInt32LE(protocol.STREAM_MAGIC)
    // In two parts, with the first byte of output right behind.
    far.write(Buffer.concat([header, token.subarray(0, 3)]))
    far.write(Buffer.concat([token.subarray(3), Buffer.from('x')]))
    return far
  })
  guest.send(protocol.OK, undefined, request)
  const streams = await created
  t.equal(String((await streams.stdout.iterator().next()).value), 'x')
  streams.stdin!.write('input')
  t.equal(String((await sockets[0]!.iterator().next()).value), 'input')
  const started = guest.client.start()
  guest.send(protocol.OK, undefined, (await guest.request()).request)
  await started
  guest.send(protocol.EXIT, new BodyWriter().u32(7).u32(1))
  t.same(await guest.client.exited, { exitCode: 7, oomKilled: true })
  guest.client.destroy()
})

t.test('files of the root are read in pieces, up to a limit', async (t) => {
  const guest = new Guest()
  guest.hello()
  const mounted = guest.client.mount({ layers, upper: { tmpfs: '' } })
  guest.send(protocol.OK, undefined, (await guest.request()).request)
  await mounted
  const answer = async (...pieces: string[]): Promise<void> => {
    let offset = 0
    for (const piece of pieces) {
      const { type, request, body } = await guest.request()
      t.equal(type, protocol.READ)
      t.equal(body.readBigUInt64LE(body.length - 8), BigInt(offset))
      guest.send(protocol.DATA, new BodyWriter().bytes(Buffer.from(piece)), request)
      offset += piece.length
    }
  }
  const whole = guest.client.readFile('/etc/passwd', 100)
  await answer('root:', 'x:0', '')
  t.equal(await whole, 'root:x:0')
  const large = guest.client.readFile('/etc/passwd', 3)
  await answer('root')
  t.equal(await large, '')
  const absent = guest.client.readFile('/etc/group', 100)
  const { request } = await guest.request()
  guest.send(protocol.ERROR, new BodyWriter().u32(2).string('FILE').string('/etc/group'), request)
  t.equal(await absent, '')
  guest.client.destroy()
})

t.test('an interface is asked for field by field', async (t) => {
  const guest = new Guest()
  guest.hello()
  const set = guest.client.network({
    name: 'eth0',
    mac: '02:42:ac:11:00:02',
    addresses: ['172.17.0.2/16', 'fd00::2/64'],
    gateways: ['172.17.0.1'],
    mtu: 1450,
  })
  const { type, request, body } = await guest.request()
  t.equal(type, protocol.NETWORK)
  t.equal(body.toString('hex', 0, 6), '0242ac110002')
  const reader = new BodyReader(body.subarray(6))
  t.same([reader.string(), reader.u32(), reader.u32()], ['eth0', 1450, 2])
  t.same([reader.string(), reader.u32(), reader.string(), reader.u32()], ['172.17.0.2', 16, 'fd00::2', 64])
  t.same([reader.u32(), reader.string()], [1, '172.17.0.1'])
  reader.end()
  guest.send(
    protocol.ERROR,
    new BodyWriter().u32(19).string('NETWORK').string('eth0: No such device'),
    request,
  )
  await t.rejects(set, { code: 'SANDBOX_FAILED', message: 'in the guest: eth0: No such device' })
  const down = guest.client.networkDown('eth0')
  const second = await guest.request()
  t.equal(second.type, protocol.NETWORK_DOWN)
  guest.send(protocol.OK, undefined, second.request)
  await down
  guest.client.destroy()
})

t.test('devices are looked for, and let go of by their slot', async (t) => {
  const guest = new Guest()
  guest.hello()
  const rescan = guest.client.rescan()
  const first = await guest.request()
  t.equal(first.type, protocol.RESCAN)
  t.equal(first.body.length, 0)
  guest.send(protocol.OK, undefined, first.request)
  await rescan
  const gone = guest.client.unplug(5, 3)
  const second = await guest.request()
  t.equal(second.type, protocol.UNPLUG)
  t.equal(second.body.toString('hex'), '0500000003000000')
  guest.send(protocol.OK, undefined, second.request)
  await gone
  const refused = guest.client.unplug(6)
  const { request } = await guest.request()
  guest.send(
    protocol.ERROR,
    new BodyWriter().u32(2).string('DEVICE').string('no device in PCI slot 6'),
    request,
  )
  await t.rejects(refused, { code: 'SANDBOX_FAILED', message: 'in the guest: no device in PCI slot 6' })
  guest.client.destroy()
})

t.test('a share of the host is mounted by its tag', async (t) => {
  const guest = new Guest()
  guest.hello()
  const shared = guest.client.share('v0')
  const { type, body, request } = await guest.request()
  t.equal(type, protocol.SHARE)
  t.equal(body.toString('latin1'), '\x02\0\0\0v0')
  guest.send(protocol.OK, undefined, request)
  await shared
  guest.client.destroy()
})

t.test('errors of the agent become errors for the user', async (t) => {
  for (const [code, text, expected, message] of [
    [
      'NOT_FOUND',
      'executable file `nope` not found in $PATH: No such file or directory',
      'COMMAND_NOT_FOUND',
      'exec: "nope": executable file not found in $PATH',
    ],
    ['MOUNT', '/dev/vdb: No such device', 'SANDBOX_FAILED', 'in the guest: /dev/vdb: No such device'],
    ['STATE', 'CREATE', 'INTERNAL', /refused/],
  ] as const) {
    const guest = new Guest()
    guest.hello()
    const created = guest.client.create({ tty: true, stdin: false, config })
    const { request } = await guest.request()
    guest.send(protocol.ERROR, new BodyWriter().u32(2).string(code).string(text), request)
    await t.rejects(created, { code: expected, message })
    guest.client.destroy()
  }
})

t.test('what runs is told over a stream, which is bounded and hostile', async (t) => {
  const answer = async (bytes: Buffer): Promise<unknown> => {
    const guest = new Guest()
    guest.hello()
    const listed = guest.client.processes()
    const { type, request, body } = await guest.request()
    t.equal(type, protocol.PROCESSES)
    const [host, far] = pair()
    far.on('error', () => undefined)
    guest.client.acceptStream(host)
    const header = Buffer.alloc(4)
    header.writeUInt32LE(protocol.STREAM_MAGIC)
    far.end(Buffer.concat([header, body, bytes]))
    guest.send(protocol.OK, undefined, request)
    try {
      return await listed
    } finally {
      guest.client.destroy()
    }
  }
  const stat = (name: string): Buffer =>
    Buffer.from(`5 (${name}) R 4 5 5 0 -1 0 0 0 0 0 1 1 0 0 20 0 1 0 100 4096 1 ${'0 '.repeat(27)}\n`)
  const list = (end: boolean, ...stats: Buffer[]): Buffer => {
    const body = new BodyWriter().u64(2_000_000_000n).u64(1n << 27n)
    for (const each of stats) body.u32(1).u32(0).bytes(each).bytes(Buffer.from('a\0b\u001b\0'))
    return end ? body.u32(0).end() : body.end()
  }
  t.match(await answer(list(true, stat('x'), stat('y'))), {
    memory: 2 ** 27,
    processes: [{ pid: 1, parent: 0, name: 'x', args: ['a', 'b?'], time: 20_000_000 }, { name: 'y' }],
  })
  const strange = ['', 'x', '5 (a) R', `5 (a) R ${'9'.repeat(30)}`, '\0'.repeat(900)].map((text) =>
    Buffer.from(text),
  )
  t.match(await answer(list(true, ...strange)), { processes: [] })
  await t.rejects(answer(list(false, stat('x'))), { code: 'GUEST_FAILED' }, 'no end')
  await t.rejects(answer(Buffer.concat([list(true), Buffer.from('x')])), { code: 'GUEST_FAILED' })
  await t.rejects(answer(Buffer.alloc(300_000, 1)), { code: 'GUEST_FAILED', message: /too long/ })
})

t.test('what is against the protocol ends the connection', async (t) => {
  const hello = new BodyWriter().u32(1).string('').string('').u32(0).end()
  const cases: Record<string, (guest: Guest) => void> = {
    'an event before the hello': (guest) => guest.send(protocol.EXIT, new BodyWriter().u32(0).u32(0)),
    'a second hello': (guest) => {
      guest.hello()
      guest.hello()
    },
    'another version': (guest) => guest.hello(2),
    'an unknown state': (guest) => guest.hello(1, 9),
    'a reply to nothing': (guest) => {
      guest.hello()
      guest.send(protocol.OK, undefined, 77)
    },
    'a type nobody knows': (guest) => {
      guest.hello()
      guest.send(0x7777)
    },
    'a request': (guest) => {
      guest.hello()
      guest.send(protocol.START)
    },
    'a second exit': (guest) => {
      guest.hello()
      for (let turn = 0; turn < 2; turn++) guest.send(protocol.EXIT, new BodyWriter().u32(0).u32(0))
    },
    'an exit status of 256': (guest) => {
      guest.hello()
      guest.send(protocol.EXIT, new BodyWriter().u32(256).u32(0))
    },
    'a body too long': (guest) => guest.send(protocol.HELLO, new BodyWriter().fixed(hello).u32(0)),
    'a length beyond all bounds': (guest) => guest.raw(Buffer.from('ffffffff0140000000000000', 'hex')),
    'the end': (guest) => guest.close(),
  }
  for (const [name, act] of Object.entries(cases)) {
    const guest = new Guest()
    act(guest)
    t.equal((await guest.client.failed).code, 'GUEST_FAILED', name)
    await t.rejects(
      guest.client.exited.then(() => guest.client.start()),
      { code: 'GUEST_FAILED' },
      name,
    )
  }
})

t.test('a stream without a token that is waited for is dropped, and nothing else', async (t) => {
  const guest = new Guest()
  guest.hello()
  await guest.client.hello
  const strange = Array.from({ length: 20 }, () => pair())
  const ended = strange.map(async ([host]) => new Promise((resolve) => host.once('close', resolve)))
  for (const [host] of strange) guest.client.acceptStream(host)
  for (const [, far] of strange) far.on('error', () => undefined).end(Buffer.alloc(20))
  await Promise.all(ended)
  const synced = guest.client.sync()
  guest.send(protocol.OK, undefined, (await guest.request()).request)
  await synced
  t.pass('the control connection lives')
  guest.client.destroy()
})

/** The three tokens of a CREATE. */
function tokensOf(body: Buffer): Buffer[] {
  const reader = new BodyReader(body)
  reader.u32()
  const rest = body.subarray(body.length - reader.remaining)
  return [0, 1, 2].map((index) =>
    rest.subarray(index * protocol.TOKEN_SIZE, (index + 1) * protocol.TOKEN_SIZE),
  )
}

t.test(
  'a guest that gave up its first connection is greeted by the next, and by none after it',
  async (t) => {
    const handlers = new Map<number, (socket: Socket) => void>()
    const machine = {
      listen: (port: number, handler: (socket: Socket) => void) => void handlers.set(port, handler),
      start: () => undefined,
      work: () => performance.now(),
      exited: new Promise<never>(() => undefined),
    }
    const connect = (): Duplex => {
      const [host, guest] = pair()
      handlers.get(protocol.PORT_CONTROL)!(host.on('error', () => undefined) as Socket)
      return guest.on('error', () => undefined)
    }
    const hello = new BodyWriter().u32(protocol.PROTOCOL_VERSION).string('6.1.0').string('0.1.0').u32(0).end()
    const frame = encodeFrame({ type: protocol.HELLO, flags: 0, request: 0, body: hello })
    const greeted = greet(machine, (reason) => new Error(reason))
    connect().end()
    // Given up, and the host has not heard of it.
    connect()
    connect().write(frame)
    const agent = await greeted
    t.match(await agent.hello, { kernelRelease: '6.1.0' })
    const late = connect()
    await new Promise((resolve) => late.on('close', resolve).resume())
    agent.destroy()

    const broken = greet(machine, (reason) => new Error(reason))
    connect().write(Buffer.alloc(64, 0xff))
    await t.rejects(broken, { code: 'GUEST_FAILED' })
  },
)

t.test('a stream of one that goes on is expected also after the answer', async (t) => {
  const guest = new Guest()
  guest.hello(protocol.PROTOCOL_VERSION, 2)
  const attached = guest.client.reattach({
    tty: false,
    stdin: false,
    hostname: 'clone',
    machineId: '0'.repeat(32),
  })
  const { request, body } = await guest.request()
  // Behind the flags; the first is stdin's, which is not wanted.
  const token = body.subarray(4 + protocol.TOKEN_SIZE, 4 + 2 * protocol.TOKEN_SIZE)
  const connected = Buffer.alloc(4)
  connected.writeUInt32LE(protocol.REATTACHED_STDOUT)
  guest.send(protocol.DATA, new BodyWriter().bytes(connected), request)
  await setImmediate()
  const [host, far] = pair()
  guest.client.acceptStream(host)
  const header = Buffer.alloc(4)
  header.writeUInt32LE(protocol.STREAM_MAGIC)
  far.on('error', () => undefined).write(Buffer.concat([header, token, Buffer.from('on')]))
  const { stdout } = await attached
  t.equal(String((await stdout.iterator().next()).value), 'on')
  guest.client.destroy()
})

t.test('what is asked in the very turn in which the connection fails is refused', async (t) => {
  const guest = new Guest()
  guest.hello()
  await guest.client.hello
  const asked = guest.client.sync()
  guest.client.destroy()
  await t.rejects(asked, { code: 'GUEST_FAILED' })
})
