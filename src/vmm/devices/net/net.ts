import {
  EPOLLERR,
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  SysError,
  TUN_F_CSUM,
  TUN_F_TSO4,
  TUN_F_TSO6,
  TUN_F_TSO_ECN,
} from '@coracle/sys'
import type { DeviceContext, SavedState, VirtioDevice, Virtqueue } from 'vhost-user-ts'
import { RateLimiter, type RateLimits, isLimited } from '../rate-limiter.js'
import { Turn } from '../turn.js'
import { Receiver } from './receiver.js'
import { Transmitter } from './transmitter.js'
import type { Wire } from './wire.js'

/** linux/virtio_net.h */
const VIRTIO_ID_NET = 1
const VIRTIO_NET_F_CSUM = 1n << 0n
const VIRTIO_NET_F_GUEST_CSUM = 1n << 1n
const VIRTIO_NET_F_MTU = 1n << 3n
const VIRTIO_NET_F_MAC = 1n << 5n
const VIRTIO_NET_F_GUEST_TSO4 = 1n << 7n
const VIRTIO_NET_F_GUEST_TSO6 = 1n << 8n
const VIRTIO_NET_F_GUEST_ECN = 1n << 9n
const VIRTIO_NET_F_HOST_TSO4 = 1n << 11n
const VIRTIO_NET_F_HOST_TSO6 = 1n << 12n
const VIRTIO_NET_F_HOST_ECN = 1n << 13n
const VIRTIO_NET_F_MRG_RXBUF = 1n << 15n
const VIRTIO_NET_F_STATUS = 1n << 16n
const VIRTIO_NET_S_LINK_UP = 1
/** struct virtio_net_config, up to the MTU. */
const CONFIG_SIZE = 12
const CONFIG_STATUS = 6
const CONFIG_MAX_PAIRS = 8
const CONFIG_MTU = 10
const RECEIVE = 0
const TRANSMIT = 1
const QUEUE_SIZE = 256
/** Frames of one direction handled before other devices get their turn. */
const BUDGET = 64
/** Lines for the log about frames that were dropped. */
const MAX_COMPLAINTS = 5

/** What the guest takes in place of finished frames, as the tap is told it. */
const OFFLOADS: readonly (readonly [bigint, number])[] = [
  [VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM],
  [VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4],
  [VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6],
  [VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN],
]

/** What the guest receives, and what it sends. */
export interface NetLimits {
  readonly receive?: RateLimits
  readonly transmit?: RateLimits
}

export interface NetInit {
  /** For logs, such as `eth0`. */
  readonly name: string
  /** Six octets in hexadecimal: `02:42:ac:11:00:02`. */
  readonly mac: string
  /** Bytes of a packet; undefined leaves it to the guest. */
  readonly mtu?: number
  readonly wire: Wire
  readonly limits?: NetLimits
  readonly log?: (message: string) => void
}

interface Active {
  readonly context: DeviceContext
  readonly receiveQueue: Virtqueue | undefined
  readonly transmitQueue: Virtqueue | undefined
  readonly receiver: Receiver | undefined
  readonly transmitter: Transmitter | undefined
  readonly turn: Turn
  readonly receiveLimiter: RateLimiter | undefined
  readonly transmitLimiter: RateLimiter | undefined
}

/**
 * The network device (virtio 1.2 §5.1), one pair of queues: frames go between the guest's memory and a wire by readv
 * and writev. There is no control queue, since nothing is controlled by it: all frames of the wire are the guest's,
 * whatever their address, and what it may send is the business of the network behind the wire.
 */
