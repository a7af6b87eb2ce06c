import { libc } from './libc.js'
import { check } from './error.js'
import { Fd } from './fd.js'

const CLOCK_MONOTONIC = 1
const TFD_CLOEXEC = 0o2000000
const TFD_NONBLOCK = 0o4000

/** A timerfd(2) on the monotonic clock, for timeouts inside an {@link Epoll} loop. */
export class TimerFd implements Disposable {
  readonly fd = new Fd(
    check(libc.timerfdCreate(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), 'timerfd_create'),
  )

  /**
   * Fires once after `milliseconds`, then every `interval` ms; 0 for the first disarms it.
   * @throws RangeError for what is no duration
   */
  set(milliseconds: number, interval = 0): void {
    // struct itimerspec: interval, then value, each in seconds and nanoseconds.
    const spec = new BigInt64Array([...split(interval), ...split(milliseconds)])
    check(libc.timerfdSettime(this.fd.number, 0, spec, null), 'timerfd_settime')
  }

  /** @returns whether it had fired. */
  drain(): boolean {
    return this.fd.read(new BigUint64Array(1)) === 8
  }

  [Symbol.dispose](): void {
    this.fd.close()
  }
}

function split(milliseconds: number): [seconds: bigint, nanoseconds: bigint] {
  if (!(milliseconds >= 0 && milliseconds < 2 ** 53)) throw new RangeError(`a timer of ${milliseconds} ms`)
  const seconds = Math.floor(milliseconds / 1000)
  // A duration so short that it would round to nothing must not disarm the timer.
  const nanoseconds = Math.min(Math.ceil((milliseconds - seconds * 1000) * 1e6), 999_999_999)
  return [BigInt(seconds), BigInt(nanoseconds)]
}
