import { EPOLLIN, type Epoll, TimerFd } from '@coracle/sys'

/** So much a second on average, in one unit. */
export interface Rate {
  /** Units a second, above 0. */
  readonly perSecond: number
  /** Units that may go at once after a time of rest. @default a second's */
  readonly burst?: number
}

/** What may pass; absent is without limit. */
export interface RateLimits {
  readonly bytes?: Rate
  /** Requests of a disk, frames of a network. */
  readonly operations?: Rate
}

/**
 * A token bucket. Something may pass as long as there are tokens, and takes as many as it is large: so what is larger
 * than the bucket passes too, and is paid for by what follows.
 */
export class TokenBucket {
  readonly #perMs: number
  readonly #size: number
  #tokens: number
  #at: number

  /** @param now in ms, of a clock that only goes forward @throws RangeError */
  constructor({ perSecond, burst = perSecond }: Rate, now: number) {
    if (!(perSecond > 0 && burst > 0 && perSecond < 2 ** 53 && burst < 2 ** 53))
      throw new RangeError(`no rate: ${perSecond} a second in bursts of ${burst}`)
    this.#perMs = perSecond / 1000
    this.#size = this.#tokens = burst
    this.#at = now
  }

  /** How long to wait until something may pass, in ms. */
  wait(now: number): number {
    this.#tokens = Math.min(this.#size, this.#tokens + (now - this.#at) * this.#perMs)
    this.#at = now
    return this.#tokens > 0 ? 0 : Math.max(-this.#tokens / this.#perMs, Number.MIN_VALUE)
  }

  take(units: number): void {
    this.#tokens -= units
  }
}

/** The wait is rounded up to this many ms: the same work in fewer wake-ups. */
const TICK = 1

/**
 * Holds a device back to its rates: it asks {@link pass} before each operation, stops where that says no, and is called
 * back, once, when it may go on.
 */
export class RateLimiter implements Disposable {
  readonly #buckets: readonly TokenBucket[]
  readonly #bytes: TokenBucket | undefined
  readonly #operations: TokenBucket | undefined
  readonly #loop: Epoll
  readonly #timer = new TimerFd()
  #waiting = false

  /** @param resume goes on; must not throw */
  constructor({ bytes, operations }: RateLimits, loop: Epoll, resume: () => void) {
    const now = performance.now()
    this.#bytes = bytes && new TokenBucket(bytes, now)
    this.#operations = operations && new TokenBucket(operations, now)
    this.#buckets = [this.#bytes, this.#operations].filter((each) => each !== undefined)
    this.#loop = loop
    loop.add(this.#timer.fd, EPOLLIN, () => {
      this.#timer.drain()
      this.#waiting = false
      resume()
    })
  }

  /** Whether the next operation may begin now; where not, the device is called back. */
  pass(): boolean {
    if (this.#waiting) return false
    let wait = 0
    const now = performance.now()
    for (const bucket of this.#buckets) wait = Math.max(wait, bucket.wait(now))
    if (wait === 0) return true
    this.#waiting = true
    this.#timer.set(Math.max(wait, TICK))
    return false
  }

  /** One operation of so many bytes has passed. */
  charge(bytes: number): void {
    this.#bytes?.take(bytes)
    this.#operations?.take(1)
  }

  [Symbol.dispose](): void {
    this.#loop.remove(this.#timer.fd)
    this.#timer[Symbol.dispose]()
  }
}

/** Whether anything is limited at all. */
export const isLimited = (limits: RateLimits | undefined): limits is RateLimits =>
  limits?.bytes !== undefined || limits?.operations !== undefined
