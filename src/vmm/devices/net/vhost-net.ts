import { type EventFd, type Fd, SysError } from '@coracle/sys'
import {
  type DeviceContext,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_VERSION_1,
  type Virtqueue,
} from 'vhost-user-ts'
import { Turn } from '../turn.js'
import { VIRTIO_NET_F_MRG_RXBUF } from './features.js'
import type { Carrier, Wire } from './wire.js'

/* linux/vhost.h, linux/vhost_types.h */
const VHOST_GET_FEATURES = 0x8008af00
const VHOST_SET_FEATURES = 0x4008af00
const VHOST_SET_OWNER = 0xaf01
const VHOST_RESET_OWNER = 0xaf02
const VHOST_SET_MEM_TABLE = 0x4008af03
const VHOST_SET_VRING_NUM = 0x4008af10
const VHOST_SET_VRING_ADDR = 0x4028af11
const VHOST_SET_VRING_BASE = 0x4008af12
const VHOST_GET_VRING_BASE = 0xc008af12
const VHOST_SET_VRING_KICK = 0x4008af20
const VHOST_SET_VRING_CALL = 0x4008af21
const VHOST_NET_SET_BACKEND = 0x4008af30
const NO_BACKEND = -1
/** What we offer a driver of the ring and of its buffers; a kernel that lacks one of them (before 4.0) is not used. */
const NEEDED = VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF

/**
 * vhost-net: the kernel serves the queues of a network device itself, between the guest's memory and a tap. A doorbell
 * wakes a thread of the kernel, and its interrupt goes into the guest by irqfd: nothing of a frame passes this process.
 *
 * The kernel checks rings and descriptors as {@link Virtqueue} does; where the driver breaks a rule, that queue stops.
 */
export class VhostNet implements Carrier {
  readonly #fd: Fd
  readonly #context: DeviceContext
  readonly #wire: Wire
  readonly #queues: readonly Virtqueue[]
  readonly #kicks: EventFd[] = []
  readonly #turn: Turn
  readonly #unwatch: () => void
  #resting = false
  #over = false

  private constructor(fd: Fd, context: DeviceContext, wire: Wire, gone: (reason: string) => void) {
    this.#fd = fd
    this.#context = context
    this.#wire = wire
    this.#queues = context.queues.filter((queue) => queue !== undefined)
    this.#turn = new Turn(context.loop, () => this.#goOn())
    this.#unwatch = context.memory.watch(() => this.#setMemory())
    // For its end alone: what comes is the kernel's.
    context.loop.add(wire.fd, 0, () => gone('closed'))
  }

