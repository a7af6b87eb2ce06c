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

  /** Fires once after `milliseconds`, then every `interval` ms; 0 for the first disarms it. */
  set(milliseconds: number, interval = 0): void {
    const spec = new BigInt64Array(4)
    spec[0] = BigInt(Math.floor(interval / 1000))
    spec[1] = BigInt(Math.round((interval % 1000) * 1e6))
    spec[2] = BigInt(Math.floor(milliseconds / 1000))
    spec[3] = BigInt(Math.round((milliseconds % 1000) * 1e6))
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
