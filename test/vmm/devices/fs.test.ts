import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { Epoll, EPOLLIN, EventFd } from '@coracle/sys'
import { RING_FEATURES, VIRTIO_F_VERSION_1 } from 'vhost-user-ts'
import { openFs } from '../../../src/vmm/devices/fs/open.js'
import { Virtiofsd } from '../../../src/vmm/devices/fs/virtiofsd.js'
import type { DeviceHost } from '../../../src/vmm/device-thread/open-device.js'
import { DriverQueue, TestGuest } from '../../vhost-user-ts/driver.js'

/** linux/fuse.h */
const FUSE_LOOKUP = 1
const FUSE_MKDIR = 9
const FUSE_INIT = 26
const FUSE_KERNEL_VERSION = 7
const IN_HEADER = 40
const OUT_HEADER = 16

const folder = mkdtempSync(join(tmpdir(), 'coracle-fs-'))
t.teardown(() => rmSync(folder, { recursive: true }))

/** A guest's FUSE client, as small as can be. */
class Client implements Disposable {
  readonly #guest = new TestGuest()
  readonly #loop = new Epoll()
  readonly #queue: DriverQueue
  readonly #call = EventFd.create()
  readonly #kicks = [EventFd.create(), EventFd.create()]
  readonly #close: () => void
  readonly failures: Error[] = []
  #unique = 0

  constructor(socket: string) {
    const host = { memory: this.#guest.memory, log: () => undefined } as Partial<DeviceHost> as DeviceHost
    const open = openFs({ kind: 'fs', tag: 'shared', socket }, host)
    if (!('device' in open)) throw new Error('no virtio device')
    const { device } = open
    this.#close = () => open.close()
    const features = VIRTIO_F_VERSION_1
    const queues = device.queueSizes.map((size) => new DriverQueue(this.#guest, size, features))
    this.#queue = queues[1]!
    if ((device.ringFeatures! & ~RING_FEATURES) !== 0n) throw new Error('ring features of other kinds')
    device.activate({
      memory: this.#guest.memory,
      queues: queues.map((queue, i) => queue.device(i)),
      features,
      loop: this.#loop,
      interrupt: () => undefined,
      configChanged: () => undefined,
      handOver: (index) => ({ kick: this.#kicks[index]!, call: this.#call }),
      fail: (error) => this.failures.push(error),
    })
    this.#loop.add(this.#call.fd, EPOLLIN, () => this.#call.drain())
  }

  /** @returns the error, 0 or negative, and the answer's body */
  request(opcode: number, body: Uint8Array, node = 1): { error: number; body: DataView } {
    const header = new DataView(new ArrayBuffer(IN_HEADER))
    header.setUint32(0, IN_HEADER + body.length, true)
    header.setUint32(4, opcode, true)
    header.setBigUint64(8, BigInt(++this.#unique), true)
    header.setBigUint64(16, BigInt(node), true)
    this.#queue.submit([new Uint8Array(header.buffer), body, 4096])
    this.#kicks[1]!.signal()
    for (let tries = 0; tries < 20; tries++) {
      this.#loop.wait(1000)
      const [answer] = this.#queue.results()
      if (!answer) continue
      const view = new DataView(answer.buffer)
      return { error: view.getInt32(4, true), body: new DataView(answer.buffer, OUT_HEADER) }
    }
    throw new Error('no answer')
  }

  init(): number {
    const body = new Uint8Array(64)
    new Uint32Array(body.buffer).set([FUSE_KERNEL_VERSION, 38, 65536, 0])
    return this.request(FUSE_INIT, body).body.getUint32(0, true)
  }

  /** @returns the size of a file in the shared folder, or the error */
  size(name: string): number {
    const { error, body } = this.request(FUSE_LOOKUP, Buffer.from(`${name}\0`))
    // struct fuse_entry_out: the attributes from 40 on, of which the size is the second number.
    return error === 0 ? Number(body.getBigUint64(48, true)) : error
  }

  inode(name: string): number {
    return Number(this.request(FUSE_LOOKUP, Buffer.from(`${name}\0`)).body.getBigUint64(40, true))
  }

  mkdir(name: string): number {
    const modes = new Uint8Array(new Uint32Array([0o755, 0]).buffer)
    return this.request(FUSE_MKDIR, Buffer.concat([modes, Buffer.from(`${name}\0`)])).error
  }

  [Symbol.dispose](): void {
    this.#close()
    this.#loop.close()
    this.#guest[Symbol.dispose]()
    for (const each of [this.#call, ...this.#kicks]) each.close()
  }
}

function shared(name: string): string {
  const path = join(folder, name)
  mkdirSync(path)
  writeFileSync(join(path, 'hello'), 'from the host')
  return path
}

void t.test('a folder of the host is shared by virtiofsd', { skip: process.getuid?.() !== 0 }, async (t) => {
  const path = shared('both')
  await using daemon = await Virtiofsd.start({ folder: path, socket: join(folder, 'a') })
  {
    using client = new Client(daemon.socket)
    t.equal(client.init(), FUSE_KERNEL_VERSION)
    t.equal(client.size('hello'), 13)
    writeFileSync(join(path, 'later'), 'four')
    t.equal(client.size('later'), 4, "the guest sees the host's")
    t.equal(client.mkdir('guest'), 0)
    t.equal(existsSync(join(path, 'guest')), true, "and the host the guest's")
    t.equal(client.inode('..'), statSync(path).ino, 'there is no way out')
    t.same(client.failures, [])
  }
  await daemon.exited
  t.pass('it ends with its guest')
})

void t.test('read-only', { skip: process.getuid?.() !== 0 }, async (t) => {
  const path = shared('ro')
  await using daemon = await Virtiofsd.start({ folder: path, socket: join(folder, 'b'), readOnly: true })
  using client = new Client(daemon.socket)
  client.init()
  t.equal(client.size('hello'), 13)
  t.equal(client.mkdir('guest'), -30, 'EROFS')
  t.equal(readFileSync(join(path, 'hello'), 'latin1'), 'from the host')
})

void t.test('what cannot be shared', async (t) => {
  const file = join(folder, 'file')
  writeFileSync(file, '')
  await t.rejects(Virtiofsd.start({ folder: file, socket: join(folder, 'c') }), { code: 'INVALID_ARGUMENT' })
  await t.rejects(Virtiofsd.start({ folder, socket: join(folder, 'no/such/folder') }), { code: 'HOST_TOOL' })
  using guest = new TestGuest()
  const host = { memory: guest.memory, log: () => undefined } as Partial<DeviceHost> as DeviceHost
  const open = (tag: string, memory = guest.memory): unknown =>
    openFs({ kind: 'fs', tag, socket: join(folder, 'nobody') }, { ...host, memory })
  t.throws(() => open('x'.repeat(37)), { code: 'INVALID_ARGUMENT' })
  t.throws(() => open('x'), { code: 'INVALID_ARGUMENT', message: /ENOENT/ })
  const { GuestMemory } = await import('vhost-user-ts')
  const { file: _, ...region } = guest.region
  t.throws(() => open('x', new GuestMemory([region])), { code: 'CONFLICT' }, 'private memory')
})
