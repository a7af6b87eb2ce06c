import { libc } from './libc.js'
import { check } from './error.js'
import { Fd } from './fd.js'

const EFD_CLOEXEC = 0o2000000
const EFD_NONBLOCK = 0o4000

/** An eventfd(2): the form of every doorbell (ioeventfd), interrupt (irqfd) and vhost-user kick and call. */
export class EventFd implements Disposable {
  readonly #value = new BigUint64Array(1)
  constructor(readonly fd: Fd) {}

  static create(): EventFd {
    return new EventFd(new Fd(check(libc.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), 'eventfd')))
  }

  get number(): number {
    return this.fd.number
  }

  /** Adds one: wakes the reader, or injects the interrupt. A counter at its maximum stays there. */
  signal(): void {
    this.#value[0] = 1n
    this.fd.write(this.#value)
  }

  /** Takes the counter to zero. @returns whether it had been signalled. */
  drain(): boolean {
    return this.fd.read(this.#value) === 8
  }

  close(): void {
    this.fd.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }
}
