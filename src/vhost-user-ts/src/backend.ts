import { type Epoll, EPOLLIN, type Fd } from '@coracle/sys'
import type { VirtioDevice } from './device.js'
import * as m from './message.js'
import { MAX_FDS, type Message, MessageReader, VhostUserError, sendMessage } from './message.js'
import { SharedMemory, type SharedRegion } from './shared-memory.js'
import { VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1 } from './virtqueue.js'
import { Vring } from './vring.js'

const PROTOCOL_FEATURES =
  m.VHOST_USER_PROTOCOL_F_MQ |
  m.VHOST_USER_PROTOCOL_F_REPLY_ACK |
  m.VHOST_USER_PROTOCOL_F_BACKEND_REQ |
  m.VHOST_USER_PROTOCOL_F_CONFIG

export interface BackendOptions {
  /** Hears why a device or a connection came to its end. */
  readonly log?: (message: string) => void
  /** The connection is over, in order or not: everything of it is released. */
  readonly closed?: (reason: Error | undefined) => void
}

/**
 * The backend's end of one vhost-user connection: it serves one device to one frontend.
 *
 * - `setup`: features, memory and rings come in; rings may be started but the device does not run.
 * - `running`: the device is active on the rings that were ready. Features, sizes and addresses are fixed.
 * - `failed`: the driver broke a rule, or the device did. It rests until the frontend stops the rings.
 * - `closed`
 *
 * From `setup` to `running`: once every started ring is enabled, or when the first doorbell rings (a frontend that
 * negotiated no protocol features enables rings by starting them, one by one). From `running` back: a ring is stopped
 * (VHOST_USER_GET_VRING_BASE), disabled, or the memory table changes; the device then starts again where it was, and
 * has lost what its `reset` loses.
 */
export class BackendConnection implements Disposable {
  readonly #device: VirtioDevice
  readonly #fd: Fd
  readonly #loop: Epoll
  readonly #options: BackendOptions
  readonly #reader: MessageReader
  readonly #rings: Vring[]
  #state: 'setup' | 'running' | 'failed' | 'closed' = 'setup'
  #features: bigint | undefined
  #protocolFeatures = 0n
  #shared: SharedMemory | undefined
  #requests: Fd | undefined

  /** @param fd a connected Unix stream socket, non-blocking; becomes ours */
  constructor(device: VirtioDevice, fd: Fd, loop: Epoll, options: BackendOptions = {}) {
    this.#device = device
    this.#fd = fd
    this.#loop = loop
    this.#options = options
    this.#reader = new MessageReader(fd)
    this.#rings = device.queueSizes.map((_, i) => new Vring(i, loop))
    loop.add(fd, EPOLLIN, () => this.#receive())
  }

  get state(): 'setup' | 'running' | 'failed' | 'closed' {
    return this.#state
  }

  /** Ends the connection. */
  [Symbol.dispose](): void {
    this.#close()
  }

  #receive(): void {
    try {
      for (;;) {
        const message = this.#reader.next()
        if (message === undefined) return
        if (message === 'end') return this.#close()
        this.#handle(message)
        if (this.#state === 'closed') return
      }
    } catch (error) {
      this.#options.log?.(`${this.#device.name}: vhost-user connection closed: ${(error as Error).message}`)
      this.#close(error as Error)
    }
  }

  #handle(message: Message): void {
    const { request, payload, fds, needReply } = message
    const acknowledge = needReply && (this.#protocolFeatures & m.VHOST_USER_PROTOCOL_F_REPLY_ACK) !== 0n
    try {
      const handler = HANDLERS[request]
      if (!handler) {
        // Who asks for an answer can live without; who does not would never know.
        if (!acknowledge) throw new VhostUserError(`unknown request ${request}`)
        return this.#reply(request, number(1n))
      }
      if (payload.byteLength < handler.size)
        throw new VhostUserError(`${handler.name}: a payload of ${payload.byteLength} bytes`)
      if (fds.length > handler.fds) throw new VhostUserError(`${handler.name}: ${fds.length} descriptors`)
      const reply = handler.run.call(this, payload, fds)
      if (reply instanceof Uint8Array) this.#reply(request, reply)
      else if (acknowledge) this.#reply(request, number(0n))
      if (handler.starts === true) this.#start(false)
    } finally {
      // A handler takes those it keeps out of the list.
      for (const fd of fds) fd.close()
    }
  }

  #reply(request: number, payload: Uint8Array): void {
    sendMessage(this.#fd, request, payload, true)
  }

  get #offered(): bigint {
    return (
      this.#device.features |
      VIRTIO_F_VERSION_1 |
      VIRTIO_F_INDIRECT_DESC |
      VIRTIO_F_EVENT_IDX |
      m.VHOST_USER_F_PROTOCOL_FEATURES
    )
  }

