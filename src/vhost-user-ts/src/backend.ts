import { type Epoll, EPOLLIN, type Fd, SysError } from '@coracle/sys'
import { HANDLERS } from './backend-requests.js'
import type { VirtioDevice } from './device.js'
import { InflightRegion, type InflightShape } from './inflight.js'
import { type Message, MessageReader, VhostUserError, sendMessage, u64s } from './message.js'
import * as m from './protocol.js'
import { SharedMemory, type SharedRegion } from './shared-memory.js'
import { VirtioError } from './virtio-error.js'
import { RING_FEATURES, VIRTIO_F_VERSION_1 } from './virtqueue.js'
import { Vring } from './vring.js'

const PROTOCOL_FEATURES =
  m.VHOST_USER_PROTOCOL_F_MQ |
  m.VHOST_USER_PROTOCOL_F_REPLY_ACK |
  m.VHOST_USER_PROTOCOL_F_BACKEND_REQ |
  m.VHOST_USER_PROTOCOL_F_CONFIG |
  m.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD |
  m.VHOST_USER_PROTOCOL_F_RESET_DEVICE |
  m.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS |
  m.VHOST_USER_PROTOCOL_F_STATUS
/** VHOST_USER_GET_MAX_MEM_SLOTS: as many as KVM gave a guest when the protocol was young, for one that plugs memory. */
const MAX_MEM_SLOTS = 32

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
 *
 * What a frontend may learn without harm it is told in band: a request that asks for an acknowledgement and cannot be
 * carried out is answered with 1, and the connection goes on. What asks for none, or is no message, ends it.
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
  #inflight: InflightRegion | undefined
  #status = 0
  #requests: Fd | undefined

  /** @param fd a connected Unix stream socket, non-blocking; becomes ours */
  constructor(device: VirtioDevice, fd: Fd, loop: Epoll, options: BackendOptions = {}) {
    this.#device = device
    this.#fd = fd
    this.#loop = loop
    this.#options = options
    this.#reader = new MessageReader(fd, 'requests')
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
    const handler = HANDLERS[request]
    try {
      if (!handler) throw new VhostUserError(`unknown request ${request}`)
      if (payload.byteLength < handler.size)
        throw new VhostUserError(`${handler.name}: a payload of ${payload.byteLength} bytes`)
      if (fds.length > handler.fds) throw new VhostUserError(`${handler.name}: ${fds.length} descriptors`)
      if (handler.answers) {
        const reply = handler.run.call(this, payload, fds)
        this.#reply(request, reply.payload, reply.fds)
      } else {
        handler.run.call(this, payload, fds)
        if (acknowledge) this.#reply(request, u64s(0))
      }
      if (handler.starts === true) this.#start(false)
    } catch (error) {
      const known =
        error instanceof VhostUserError || error instanceof VirtioError || error instanceof SysError
      // Who asks for an answer can live with a refusal; who does not would never know.
      if (!known || !acknowledge || handler?.answers === true) throw error
      this.#options.log?.(`${this.#device.name}: refused: ${error.message}`)
      this.#reply(request, u64s(1))
    } finally {
      for (const fd of fds) fd.close()
    }
  }

  #reply(request: number, payload: Uint8Array, fds: readonly Fd[] = []): void {
    sendMessage(this.#fd, request, payload, { reply: true, fds })
  }

  get #offered(): bigint {
    return (
      this.#device.features |
      VIRTIO_F_VERSION_1 |
      (this.#device.ringFeatures ?? RING_FEATURES) |
      m.VHOST_USER_F_PROTOCOL_FEATURES
    )
  }

  getFeatures(): bigint {
    return this.#offered
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

  getProtocolFeatures(): bigint {
    return PROTOCOL_FEATURES
  }

  setProtocolFeatures(features: bigint): void {
    if ((features & ~PROTOCOL_FEATURES) !== 0n)
      throw new VhostUserError(`protocol features 0x${features.toString(16)} that were not offered`)
    this.#protocolFeatures = features
  }

  getQueueNum(): bigint {
    return BigInt(this.#rings.length)
  }

  setMemoryTable(regions: readonly SharedRegion[]): void {
    this.#pause()
    // First the new one: what is wrong with it must not cost us the old.
    const shared = new SharedMemory(regions)
    this.#shared?.[Symbol.dispose]()
    this.#shared = shared
  }

  getMaxMemorySlots(): bigint {
    return BigInt(MAX_MEM_SLOTS)
  }

  addMemory(region: SharedRegion): void {
    if ((this.#shared?.count ?? 0) >= MAX_MEM_SLOTS)
      throw new VhostUserError(`more than ${MAX_MEM_SLOTS} memory regions`)
    this.#pause()
    if (this.#shared) this.#shared.add(region)
    else this.#shared = new SharedMemory([region])
  }

  removeMemory(region: Omit<SharedRegion, 'fd' | 'offset'>): void {
    this.#pause()
    if (!this.#shared) throw new VhostUserError('no memory to remove from')
    this.#shared.remove(region)
  }

  /** The memory that says what is in flight: a new one, for rings of `queueSize`. */
  newInflight(queues: number, queueSize: number): InflightRegion {
    return this.#setInflight(InflightRegion.create(queues, queueSize))
  }

  /** The frontend has kept such memory from a backend before us. @param fd becomes ours where this succeeds */
  setInflight(fd: Fd, shape: InflightShape): void {
    this.#setInflight(InflightRegion.map(fd, shape))
  }

  #setInflight(region: InflightRegion): InflightRegion {
    if (this.#rings.some((ring) => ring.queue)) {
      region[Symbol.dispose]()
      throw new VhostUserError('the in-flight memory changes while rings run')
    }
    this.#inflight?.[Symbol.dispose]()
    return (this.#inflight = region)
  }

  getStatus(): bigint {
    return BigInt(this.#status | (this.#state === 'failed' ? m.VIRTIO_CONFIG_S_NEEDS_RESET : 0))
  }

  /** Writing 0 is a reset (virtio 1.2 §2.4). */
  setStatus(status: number): void {
    if (status === 0) this.resetDevice()
    else this.#status = status
  }

  /** Back to the state before any ring was started; features and memory stay. */
  resetDevice(): void {
    this.#pause()
    for (const ring of this.#rings) {
      ring.stop()
      ring.base = 0
      ring.enabled = !this.#explicit
    }
    this.#inflight?.[Symbol.dispose]()
    this.#inflight = undefined
    this.#status = 0
    if (this.#state === 'failed') this.#state = 'setup'
  }

  /** Rings need enabling by a message of its own. */
  get #explicit(): boolean {
    return ((this.#features ?? 0n) & m.VHOST_USER_F_PROTOCOL_FEATURES) !== 0n
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
    // A running device knows only the rings that it was activated with.
    this.#pause()
    ring.start(kick, () => this.#rung(index))
  }

  /** @returns where the ring was */
  stopRing(index: number): number {
    this.#pause()
    const ring = this.ring(index, false)
    ring.stop()
    if (this.#explicit) ring.enabled = false
    if (this.#state === 'failed' && this.#rings.every((each) => !each.started)) this.#state = 'setup'
    return ring.base
  }

  enableRing(index: number, enabled: boolean): void {
    const ring = this.ring(index, false)
    if (ring.enabled === enabled) return
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
    const complete = rung || (this.#explicit && started.every((ring) => ring.ready))
    if (!complete || !started.some((ring) => ring.ready)) return
    this.#state = 'running'
    this.#attempt(() => {
      const sizes = this.#device.queueSizes
      const queues = this.#rings.map((ring, i) =>
        ring.ready ? ring.makeQueue(shared, sizes[i]!, features, this.#inflight?.queue(i)) : undefined,
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
      sendMessage(this.#requests, m.VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, new Uint8Array())
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
    this.#inflight?.[Symbol.dispose]()
    this.#requests?.close()
    this.#fd.close()
    this.#options.closed?.(reason)
  }
}
