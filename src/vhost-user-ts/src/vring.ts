import { type Epoll, EPOLLIN, EventFd, type Fd } from '@coracle/sys'
import type { InflightQueue } from './inflight.js'
import type { SharedMemory } from './shared-memory.js'
import { Virtqueue } from './virtqueue.js'

/** The addresses of VHOST_USER_SET_VRING_ADDR: the frontend's own. */
export interface VringAddresses {
  readonly descriptorTable: number
  readonly usedRing: number
  readonly availableRing: number
}

/** One ring as a frontend sets it up, message by message. */
export class Vring implements Disposable {
  size = 0
  addresses: VringAddresses | undefined
  /** Where to go on in the available ring. */
  base = 0
  enabled = false
  queue: Virtqueue | undefined
  readonly #index: number
  readonly #loop: Epoll
  #kick: EventFd | undefined
  #call: EventFd | undefined
  #error: EventFd | undefined

  constructor(index: number, loop: Epoll) {
    this.#index = index
    this.#loop = loop
  }

  /** The frontend gave it a doorbell: "the ring is started" (vhost-user.rst, "Ring states"). */
  get started(): boolean {
    return this.#kick !== undefined
  }

  /** Started, enabled, and with all that a queue needs. */
  get ready(): boolean {
    return this.started && this.enabled && this.addresses !== undefined && this.size > 0
  }

  start(kick: Fd, rung: () => void): void {
    this.#dropKick()
    const event = (this.#kick = adopt(kick))
    this.#loop.add(event.fd, EPOLLIN, () => {
      event.drain()
      rung()
    })
  }

  setCall(call: Fd | undefined): void {
    this.#call?.close()
    this.#call = call && adopt(call)
  }

  setError(error: Fd | undefined): void {
    this.#error?.close()
    this.#error = error && adopt(error)
  }

  interrupt(): void {
    this.#call?.signal()
  }

  signalError(): void {
    this.#error?.signal()
  }

  /** @throws VirtioError, VhostUserError */
  makeQueue(
    shared: SharedMemory,
    maxSize: number,
    features: bigint,
    inflight: InflightQueue | undefined,
  ): Virtqueue {
    const addresses = this.addresses!
    const usedRing = shared.guestAddress(addresses.usedRing)
    return (this.queue = new Virtqueue(shared.memory, {
      index: this.#index,
      size: this.size,
      maxSize,
      descriptorTable: shared.guestAddress(addresses.descriptorTable),
      availableRing: shared.guestAddress(addresses.availableRing),
      usedRing,
      features,
      nextAvailable: this.base,
      nextUsed: shared.memory.readU16(usedRing + 2),
      ...(inflight ? { inflight } : {}),
    }))
  }

  /** Forgets the queue, but not where it was. */
  dropQueue(): void {
    if (this.queue) this.base = this.queue.nextAvailable
    this.queue = undefined
  }

  stop(): void {
    this.dropQueue()
    this.#dropKick()
  }

  #dropKick(): void {
    if (!this.#kick) return
    this.#loop.remove(this.#kick.fd)
    this.#kick.close()
    this.#kick = undefined
  }

  [Symbol.dispose](): void {
    this.stop()
    this.setCall(undefined)
    this.setError(undefined)
  }
}

function adopt(fd: Fd): EventFd {
  // The frontend chose it: it must not be able to block us.
  fd.setNonBlocking()
  return new EventFd(fd)
}
