import { connectUnix, Epoll, EPOLLIN, type EventFd, type Fd, SysError, socketPair } from '@coracle/sys'
import { INFLIGHT_SIZE, InflightRegion, describeInflight, inflightShape } from './inflight.js'
import { MAX_FDS, type Message, MessageReader, VhostUserError, sendMessage, u32s, u64s } from './message.js'
import * as m from './protocol.js'
import type { SharedRegion } from './shared-memory.js'
import type { VringAddresses } from './vring.js'

/** Bytes of one VHOST_USER_GET_CONFIG: VHOST_USER_MAX_CONFIG_SIZE. */
const MAX_CONFIG = 256
/** Messages of the backend's own that one look at its channel takes: it cannot keep us there. */
const MAX_BACKEND_REQUESTS = 16
/** What we can make use of. */
const PROTOCOL_FEATURES =
  m.VHOST_USER_PROTOCOL_F_MQ |
  m.VHOST_USER_PROTOCOL_F_REPLY_ACK |
  m.VHOST_USER_PROTOCOL_F_BACKEND_REQ |
  m.VHOST_USER_PROTOCOL_F_CONFIG |
  m.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD |
  m.VHOST_USER_PROTOCOL_F_RESET_DEVICE |
  m.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS |
  m.VHOST_USER_PROTOCOL_F_STATUS

export interface FrontendOptions {
  /** ms that the backend may take for one answer. @default 5000 */
  readonly timeout?: number
  /** Protocol features to ask for, of those that both ends know. @default all */
  readonly protocolFeatures?: bigint
}

/** What a frontend tells while it is {@link VhostUserFrontend.watch}ed. */
export interface FrontendEvents {
  /** The backend left, or spoke unasked: the connection is closed. */
  lost(reason: Error): void
  /** The backend's configuration space is another now. */
  configChanged(): void
}

/** One ring as the driver set it up. Addresses are the frontend's own, those of {@link SharedRegion.userAddress}. */
export interface VringSetup extends VringAddresses {
  readonly size: number
  /** Where in the available ring the backend starts. */
  readonly base: number
  readonly kick: EventFd
  readonly call: EventFd
  /** Signalled where the backend gives the ring up. */
  readonly error?: EventFd
}

/**
 * The frontend's end of one vhost-user connection: somebody else's device, as messages. Each method sends one request
 * and, where there is an answer or the backend acknowledges (VHOST_USER_PROTOCOL_F_REPLY_ACK), waits for it, no
 * longer than {@link FrontendOptions.timeout}: the thread stands still meanwhile.
 *
 * The backend is not trusted with anything but the memory that it is given: what it sends is bounded and checked.
 *
 * @throws VhostUserError from every method: the backend refused (the connection goes on), broke the protocol, stalled
 * or left (the connection is {@link closed})
 */
export class VhostUserFrontend implements Disposable {
  readonly #fd: Fd
  readonly #reader: MessageReader
  readonly #wait = new Epoll()
  readonly #timeout: number
  #features = 0n
  #protocolFeatures = 0n
  #queues = 1
  #slots = MAX_FDS
  #regions: readonly SharedRegion[] = []
  #channel: { readonly fd: Fd; readonly reader: MessageReader } | undefined
  #watched: Epoll | undefined
  #closed = false

