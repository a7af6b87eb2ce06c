import { EPOLLIN, EventFd, type Fd, SysError, TimerFd } from '@coracle/sys'
import type { DeviceContext, VirtioDevice } from './device.js'
import { VhostUserFrontend } from './frontend.js'
import type { InflightRegion } from './inflight.js'
import { VhostUserError } from './message.js'
import * as m from './protocol.js'
import type { SharedRegion } from './shared-memory.js'
import { VirtioError } from './virtio-error.js'
import { RING_FEATURES, VIRTIO_F_VERSION_1 } from './virtqueue.js'

/** Bits 24 to 49: the ring's and the transport's (virtio 1.2 §2.2). */
const TRANSPORT_FEATURES = (1n << 50n) - (1n << 24n)
/** Between two attempts to reach a backend that died, in ms. */
const RETRY = 100

export interface VhostUserDeviceInit {
  /** For logs, such as `fs shared`. */
  readonly name: string
  /** The device ID of virtio 1.2 §5: nothing in the protocol says it. */
  readonly type: number
  /** Where the backend listens: a Unix socket. */
  readonly path: string
  /** A connection that is there already, taken in place of a first one to `path`; becomes ours. */
  readonly connection?: Fd
  /** How many queues the driver sees. */
  readonly queues: number
  /** The largest size of each. @default 128 */
  readonly queueSize?: number
  /** Device features that the driver may see, of those that the backend offers. @default all */
  readonly features?: bigint
  /** The configuration space: its bytes where the frontend knows them, or how many to ask the backend for. @default 0 */
  readonly config?: Uint8Array | number
  /** ms that the backend may take for one answer. @default 5000 */
  readonly timeout?: number
  /**
   * ms in which a backend that died may come back at the same path. The driver notices nothing but the pause: what was
   * in flight is carried out again, in order. Only where the backend keeps account of that
   * (VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) and has no other state of its own. @default 0: the device fails at once
   */
  readonly reconnect?: number
  /** Hears why the backend was lost, and that it came back. */
  readonly log?: (message: string) => void
}

interface Active {
  readonly context: DeviceContext
  readonly events: ReadonlyMap<number, { readonly kick: EventFd; readonly call: EventFd }>
  readonly error: EventFd
  readonly retry: TimerFd
  inflight: InflightRegion | undefined
  /** When a backend that died counts as lost, by performance.now(). */
  deadline: number
}

/**
 * Somebody else's device: a vhost-user backend, in the form that any transport of ours serves to a guest. The data
 * path passes us by: the guest's doorbells are the backend's kick eventfds, and its calls are the guest's interrupts.
 *
 * A backend that leaves, stalls or breaks the protocol costs the guest this device (DEVICE_NEEDS_RESET). Once its
 * driver resets it, the backend that then listens at the path is taken.
 */
export class VhostUserDevice implements VirtioDevice, Disposable {
  readonly name: string
  readonly type: number
  readonly queueSizes: readonly number[]
  readonly features: bigint
  readonly ringFeatures: bigint
  readonly config: Uint8Array
  readonly #init: VhostUserDeviceInit
  /** All that the driver was offered: what the next backend has to offer too. */
  #offered = 0n
  #frontend: VhostUserFrontend | undefined
  #active: Active | undefined