  getFeatures(): Uint8Array {
    return number(this.#offered)
  }

  setFeatures(features: bigint): void {
    if (this.#state === 'running') throw new VhostUserError('features change while the device runs')
    if ((features & ~this.#offered) !== 0n)
      throw new VhostUserError(`features 0x${features.toString(16)} that were not offered`)
    this.#features = features
    // vhost-user.rst, "Ring states": without protocol features rings need no enabling.
    if ((features & m.VHOST_USER_F_PROTOCOL_FEATURES) === 0n)
      for (const ring of this.#rings) ring.enabled = true
  }

  getProtocolFeatures(): Uint8Array {
    return number(PROTOCOL_FEATURES)
  }

  setProtocolFeatures(features: bigint): void {
    if ((features & ~PROTOCOL_FEATURES) !== 0n)
      throw new VhostUserError(`protocol features 0x${features.toString(16)} that were not offered`)
    this.#protocolFeatures = features
  }

  getQueueNum(): Uint8Array {
    return number(BigInt(this.#rings.length))
  }

  setMemoryTable(regions: readonly SharedRegion[]): void {
    this.#pause()
    // First the new one: what is wrong with it must not cost us the old.
    const shared = new SharedMemory(regions)
    this.#shared?.[Symbol.dispose]()
    this.#shared = shared
  }

  /** The ring that a message names; `idle` where it may not be changed while it runs. @throws VhostUserError */
  ring(index: number, idle: boolean): Vring {
    const ring = this.#rings[index]
    if (!ring) throw new VhostUserError(`ring ${index} of ${this.#rings.length}`)
    if (idle && ring.queue) throw new VhostUserError(`ring ${index} changes while it runs`)
    return ring
  }

  startRing(index: number, kick: Fd | undefined): void {
    const ring = this.ring(index, false)
    if (!kick) throw new VhostUserError(`ring ${index} has no doorbell: polling is not supported`)
    ring.start(kick, () => this.#rung(index))
  }

  /** @returns where the ring was */
  stopRing(index: number): number {
    this.#pause()
    const ring = this.ring(index, false)
    ring.stop()
    if ((this.#features ?? 0n) & m.VHOST_USER_F_PROTOCOL_FEATURES) ring.enabled = false
    if (this.#state === 'failed' && this.#rings.every((each) => !each.started)) this.#state = 'setup'
    return ring.base
  }

  enableRing(index: number, enabled: boolean): void {
    const ring = this.ring(index, false)
    if (ring.enabled === enabled) return
    // A running device knows only the rings that it was activated with.
    this.#pause()
    ring.enabled = enabled
  }

  setRequestChannel(fd: Fd): void {
    this.#requests?.close()
    this.#requests = fd
    fd.setNonBlocking()
  }

  /** @returns `size` bytes of the configuration space; zeroes where a newer frontend knows more fields than the device */
  getConfig(offset: number, size: number): Uint8Array {
    const reply = new Uint8Array(size)
    reply.set(this.#device.config.subarray(offset, offset + size))
    return reply
  }

  setConfig(offset: number, data: Uint8Array): void {
    if (offset + data.length > this.#device.config.length)
      throw new VhostUserError(`configuration write of ${data.length} bytes at ${offset}`)
    this.#device.writeConfig?.(offset, data)
  }

  /** Runs the device if what it needs is there. @param rung a doorbell rang: no more rings are to be waited for */
  #start(rung: boolean): void {
    const shared = this.#shared
    const features = this.#features
    if (this.#state !== 'setup' || !shared || features === undefined) return
    const started = this.#rings.filter((ring) => ring.started)
    const explicit = (features & m.VHOST_USER_F_PROTOCOL_FEATURES) !== 0n
    const complete = rung || (explicit && started.every((ring) => ring.ready))
    if (!complete || !started.some((ring) => ring.ready)) return
    this.#state = 'running'
    this.#attempt(() => {
      const sizes = this.#device.queueSizes
      const queues = this.#rings.map((ring, i) =>
        ring.ready ? ring.makeQueue(shared, sizes[i]!, features) : undefined,
      )
      this.#device.activate({
        memory: shared.memory,
        queues,
        features: features & ~m.VHOST_USER_F_PROTOCOL_FEATURES,
        loop: this.#loop,
        interrupt: (index) => this.#rings[index]?.interrupt(),
        configChanged: () => this.#configChanged(),
        fail: (reason) => this.#fail(reason),
      })
      for (const [i, queue] of queues.entries())
        if (queue && this.#state === 'running') this.#device.notify(i)
    })
  }

  #rung(index: number): void {
    if (this.#state === 'setup') this.#start(true)
    else if (this.#state === 'running' && this.#rings[index]?.queue)
      this.#attempt(() => this.#device.notify(index))
  }

  #attempt(work: () => void): void {
    try {
      work()
    } catch (error) {
      this.#fail(error as Error)
    }
  }

  #fail(reason: Error): void {
    if (this.#state !== 'running') return
    this.#options.log?.(`${this.#device.name}: stopped: ${reason.message}`)
    this.#pause()
    this.#state = 'failed'
    for (const ring of this.#rings) ring.signalError()
  }

  #configChanged(): void {
    if (!this.#requests) return
    try {
      sendMessage(this.#requests, m.VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, new Uint8Array(), false)
    } catch (error) {
      this.#options.log?.(`${this.#device.name}: the frontend does not hear us: ${(error as Error).message}`)
    }
  }

  /** Takes the device off its rings, which remember where they were. */
  #pause(): void {
    if (this.#state !== 'running') return
    this.#state = 'setup'
    this.#device.reset()
    for (const ring of this.#rings) ring.dropQueue()
  }

  #close(reason?: Error): void {
    if (this.#state === 'closed') return
    this.#pause()
    this.#state = 'closed'
    this.#loop.remove(this.#fd)
    for (const ring of this.#rings) ring[Symbol.dispose]()
    this.#reader[Symbol.dispose]()
    this.#shared?.[Symbol.dispose]()
    this.#requests?.close()
    this.#fd.close()
    this.#options.closed?.(reason)
  }
}

/** One kind of request: what its payload has at least, how many descriptors it may bring, and what it does. */
interface Handler {
  readonly name: string
  readonly size: number
  readonly fds: number
  /** It may be the last that the device has waited for. */
  readonly starts?: true
  /** @returns the reply, where the request has one of its own */
  readonly run: (this: BackendConnection, payload: DataView, fds: Fd[]) => unknown
}

/** With SET_VRING_KICK and its like: the ring's number, and the descriptor unless the message says there is none. */
function ringFd(payload: DataView, fds: Fd[]): [number, Fd | undefined] {
  const value = payload.getUint32(0, true)
  const fd = fds.pop()
  if (((value & m.VHOST_USER_VRING_NOFD_MASK) !== 0) !== (fd === undefined)) {
    fd?.close()
    throw new VhostUserError('the descriptor of a ring is missing, or one too many')
  }
  return [value & m.VHOST_USER_VRING_INDEX_MASK, fd]
}

/** Runs `use` with a descriptor that it keeps, or closes it where that throws. */
function keep(fd: Fd | undefined, use: (fd: Fd | undefined) => void): void {
  try {
    use(fd)
  } catch (error) {
    fd?.close()
    throw error
  }
}

const HANDLERS: Readonly<Record<number, Handler>> = {
  [m.VHOST_USER_GET_FEATURES]: {
    name: 'GET_FEATURES',
    size: 0,
    fds: 0,
    run() {
      return this.getFeatures()
    },
  },
  [m.VHOST_USER_SET_FEATURES]: {
    name: 'SET_FEATURES',
    size: 8,
    fds: 0,
    starts: true,
    run(payload) {
      this.setFeatures(payload.getBigUint64(0, true))
    },
  },
  [m.VHOST_USER_SET_OWNER]: { name: 'SET_OWNER', size: 0, fds: 0, run: () => undefined },
  [m.VHOST_USER_RESET_OWNER]: { name: 'RESET_OWNER', size: 0, fds: 0, run: () => undefined },
  [m.VHOST_USER_SET_MEM_TABLE]: {
    name: 'SET_MEM_TABLE',
    size: 8,
    fds: MAX_FDS,
    starts: true,
    run(payload, fds) {
      const count = payload.getUint32(0, true)
      if (count !== fds.length || count === 0 || payload.byteLength < 8 + count * 32)
        throw new VhostUserError(`SET_MEM_TABLE: ${count} regions, ${fds.length} descriptors`)
      this.setMemoryTable(
        fds.map((fd, i) => {
          const field = (at: number): number => Number(payload.getBigUint64(8 + i * 32 + at, true))
          return { fd, guestAddress: field(0), size: field(8), userAddress: field(16), offset: field(24) }
        }),
      )
    },
  },
  [m.VHOST_USER_SET_VRING_NUM]: {
    name: 'SET_VRING_NUM',
    size: 8,
    fds: 0,
    run(payload) {
      this.ring(payload.getUint32(0, true), true).size = payload.getUint32(4, true)
    },
  },
  [m.VHOST_USER_SET_VRING_ADDR]: {
    name: 'SET_VRING_ADDR',
    size: 40,
    fds: 0,
    run(payload) {
      const address = (at: number): number => Number(payload.getBigUint64(at, true))
      this.ring(payload.getUint32(0, true), true).addresses = {
        descriptorTable: address(8),
        usedRing: address(16),
        availableRing: address(24),
      }
    },
  },
  [m.VHOST_USER_SET_VRING_BASE]: {
    name: 'SET_VRING_BASE',
    size: 8,
    fds: 0,
    run(payload) {
      this.ring(payload.getUint32(0, true), true).base = payload.getUint32(4, true)
    },
  },
  [m.VHOST_USER_GET_VRING_BASE]: {
    name: 'GET_VRING_BASE',
    size: 8,
    fds: 0,
    run(payload) {
      const index = payload.getUint32(0, true)
      const reply = new Uint32Array([index, this.stopRing(index)])
      return new Uint8Array(reply.buffer)
    },
  },
  [m.VHOST_USER_SET_VRING_KICK]: {
    name: 'SET_VRING_KICK',
    size: 8,
    fds: 1,
    starts: true,
    run(payload, fds) {
      const [index, fd] = ringFd(payload, fds)
      keep(fd, (kick) => this.startRing(index, kick))
    },
  },
  [m.VHOST_USER_SET_VRING_CALL]: {
    name: 'SET_VRING_CALL',
    size: 8,
    fds: 1,
    run(payload, fds) {
      const [index, fd] = ringFd(payload, fds)
      keep(fd, (call) => this.ring(index, false).setCall(call))
    },
  },
  [m.VHOST_USER_SET_VRING_ERR]: {
    name: 'SET_VRING_ERR',
    size: 8,
    fds: 1,
    run(payload, fds) {
      const [index, fd] = ringFd(payload, fds)
      keep(fd, (error) => this.ring(index, false).setError(error))
    },
  },
  [m.VHOST_USER_GET_PROTOCOL_FEATURES]: {
    name: 'GET_PROTOCOL_FEATURES',
    size: 0,
    fds: 0,
    run() {
      return this.getProtocolFeatures()
    },
  },
  [m.VHOST_USER_SET_PROTOCOL_FEATURES]: {
    name: 'SET_PROTOCOL_FEATURES',
    size: 8,
    fds: 0,
    run(payload) {
      this.setProtocolFeatures(payload.getBigUint64(0, true))
    },
  },
  [m.VHOST_USER_GET_QUEUE_NUM]: {
    name: 'GET_QUEUE_NUM',
    size: 0,
    fds: 0,
    run() {
      return this.getQueueNum()
    },
  },
  [m.VHOST_USER_SET_VRING_ENABLE]: {
    name: 'SET_VRING_ENABLE',
    size: 8,
    fds: 0,
    starts: true,
    run(payload) {
      this.enableRing(payload.getUint32(0, true), payload.getUint32(4, true) !== 0)
    },
  },
  [m.VHOST_USER_SET_BACKEND_REQ_FD]: {
    name: 'SET_BACKEND_REQ_FD',
    size: 0,
    fds: 1,
    run(_payload, fds) {
      const fd = fds.pop()
      if (!fd) throw new VhostUserError('SET_BACKEND_REQ_FD: no descriptor')
      this.setRequestChannel(fd)
    },
  },
  [m.VHOST_USER_GET_CONFIG]: {
    name: 'GET_CONFIG',
    size: 12,
    fds: 0,
    run(payload) {
      const size = payload.getUint32(4, true)
      // vhost-user.rst: "a zero-length payload indicates an error".
      if (payload.byteLength < 12 + size) return new Uint8Array()
      const config = this.getConfig(payload.getUint32(0, true), size)
      const reply = new Uint8Array(12 + size)
      reply.set(new Uint8Array(payload.buffer, 0, 12))
      reply.set(config, 12)
      return reply
    },
  },
  [m.VHOST_USER_SET_CONFIG]: {
    name: 'SET_CONFIG',
    size: 12,
    fds: 0,
    run(payload) {
      const size = payload.getUint32(4, true)
      if (payload.byteLength < 12 + size) throw new VhostUserError('SET_CONFIG: shorter than it says')
      this.setConfig(payload.getUint32(0, true), new Uint8Array(payload.buffer, 12, size))
    },
  },
}

function number(value: bigint): Uint8Array {
  return new Uint8Array(new BigUint64Array([value]).buffer)
}
