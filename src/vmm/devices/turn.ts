import { EPOLLIN, type Epoll, EventFd } from '@coracle/sys'
import type { DeviceContext } from 'vhost-user-ts'

/**
 * Lets a device with much to do give way: it handles a bounded batch, asks to go on {@link later}, and the other
 * devices of the thread have their turn first. A driver that adds requests without end thus slows only itself.
 */
export class Turn implements Disposable {
  readonly #event = EventFd.create()
  readonly #loop: Epoll

  /** @param work goes on with it; must not throw */
  constructor(loop: Epoll, work: () => void) {
    this.#loop = loop
    loop.add(this.#event.fd, EPOLLIN, () => {
      this.#event.drain()
      work()
    })
  }

  /** For a device's work: what it throws fails the device. */
  static of(context: DeviceContext, work: () => void): Turn {
    return new Turn(context.loop, () => {
      try {
        work()
      } catch (error) {
        context.fail(error as Error)
      }
    })
  }

  /** Calls the work again once the loop has been round. */
  later(): void {
    this.#event.signal()
  }

  [Symbol.dispose](): void {
    this.#loop.remove(this.#event.fd)
    this.#event.close()
  }
}
