import type { Fd } from '@coracle/sys'
import type { DeviceContext, SavedState, VirtioDevice } from 'vhost-user-ts'
import { isLimited } from '../rate-limiter.js'
import * as f from './features.js'
import { FrameLoop, type NetLimits } from './frame-loop.js'
import { VhostNet } from './vhost-net.js'
import type { Carrier, Wire } from './wire.js'

/** struct virtio_net_config, up to the MTU. */
const CONFIG_SIZE = 12
const CONFIG_STATUS = 6
const CONFIG_MAX_PAIRS = 8
const CONFIG_MTU = 10
const QUEUE_SIZE = 256
/** Lines for the log about frames that were dropped. */
const MAX_COMPLAINTS = 5

export type { NetLimits }

export interface NetInit {
  /** For logs, such as `eth0`. */
  readonly name: string
  /** Six octets in hexadecimal: `02:42:ac:11:00:02`. */
  readonly mac: string
  /** Bytes of a packet; undefined leaves it to the guest. */
  readonly mtu?: number
  readonly wire: Wire
  /** With limits the frames go through this process, since the kernel's vhost knows none. */
  readonly limits?: NetLimits
  /**
   * /dev/vhost-net, for the kernel to carry the frames; where it cannot, the log says so and this process does. The wire
   * must be a tap. @default this process does
   */
  readonly vhost?: Fd
  readonly log?: (message: string) => void
}

/**
 * The network device (virtio 1.2 §5.1), one pair of queues: frames go between the guest's memory and a wire, carried by
 * the kernel ({@link VhostNet}) or by this process ({@link FrameLoop}). There is no control queue, since nothing is
 * controlled by it: all frames of the wire are the guest's, whatever their address, and what it may send is the business
 * of the network behind the wire.
 */
export class Net implements VirtioDevice {
  readonly name: string
  readonly type = f.VIRTIO_ID_NET
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE]
  readonly features: bigint
  readonly config = new Uint8Array(CONFIG_SIZE)
  readonly #init: NetInit
  #context: DeviceContext | undefined
  #carrier: Carrier | undefined
  #broken = false
  #complaints = 0

  /** @throws RangeError for a hardware address that is none */
  constructor(init: NetInit) {
    const { name, mac, mtu } = init
    this.name = `net ${name}`
    this.#init = init
    if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(mac)) throw new RangeError(`no hardware address: ${mac}`)
    this.config.set(Buffer.from(mac.replaceAll(':', ''), 'hex'))
    const config = new DataView(this.config.buffer)
    config.setUint16(CONFIG_STATUS, f.VIRTIO_NET_S_LINK_UP, true)
    config.setUint16(CONFIG_MAX_PAIRS, 1, true)
    config.setUint16(CONFIG_MTU, mtu ?? 0, true)
    this.features =
      f.VIRTIO_NET_F_CSUM |
      f.VIRTIO_NET_F_GUEST_CSUM |
      (mtu === undefined ? 0n : f.VIRTIO_NET_F_MTU) |
      f.VIRTIO_NET_F_MAC |
      f.VIRTIO_NET_F_GUEST_TSO4 |
      f.VIRTIO_NET_F_GUEST_TSO6 |
      f.VIRTIO_NET_F_GUEST_ECN |
      f.VIRTIO_NET_F_HOST_TSO4 |
      f.VIRTIO_NET_F_HOST_TSO6 |
      f.VIRTIO_NET_F_HOST_ECN |
      f.VIRTIO_NET_F_MRG_RXBUF |
      f.VIRTIO_NET_F_STATUS
  }

  activate(context: DeviceContext): void {
    this.#context = context
    if (this.#broken) return
    const { wire, limits = {} } = this.#init
    wire.setOffload(f.offloadsOf(context.features))
    const gone = (reason: string): void => this.#break(reason)
    const dropped = (reason: string): void => this.#complain(reason)
    this.#carrier = this.#kernel(context, gone) ?? new FrameLoop(context, { wire, limits, gone, dropped })
  }

  notify(index: number): void {
    this.#carrier?.notify(index)
  }

  reset(): void {
    this.#carrier?.[Symbol.dispose]()
    this.#carrier = undefined
    this.#context = undefined
  }

  save(): SavedState {
    this.#carrier?.rest()
    return null
  }

  restore(state: SavedState): void {
    if (state !== null) throw new Error(`${this.name}: no state of a network device`)
  }

  /** The kernel as the carrier, if it is wanted and can. */
  #kernel(context: DeviceContext, gone: (reason: string) => void): Carrier | undefined {
    const { vhost, wire, limits, log } = this.#init
    if (vhost === undefined || isLimited(limits?.receive) || isLimited(limits?.transmit)) return undefined
    try {
      return VhostNet.start(vhost, context, wire, gone)
    } catch (error) {
      log?.(`${this.name}: the kernel does not carry its frames, we do: ${(error as Error).message}`)
      return undefined
    }
  }

  /** The wire is gone for good, such as a tap that was deleted: the guest sees its cable unplugged. */
  #break(reason: string): void {
    if (!this.#context || this.#broken) return
    this.#broken = true
    this.#carrier?.[Symbol.dispose]()
    this.#carrier = undefined
    this.#init.log?.(`${this.name}: ${this.#init.wire.name} is gone (${reason})`)
    new DataView(this.config.buffer).setUint16(CONFIG_STATUS, 0, true)
    this.#context.configChanged()
  }

  /** The guest decides how often there is a reason. */
  #complain(reason: string): void {
    if (this.#complaints++ < MAX_COMPLAINTS) this.#init.log?.(`${this.name}: dropped ${reason}`)
  }
}