  /**
   * Gives the kernel all that the driver set up.
   * @param given /dev/vhost-net, open; it stays the caller's
   * @param gone hears that the wire is of no more use
   * @throws SysError, Error where the kernel cannot; the queues are still ours then
   */
  static start(given: Fd, context: DeviceContext, wire: Wire, gone: (reason: string) => void): VhostNet {
    const { handOver } = context
    if (!handOver) throw new Error('this transport keeps its queues to itself')
    const fd = given.duplicate()
    let made: VhostNet
    try {
      const features = new BigUint64Array(1)
      fd.ioctl(VHOST_GET_FEATURES, features, 'VHOST_GET_FEATURES')
      const missing = NEEDED & ~features[0]!
      if (missing !== 0n) throw new Error(`it lacks features 0x${missing.toString(16)}`)
      fd.ioctl(VHOST_SET_OWNER, 0, 'VHOST_SET_OWNER')
      made = new VhostNet(fd, context, wire, gone)
    } catch (error) {
      fd.close()
      throw error
    }
    try {
      made.#describe()
    } catch (error) {
      made[Symbol.dispose]()
      throw error
    }
    try {
      for (const { index } of made.#queues) made.#connect(index, handOver.call(context, index))
      made.#goOn()
    } catch (error) {
      // Too late for anybody else to serve them.
      context.fail(error as Error)
    }
    return made
  }

  /** The kernel hears doorbells by itself. */
  notify(): void {
    return
  }

  /** When this returns the kernel touches neither memory nor wire, and has given back all that it took. */
  rest(): void {
    if (this.#resting) return
    this.#resting = true
    for (const queue of this.#queues) {
      const { index, usedRing } = queue
      this.#setState(VHOST_NET_SET_BACKEND, index, NO_BACKEND)
      const next = this.#setState(VHOST_GET_VRING_BASE, index, 0)
      queue.moveTo(next, this.#context.memory.readU16(usedRing + 2))
    }
    this.#turn.later()
  }

  [Symbol.dispose](): void {
    if (this.#over) return
    this.#over = true
    this.#unwatch()
    this.#context.loop.remove(this.#wire.fd)
    this.#turn[Symbol.dispose]()
    try {
      for (const { index } of this.#queues) this.#setState(VHOST_NET_SET_BACKEND, index, NO_BACKEND)
      // Who gave it keeps it open, and may want it again.
      this.#fd.ioctl(VHOST_RESET_OWNER, 0, 'VHOST_RESET_OWNER')
    } catch (error) {
      if (!(error instanceof SysError)) throw error
    }
    this.#fd.close()
  }

  /** Features, memory, and where the queues are. */
  #describe(): void {
    const { memory, features } = this.#context
    this.#fd.ioctl(VHOST_SET_FEATURES, new BigUint64Array([features & NEEDED]), 'VHOST_SET_FEATURES')
    this.#setMemory()
    for (const { index, size, descriptorTable, availableRing, usedRing, nextAvailable } of this.#queues) {
      this.#setState(VHOST_SET_VRING_NUM, index, size)
      // struct vhost_vring_addr: index, flags, then our addresses of the parts, and of a log.
      const addresses = new BigUint64Array(5)
      addresses[0] = BigInt(index)
      addresses[1] = memory.translate(descriptorTable, size * 16)
      addresses[2] = memory.translate(usedRing, 6 + size * 8)
      addresses[3] = memory.translate(availableRing, 6 + size * 2)
      this.#fd.ioctl(VHOST_SET_VRING_ADDR, addresses, 'VHOST_SET_VRING_ADDR')
      this.#setState(VHOST_SET_VRING_BASE, index, nextAvailable)
    }
  }

  /** The kernel lets go of what is gone from the table before this returns. */
  #setMemory(): void {
    const { regions } = this.#context.memory
    // struct vhost_memory: the number of regions; of each, guest address, size, our address.
    const table = new BigUint64Array(1 + regions.length * 4)
    table[0] = BigInt(regions.length)
    regions.forEach(({ guestAddress, size, mapping, mappingOffset }, i) =>
      table.set([BigInt(guestAddress), BigInt(size), mapping.address + BigInt(mappingOffset), 0n], 1 + i * 4),
    )
    this.#fd.ioctl(VHOST_SET_MEM_TABLE, table, 'VHOST_SET_MEM_TABLE')
  }

  #connect(index: number, { kick, call }: { readonly kick: EventFd; readonly call: EventFd }): void {
    this.#setState(VHOST_SET_VRING_KICK, index, kick.number)
    this.#setState(VHOST_SET_VRING_CALL, index, call.number)
    this.#kicks.push(kick)
  }

  #goOn(): void {
    this.#resting = false
    try {
      for (const { index } of this.#queues) this.#setState(VHOST_NET_SET_BACKEND, index, this.#wire.fd.number)
      // A doorbell that rang in between was in vain.
      for (const kick of this.#kicks) kick.signal()
    } catch (error) {
      this.#context.fail(error as Error)
    }
  }

  /** struct vhost_vring_state and struct vhost_vring_file: the queue's index, and a number. */
  #setState(request: number, index: number, value: number): number {
    const state = new Int32Array([index, value])
    this.#fd.ioctl(request, state, `the vhost ioctl 0x${request.toString(16)}`)
    return state[1]!
  }
}