  /** Connects. @throws VhostUserError, SysError */
  constructor(init: VhostUserDeviceInit) {
    this.#init = init
    this.name = init.name
    this.type = init.type
    this.queueSizes = new Array<number>(init.queues).fill(init.queueSize ?? 128)
    const frontend = (this.#frontend = this.#connect())
    try {
      if ((frontend.features & VIRTIO_F_VERSION_1) === 0n)
        throw new VhostUserError('the backend knows legacy virtio only')
      this.features = frontend.features & ~TRANSPORT_FEATURES & (init.features ?? ~0n)
      this.ringFeatures = frontend.features & RING_FEATURES
      this.#offered = this.features | this.ringFeatures | VIRTIO_F_VERSION_1
      const { config = 0 } = init
      this.config = typeof config === 'number' ? new Uint8Array(config) : config
      this.#readConfig(frontend)
    } catch (error) {
      frontend[Symbol.dispose]()
      throw error
    }
  }

  writeConfig(offset: number, data: Uint8Array): void {
    if (typeof this.#init.config !== 'number' || !this.#frontend) return
    const frontend = this.#frontend
    this.#fatal(() => {
      frontend.setConfig(offset, data)
      this.#readConfig(frontend)
    })
  }

  activate(context: DeviceContext): void {
    const { handOver } = context
    if (!handOver) throw new VirtioError('BACKEND', `${this.name}: this transport keeps its queues to itself`)
    const events = new Map<number, { kick: EventFd; call: EventFd }>()
    for (const queue of context.queues)
      if (queue) events.set(queue.index, handOver.call(context, queue.index))
    const active: Active = {
      context,
      events,
      error: EventFd.create(),
      retry: new TimerFd(),
      inflight: undefined,
      deadline: 0,
    }
    this.#active = active
    context.loop.add(active.error.fd, EPOLLIN, () => {
      active.error.drain()
      context.fail(new VirtioError('BACKEND', `${this.name}: the backend gave a queue up`))
    })
    context.loop.add(active.retry.fd, EPOLLIN, () => {
      active.retry.drain()
      this.#retry()
    })
    this.#fatal(() => {
      try {
        this.#frontend?.check()
      } catch {
        // It left while nobody needed it; the one that listens now will do.
        this.#frontend = undefined
      }
      this.#start(this.#frontend ?? this.#connect(), active)
    })
  }

  /** The transport's initial doorbell; the backend looks at each ring by itself when it is started. */
  notify(): void {
    return
  }

  reset(): void {
    const active = this.#active
    if (!active) return
    this.#active = undefined
    const { loop } = active.context
    for (const { fd } of [active.error, active.retry]) {
      loop.remove(fd)
      fd.close()
    }
    const frontend = this.#frontend
    if (frontend && !frontend.closed) {
      frontend.unwatch()
      try {
        for (const index of active.events.keys()) frontend.stopVring(index)
        if (frontend.has(m.VHOST_USER_PROTOCOL_F_STATUS)) frontend.setStatus(0)
        else if (frontend.has(m.VHOST_USER_PROTOCOL_F_RESET_DEVICE)) frontend.resetDevice()
      } catch (error) {
        this.#init.log?.(`${this.name}: ${(error as Error).message}`)
        frontend[Symbol.dispose]()
      }
    }
    active.inflight?.[Symbol.dispose]()
  }

  /** Ends the connection. */
  [Symbol.dispose](): void {
    this.reset()
    this.#frontend?.[Symbol.dispose]()
    this.#frontend = undefined
  }

  #connect(): VhostUserFrontend {
    const { path, timeout, queues, config, connection } = this.#init
    const ownConfig = typeof config === 'number' && config > 0
    const configFeatures = m.VHOST_USER_PROTOCOL_F_CONFIG | m.VHOST_USER_PROTOCOL_F_BACKEND_REQ
    const options = {
      ...(timeout === undefined ? {} : { timeout }),
      ...(ownConfig ? {} : { protocolFeatures: ~configFeatures }),
    }
    const isFresh = connection !== undefined && !connection.closed
    const frontend = isFresh
      ? new VhostUserFrontend(connection, options)
      : VhostUserFrontend.connect(path, options)
    try {
      if (frontend.has(m.VHOST_USER_PROTOCOL_F_MQ) && frontend.queues < queues)
        throw new VhostUserError(`the backend has ${frontend.queues} queues, not ${queues}`)
      if ((this.#offered & ~frontend.features) !== 0n)
        throw new VhostUserError('the backend offers less than the one before it')
      return frontend
    } catch (error) {
      frontend[Symbol.dispose]()
      throw error
    }
  }

  #readConfig(frontend: VhostUserFrontend): void {
    if (typeof this.#init.config !== 'number' || this.config.length === 0) return
    this.config.set(frontend.getConfig(0, this.config.length))
  }

  /** Brings a backend to where it serves the driver's queues. */
  #start(frontend: VhostUserFrontend, active: Active): void {
    this.#frontend = frontend
    const { context, events, error } = active
    try {
      frontend.setFeatures(context.features)
      frontend.setMemory(this.#shareable(context))
      if (frontend.has(m.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)) {
        active.inflight ??= frontend.getInflight(this.queueSizes.length, Math.max(...this.queueSizes))
        frontend.setInflight(active.inflight)
      }
      for (const queue of context.queues) {
        if (!queue) continue
        const { index, size, descriptorTable, availableRing, usedRing } = queue
        // Nothing that was taken is unfinished, or the in-flight memory says what.
        const base = context.memory.readU16(usedRing + 2)
        const ring = {
          index,
          size,
          base,
          descriptorTable,
          availableRing,
          usedRing,
          error,
          ...events.get(index)!,
        }
        frontend.startVring(index, ring)
      }
      if (frontend.has(m.VHOST_USER_PROTOCOL_F_STATUS))
        frontend.setStatus(
          m.VIRTIO_CONFIG_S_ACKNOWLEDGE |
            m.VIRTIO_CONFIG_S_DRIVER |
            m.VIRTIO_CONFIG_S_FEATURES_OK |
            m.VIRTIO_CONFIG_S_DRIVER_OK,
        )
      frontend.watch(context.loop, {
        lost: (reason) => this.#lost(reason),
        configChanged: () => {
          this.#readConfig(frontend)
          context.configChanged()
        },
      })
      // What the driver offered before this moment rang for nobody.
      for (const { kick } of events.values()) kick.signal()
    } catch (failure) {
      frontend[Symbol.dispose]()
      throw failure
    }
  }

  /**
   * What of the guest's memory can be shared. Ring addresses are told as guest-physical ones: the backend need not
   * learn where we have mapped it.
   */
  #shareable({ memory }: DeviceContext): SharedRegion[] {
    const regions = memory.regions.flatMap(({ guestAddress, size, file }) =>
      file ? [{ guestAddress, size, userAddress: guestAddress, offset: file.offset, fd: file.fd }] : [],
    )
    if (regions.length === 0)
      throw new VirtioError('BACKEND', `${this.name}: this guest's memory is private, and cannot be shared`)
    return regions
  }

  #lost(reason: Error): void {
    const active = this.#active
    if (!active) return
    this.#frontend = undefined
    const { reconnect = 0 } = this.#init
    if (reconnect === 0 || !active.inflight)
      return active.context.fail(new VirtioError('BACKEND', `${this.name}: ${reason.message}`))
    this.#init.log?.(`${this.name}: ${reason.message}; waiting for another`)
    active.deadline = performance.now() + reconnect
    active.retry.set(1)
  }

  #retry(): void {
    const active = this.#active
    if (!active || this.#frontend) return
    try {
      this.#start(this.#connect(), active)
      this.#init.log?.(`${this.name}: the backend is back`)
    } catch (error) {
      this.#frontend = undefined
      if (performance.now() < active.deadline) active.retry.set(RETRY)
      else active.context.fail(new VirtioError('BACKEND', `${this.name}: ${(error as Error).message}`))
    }
  }

  /** What the backend does wrong becomes the device's failure. */
  #fatal(work: () => void): void {
    try {
      work()
    } catch (error) {
      if (!(error instanceof VhostUserError || error instanceof SysError)) throw error
      throw new VirtioError('BACKEND', `${this.name}: ${error.message}`)
    }
  }
}
