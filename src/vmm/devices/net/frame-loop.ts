import { EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, SysError } from '@coracle/sys'
import type { DeviceContext, Virtqueue } from 'vhost-user-ts'
import { RateLimiter, type RateLimits, isLimited } from '../rate-limiter.js'
import { Turn } from '../turn.js'
import { RECEIVE, TRANSMIT, VIRTIO_NET_F_MRG_RXBUF } from './features.js'
import { Receiver } from './receiver.js'
import { Transmitter } from './transmitter.js'
import type { Carrier, Wire } from './wire.js'

/** Frames of one direction handled before other devices get their turn. */
const BUDGET = 64

/** What the guest receives, and what it sends. */
export interface NetLimits {
  readonly receive?: RateLimits
  readonly transmit?: RateLimits
}

export interface FrameLoopInit {
  readonly wire: Wire
  readonly limits: NetLimits
  /** Hears that the wire is of no more use; the loop is then to be disposed of. */
  gone(reason: string): void
  /** Hears of frames of the guest that the wire did not take. */
  dropped(reason: string): void
}

/** Carries frames on the device's thread: by readv and writev on guest memory, in batches, held back to the limits. */
export class FrameLoop implements Carrier {
  readonly #context: DeviceContext
  readonly #init: FrameLoopInit
  readonly #queues: readonly (Virtqueue | undefined)[]
  readonly #receiver: Receiver | undefined
  readonly #transmitter: Transmitter | undefined
  readonly #turn: Turn
  readonly #limiters: readonly (RateLimiter | undefined)[]
  /** What the wire is watched for. */
  #watched = 0
  #over = false

  constructor(context: DeviceContext, init: FrameLoopInit) {
    const { loop, queues, features } = context
    const { wire, limits } = init
    const [receiveQueue, transmitQueue] = queues
    this.#context = context
    this.#init = init
    this.#queues = queues
    this.#receiver =
      receiveQueue && new Receiver(receiveQueue, wire, (features & VIRTIO_NET_F_MRG_RXBUF) !== 0n)
    this.#transmitter =
      transmitQueue && new Transmitter(transmitQueue, wire, (reason) => init.dropped(reason))
    const limiter = (rates: RateLimits | undefined, index: number): RateLimiter | undefined =>
      isLimited(rates) ? new RateLimiter(rates, loop, () => this.#guarded(index)) : undefined
    this.#limiters = [limiter(limits.receive, RECEIVE), limiter(limits.transmit, TRANSMIT)]
    this.#turn = new Turn(loop, () => this.#guarded(TRANSMIT))
    loop.add(wire.fd, 0, (events) => this.#awake(events))
  }

  notify(index: number): void {
    if (index === RECEIVE) this.#receive()
    else if (index === TRANSMIT) this.#transmit()
  }

  /** Buffers that were only held ready go back to the driver: another process may serve it next. */
  rest(): void {
    this.#receiver?.release()
  }

  [Symbol.dispose](): void {
    if (this.#over) return
    this.#over = true
    this.#context.loop.remove(this.#init.wire.fd)
    this.#receiver?.release()
    this.#receiver?.[Symbol.dispose]()
    this.#turn[Symbol.dispose]()
    for (const limiter of this.#limiters) limiter?.[Symbol.dispose]()
  }

  #awake(events: number): void {
    if ((events & (EPOLLERR | EPOLLHUP)) !== 0 && (this.#watched & EPOLLIN) === 0)
      return this.#init.gone('closed')
    if ((events & EPOLLOUT) !== 0) {
      this.#watch(EPOLLOUT, false)
      this.#guarded(TRANSMIT)
    }
    if ((events & ~EPOLLOUT) !== 0) this.#guarded(RECEIVE)
  }

  /** Like {@link notify}, called from the loop: nobody is there to catch what it throws. */
  #guarded(index: number): void {
    if (this.#over) return
    try {
      this.notify(index)
    } catch (error) {
      this.#context.fail(error as Error)
    }
  }

  #receive(): void {
    const queue = this.#queues[RECEIVE]
    if (!this.#receiver || !queue) return
    const limiter = this.#limiters[RECEIVE]
    let watch = true
    let lost: string | undefined
    for (let budget = BUDGET; budget > 0; budget--) {
      if (limiter && !limiter.pass()) {
        watch = false
        break
      }
      let length: number
      try {
        length = this.#receiver.receive()
      } catch (error) {
        if (!(error instanceof SysError)) throw error
        lost = error.code
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
    if (queue.flush()) this.#context.interrupt(RECEIVE)
    if (lost !== undefined) this.#init.gone(lost)
  }

  #transmit(): void {
    const queue = this.#queues[TRANSMIT]
    if (!this.#transmitter || !queue) return
    const limiter = this.#limiters[TRANSMIT]
    let budget = BUDGET
    let stopped = false
    queue.disableNotifications()
    do {
      for (let length = 0; budget > 0 && length >= 0; budget--) {
        if (limiter && !limiter.pass()) length = -2
        else {
          length = this.#transmitter.transmit()
          if (length > 0) limiter?.charge(length)
          if (length === -2) this.#watch(EPOLLOUT, true)
        }
        stopped = length === -2
      }
    } while (!stopped && queue.enableNotifications() && budget > 0)
    if (!stopped && budget <= 0) this.#turn.later()
    if (queue.flush()) this.#context.interrupt(TRANSMIT)
  }

  #watch(event: number, on: boolean): void {
    const events = on ? this.#watched | event : this.#watched & ~event
    if (events === this.#watched) return
    this.#watched = events
    this.#context.loop.modify(this.#init.wire.fd, events)
  }
}