export class Net implements VirtioDevice {
  readonly name: string
  readonly type = VIRTIO_ID_NET
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE]
  readonly features: bigint
  readonly config = new Uint8Array(CONFIG_SIZE)
  readonly #wire: Wire
  readonly #limits: NetLimits
  readonly #log: ((message: string) => void) | undefined
  #active: Active | undefined
  /** What the wire is watched for; undefined: it is not in the loop. */
  #watched: number | undefined
  #broken = false
  #complaints = 0

  /** @throws RangeError for a hardware address that is none */
  constructor({ name, mac, mtu, wire, limits = {}, log }: NetInit) {
    this.name = `net ${name}`
    this.#wire = wire
    this.#limits = limits
    this.#log = log
    if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(mac)) throw new RangeError(`no hardware address: ${mac}`)
    this.config.set(Buffer.from(mac.replaceAll(':', ''), 'hex'))
    const config = new DataView(this.config.buffer)
    config.setUint16(CONFIG_STATUS, VIRTIO_NET_S_LINK_UP, true)
    config.setUint16(CONFIG_MAX_PAIRS, 1, true)
    config.setUint16(CONFIG_MTU, mtu ?? 0, true)
    this.features =
      VIRTIO_NET_F_CSUM |
      VIRTIO_NET_F_GUEST_CSUM |
      (mtu === undefined ? 0n : VIRTIO_NET_F_MTU) |
      VIRTIO_NET_F_MAC |
      VIRTIO_NET_F_GUEST_TSO4 |
      VIRTIO_NET_F_GUEST_TSO6 |
      VIRTIO_NET_F_GUEST_ECN |
      VIRTIO_NET_F_HOST_TSO4 |
      VIRTIO_NET_F_HOST_TSO6 |
      VIRTIO_NET_F_HOST_ECN |
      VIRTIO_NET_F_MRG_RXBUF |
      VIRTIO_NET_F_STATUS
  }

  activate(context: DeviceContext): void {
    const { queues, features, loop } = context
    const mergeable = (features & VIRTIO_NET_F_MRG_RXBUF) !== 0n
    const guarded = (work: () => void) => (): void => {
      try {
        work()
      } catch (error) {
        context.fail(error as Error)
      }
    }
    const [receiveQueue, transmitQueue] = queues
    const { receive, transmit } = this.#limits
    this.#active = {
      context,
      receiveQueue,
      transmitQueue,
      receiver: receiveQueue && new Receiver(receiveQueue, this.#wire, mergeable),
      transmitter:
        transmitQueue && new Transmitter(transmitQueue, this.#wire, (reason) => this.#complain(reason)),
      turn: new Turn(
        loop,
        guarded(() => this.#transmit()),
      ),
      receiveLimiter: isLimited(receive)
        ? new RateLimiter(
            receive,
            loop,
            guarded(() => this.#receive()),
          )
        : undefined,
      transmitLimiter: isLimited(transmit)
        ? new RateLimiter(
            transmit,
            loop,
            guarded(() => this.#transmit()),
          )
        : undefined,
    }
    if (this.#broken) return
    this.#wire.setOffload(
      OFFLOADS.reduce((flags, [feature, flag]) => ((features & feature) === 0n ? flags : flags | flag), 0),
    )
    const ready = guarded(() => this.#receive())
    const room = guarded(() => this.#transmit())
    loop.add(this.#wire.fd, 0, (events) => {
      if ((events & (EPOLLERR | EPOLLHUP)) !== 0 && (this.#watched! & EPOLLIN) === 0)
        return this.#break('closed')
      if ((events & EPOLLOUT) !== 0) {
        this.#watch(EPOLLOUT, false)
        room()
      }
      if (this.#active && (events & ~EPOLLOUT) !== 0) ready()
    })
    this.#watched = 0
  }

  notify(index: number): void {
    if (index === RECEIVE) this.#receive()
    else if (index === TRANSMIT) this.#transmit()
  }

  reset(): void {
    const active = this.#active
    if (!active) return
    this.#active = undefined
    if (this.#watched !== undefined) active.context.loop.remove(this.#wire.fd)
    this.#watched = undefined
    active.receiver?.release()
    active.receiver?.[Symbol.dispose]()
    active.turn[Symbol.dispose]()
    active.receiveLimiter?.[Symbol.dispose]()
    active.transmitLimiter?.[Symbol.dispose]()
  }

  /** Buffers that were only held ready go back to the driver: it may be served by another process next. */
  save(): SavedState {
    this.#active?.receiver?.release()
    return null
  }

  restore(state: SavedState): void {
    if (state !== null) throw new Error(`${this.name}: no state of a network device`)
  }

  #receive(): void {
    const { context, receiver, receiveQueue: queue, receiveLimiter: limiter } = this.#active ?? {}
    if (!context || !receiver || !queue || this.#watched === undefined) return
    let watch = true
    for (let budget = BUDGET; budget > 0; budget--) {
      if (limiter && !limiter.pass()) {
        watch = false
        break
      }
      let length: number
      try {
        length = receiver.receive()
      } catch (error) {
        if (!(error instanceof SysError)) throw error
        this.#break(error.code)
        break
      }
      if (length > 0) limiter?.charge(length)
      if (length === -1) break
      // With buffers at hand the wire wakes us, without any the driver does.
      if (length === -2 && !queue.enableNotifications()) {
        watch = false
        break
      }
    }
    this.#watch(EPOLLIN, watch)
    if (watch) queue.disableNotifications()
    if (queue.flush()) context.interrupt(RECEIVE)
  }

  #transmit(): void {
    const { context, transmitter, transmitQueue: queue, transmitLimiter: limiter, turn } = this.#active ?? {}
    if (!context || !transmitter || !queue || !turn) return
    let budget = BUDGET
    let stopped = false
    queue.disableNotifications()
    do {
      for (let length = 0; budget > 0 && length >= 0 && !stopped; budget--) {
        if (limiter && !limiter.pass()) stopped = true
        else {
          length = transmitter.transmit()
          if (length > 0) limiter?.charge(length)
          if (length === -2) {
            stopped = true
            this.#watch(EPOLLOUT, true)
          }
        }
      }
    } while (!stopped && queue.enableNotifications() && budget > 0)
    if (!stopped && budget <= 0) turn.later()
    if (queue.flush()) context.interrupt(TRANSMIT)
  }

  #watch(event: number, on: boolean): void {
    const { context } = this.#active ?? {}
    if (!context || this.#watched === undefined) return
    const events = on ? this.#watched | event : this.#watched & ~event
    if (events === this.#watched) return
    this.#watched = events
    context.loop.modify(this.#wire.fd, events)
  }

  /** The wire is gone for good, such as a tap that was deleted: the guest sees its cable unplugged. */
  #break(reason: string): void {
    const { context } = this.#active ?? {}
    if (!context || this.#broken) return
    this.#broken = true
    if (this.#watched !== undefined) context.loop.remove(this.#wire.fd)
    this.#watched = undefined
    this.#log?.(`${this.name}: ${this.#wire.name} is gone (${reason})`)
    new DataView(this.config.buffer).setUint16(CONFIG_STATUS, 0, true)
    context.configChanged()
  }

  /** The guest decides how often there is a reason. */
  #complain(reason: string): void {
    if (this.#complaints++ < MAX_COMPLAINTS) this.#log?.(`${this.name}: dropped ${reason}`)
  }
}