  /**
   * Negotiates as far as is possible before the driver has chosen its features.
   * @param fd a connected Unix stream socket, non-blocking; becomes ours
   */
  constructor(fd: Fd, { timeout = 5000, protocolFeatures = PROTOCOL_FEATURES }: FrontendOptions = {}) {
    this.#fd = fd
    this.#timeout = timeout
    this.#reader = new MessageReader(fd, 'replies')
    try {
      this.#wait.add(fd, EPOLLIN, () => undefined)
      this.#negotiate(protocolFeatures & PROTOCOL_FEATURES)
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
  }

  /** Connects to the backend that listens at `path`. @throws VhostUserError, SysError */
  static connect(path: string, options: FrontendOptions = {}): VhostUserFrontend {
    return new VhostUserFrontend(connectUnix(path, options.timeout ?? 5000), options)
  }

  get closed(): boolean {
    return this.#closed
  }
  /** The virtio features on offer, without the protocol's own bit. */
  get features(): bigint {
    return this.#features & ~m.VHOST_USER_F_PROTOCOL_FEATURES
  }
  /** `VHOST_USER_PROTOCOL_F_*` that both ends know. */
  get protocolFeatures(): bigint {
    return this.#protocolFeatures
  }
  /** How many rings the backend can serve. */
  get queues(): number {
    return this.#queues
  }
  /** How many memory regions it can have. */
  get memorySlots(): number {
    return this.#slots
  }
  has(protocolFeature: bigint): boolean {
    return (this.#protocolFeatures & protocolFeature) !== 0n
  }

  /** Tells the backend what the driver chose. */
  setFeatures(features: bigint): void {
    const own = this.#features & m.VHOST_USER_F_PROTOCOL_FEATURES
    this.#command(m.VHOST_USER_SET_FEATURES, u64s(features | own))
  }

  /**
   * Gives the backend the guest's memory in place of what it had. No ring may run.
   * @param regions their descriptors are only borrowed
   */
  setMemory(regions: readonly SharedRegion[]): void {
    if (regions.length > this.#slots)
      throw new VhostUserError(`the backend takes ${this.#slots} memory regions, not ${regions.length}`)
    if (this.has(m.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)) {
      for (const region of this.#regions) this.removeMemory(region)
      for (const region of regions) this.addMemory(region)
      return
    }
    const fields = regions.flatMap(fieldsOf)
    const fds = regions.map(({ fd }) => fd)
    this.#command(m.VHOST_USER_SET_MEM_TABLE, u64s(regions.length, ...fields), fds)
    this.#regions = regions
  }

  /** One region more (VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS). @param region its descriptor is only borrowed */
  addMemory(region: SharedRegion): void {
    this.#need(m.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS, 'memory regions one by one')
    this.#command(m.VHOST_USER_ADD_MEM_REG, u64s(0, ...fieldsOf(region)), [region.fd])
    this.#regions = [...this.#regions, region]
  }

  removeMemory(region: SharedRegion): void {
    this.#need(m.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS, 'memory regions one by one')
    this.#command(m.VHOST_USER_REM_MEM_REG, u64s(0, ...fieldsOf(region)))
    this.#regions = this.#regions.filter((each) => each !== region)
  }

  /** Sets a ring up, starts and enables it. The eventfds are only borrowed. */
  startVring(index: number, ring: VringSetup): void {
    const { size, base, descriptorTable, usedRing, availableRing } = ring
    this.#command(m.VHOST_USER_SET_VRING_NUM, u32s(index, size))
    this.#command(m.VHOST_USER_SET_VRING_BASE, u32s(index, base))
    this.#command(m.VHOST_USER_SET_VRING_ADDR, u64s(index, descriptorTable, usedRing, availableRing, 0))
    if (ring.error) this.#command(m.VHOST_USER_SET_VRING_ERR, u64s(index), [ring.error.fd])
    this.#command(m.VHOST_USER_SET_VRING_CALL, u64s(index), [ring.call.fd])
    this.#command(m.VHOST_USER_SET_VRING_KICK, u64s(index), [ring.kick.fd])
    // Without protocol features a ring needs no enabling ("Ring states").
    if ((this.#features & m.VHOST_USER_F_PROTOCOL_FEATURES) !== 0n)
      this.#command(m.VHOST_USER_SET_VRING_ENABLE, u32s(index, 1))
  }

  /** Stops a ring: nothing of it is in flight once this returns. @returns where it was in the available ring */
  stopVring(index: number): number {
    const payload = this.#ask(m.VHOST_USER_GET_VRING_BASE, u32s(index, 0), 8)
    const [named, base] = [payload.getUint32(0, true), payload.getUint32(4, true)]
    if (named !== index || base > 0xffff) throw this.#broken(`ring ${index} stopped as ${named} at ${base}`)
    return base
  }

  /** `length` bytes of the configuration space (VHOST_USER_PROTOCOL_F_CONFIG). */
  getConfig(offset: number, length: number): Uint8Array {
    this.#need(m.VHOST_USER_PROTOCOL_F_CONFIG, 'a configuration space')
    if (length > MAX_CONFIG) throw new RangeError(`${length} bytes of configuration space`)
    const request = new Uint8Array(12 + length)
    request.set(u32s(offset, length, 0))
    const payload = this.#ask(m.VHOST_USER_GET_CONFIG, request, 0)
    // vhost-user.rst: "a zero-length payload indicates an error".
    if (payload.byteLength === 0) throw new VhostUserError('the backend refused its configuration space')
    if (payload.byteLength !== 12 + length || payload.getUint32(4, true) !== length)
      throw this.#broken(`${payload.byteLength} bytes of configuration space in place of ${12 + length}`)
    return new Uint8Array(payload.buffer, payload.byteOffset + 12, length).slice()
  }

  /** The driver's write into the configuration space. */
  setConfig(offset: number, data: Uint8Array): void {
    this.#need(m.VHOST_USER_PROTOCOL_F_CONFIG, 'a configuration space')
    const request = new Uint8Array(12 + data.length)
    request.set(u32s(offset, data.length, 0))
    request.set(data, 12)
    this.#command(m.VHOST_USER_SET_CONFIG, request)
  }

  /** Memory in which the backend keeps what is in flight; the caller's, to be given to the next backend too. */
  getInflight(queues: number, queueSize: number): InflightRegion {
    this.#need(m.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD, 'the tracking of requests in flight')
    const asked = describeInflight({ length: 0, offset: 0, queues, queueSize })
    const { payload, fds } = this.#call(m.VHOST_USER_GET_INFLIGHT_FD, asked, INFLIGHT_SIZE, 1)
    const [fd] = fds
    if (!fd) throw this.#broken('in-flight memory without a descriptor')
    try {
      return InflightRegion.map(fd, { ...inflightShape(payload), queues, queueSize })
    } catch (error) {
      fd.close()
      throw error
    }
  }

  setInflight({ fd, shape }: InflightRegion): void {
    this.#command(m.VHOST_USER_SET_INFLIGHT_FD, describeInflight(shape), [fd])
  }

  /** The device's status (VHOST_USER_PROTOCOL_F_STATUS): `VIRTIO_CONFIG_S_*`. */
  getStatus(): number {
    this.#need(m.VHOST_USER_PROTOCOL_F_STATUS, 'a status')
    return this.#ask(m.VHOST_USER_GET_STATUS, new Uint8Array(), 8).getUint8(0)
  }

  setStatus(status: number): void {
    this.#need(m.VHOST_USER_PROTOCOL_F_STATUS, 'a status')
    this.#command(m.VHOST_USER_SET_STATUS, u64s(status))
  }

  /** Back to what it was before any ring was started (VHOST_USER_PROTOCOL_F_RESET_DEVICE). */
  resetDevice(): void {
    this.#need(m.VHOST_USER_PROTOCOL_F_RESET_DEVICE, 'a reset')
    this.#command(m.VHOST_USER_RESET_DEVICE, new Uint8Array())
  }

  /** Hears on `loop` of what the backend does by itself, until {@link unwatch} or the end of the connection. */
  watch(loop: Epoll, events: FrontendEvents): void {
    const attempt = (work: () => void): void => {
      try {
        work()
      } catch (error) {
        events.lost(error as Error)
      }
    }
    this.#watched = loop
    loop.add(this.#fd, EPOLLIN, () => attempt(() => this.check()))
    if (this.#channel)
      loop.add(this.#channel.fd, EPOLLIN, () =>
        attempt(() => {
          if (this.#configChanged()) events.configChanged()
        }),
      )
  }

  unwatch(): void {
    const loop = this.#watched
    this.#watched = undefined
    loop?.remove(this.#fd)
    if (this.#channel) loop?.remove(this.#channel.fd)
  }

  /** Looks whether the backend is still there. @throws VhostUserError where it is not, or says what nobody asked */
  check(): void {
    const message = this.#guard(() => this.#reader.next())
    if (message === undefined) return
    if (message !== 'end') for (const fd of message.fds) fd.close()
    throw this.#broken(message === 'end' ? 'it has closed the connection' : 'a reply to no request')
  }

  /** Ends the connection. */
  [Symbol.dispose](): void {
    if (this.#closed) return
    this.unwatch()
    this.#closed = true
    this.#closeChannel()
    this.#wait.close()
    this.#reader[Symbol.dispose]()
    this.#fd.close()
  }

  #negotiate(wanted: bigint): void {
    const number = (request: number): bigint => this.#ask(request, new Uint8Array(), 8).getBigUint64(0, true)
    this.#features = number(m.VHOST_USER_GET_FEATURES)
    if ((this.#features & m.VHOST_USER_F_PROTOCOL_FEATURES) !== 0n) {
      const features = number(m.VHOST_USER_GET_PROTOCOL_FEATURES) & wanted
      this.#command(m.VHOST_USER_SET_PROTOCOL_FEATURES, u64s(features))
      this.#protocolFeatures = features
    }
    if (this.has(m.VHOST_USER_PROTOCOL_F_MQ)) this.#queues = this.#small(number(m.VHOST_USER_GET_QUEUE_NUM))
    this.#command(m.VHOST_USER_SET_OWNER, new Uint8Array())
    if (this.has(m.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS))
      this.#slots = this.#small(number(m.VHOST_USER_GET_MAX_MEM_SLOTS))
    if (!this.has(m.VHOST_USER_PROTOCOL_F_BACKEND_REQ)) return
    const [ours, theirs] = socketPair()
    this.#channel = { fd: ours, reader: new MessageReader(ours, 'requests') }
    try {
      this.#command(m.VHOST_USER_SET_BACKEND_REQ_FD, new Uint8Array(), [theirs])
    } finally {
      theirs.close()
    }
  }

  /** Looks at the backend's own requests. @returns whether the configuration space changed */
  #configChanged(): boolean {
    let changed = false
    for (let i = 0; this.#channel && i < MAX_BACKEND_REQUESTS; i++) {
      const { fd, reader } = this.#channel
      const message = this.#guard(() => reader.next())
      if (message === undefined) break
      if (message === 'end') {
        this.#closeChannel()
        break
      }
      for (const each of message.fds) each.close()
      const known = message.request === m.VHOST_USER_BACKEND_CONFIG_CHANGE_MSG
      changed ||= known
      if (message.needReply)
        this.#guard(() => sendMessage(fd, message.request, u64s(known ? 0 : 1), { reply: true }))
    }
    return changed
  }

  #small(value: bigint): number {
    if (value < 1n || value > 0xffffn) throw this.#broken(`${value} queues or memory slots`)
    return Number(value)
  }

  #need(feature: bigint, what: string): void {
    if (!this.has(feature)) throw new VhostUserError(`the backend does not offer ${what}`)
  }

  /** Sends a request that has no reply of its own. */
  #command(request: number, payload: Uint8Array, fds: readonly Fd[] = []): void {
    const needReply = this.has(m.VHOST_USER_PROTOCOL_F_REPLY_ACK)
    this.#guard(() => sendMessage(this.#fd, request, payload, { needReply, fds }))
    if (!needReply) return
    const reply = this.#receive(request, 0)
    if (reply.payload.byteLength !== 8)
      throw this.#broken(`an acknowledgement of ${reply.payload.byteLength} bytes`)
    if (reply.payload.getBigUint64(0, true) !== 0n)
      throw new VhostUserError(`the backend refused request ${request}`)
  }

  #ask(request: number, payload: Uint8Array, size: number): DataView {
    return this.#call(request, payload, size, 0).payload
  }

  /** @param size bytes that the reply has at least */
  #call(request: number, payload: Uint8Array, size: number, fds: number): Message {
    this.#guard(() => sendMessage(this.#fd, request, payload))
    const reply = this.#receive(request, fds)
    if (reply.payload.byteLength >= size) return reply
    for (const fd of reply.fds) fd.close()
    throw this.#broken(`a reply of ${reply.payload.byteLength} bytes to request ${request}`)
  }

  #receive(request: number, fds: number): Message {
    const deadline = performance.now() + this.#timeout
    for (;;) {
      const message = this.#guard(() => this.#reader.next())
      if (message === 'end')
        throw this.#broken(`it closed the connection in place of an answer to ${request}`)
      if (message) {
        if (message.request === request && message.fds.length <= fds) return message
        for (const fd of message.fds) fd.close()
        throw this.#broken(`a reply to request ${message.request} in place of ${request}`)
      }
      const left = deadline - performance.now()
      if (left <= 0) throw this.#broken(`no answer to request ${request} within ${this.#timeout} ms`)
      this.#wait.wait(Math.ceil(left))
    }
  }

  /** Whatever fails below ends the connection. */
  #guard<T>(work: () => T): T {
    if (this.#closed) throw new VhostUserError('the connection to the backend is closed')
    try {
      return work()
    } catch (error) {
      if (!(error instanceof SysError || error instanceof VhostUserError)) throw error
      throw this.#broken(error.message)
    }
  }

  #broken(what: string): VhostUserError {
    this[Symbol.dispose]()
    return new VhostUserError(`the backend failed: ${what}`)
  }

  #closeChannel(): void {
    if (this.#channel) this.#watched?.remove(this.#channel.fd)
    this.#channel?.reader[Symbol.dispose]()
    this.#channel?.fd.close()
    this.#channel = undefined
  }
}

function fieldsOf({ guestAddress, size, userAddress, offset }: SharedRegion): number[] {
  return [guestAddress, size, userAddress, offset]
}
