import { EPOLLIN, type Epoll, EventFd } from '@coracle/sys'

/** The eventfds of a device's queues: each is watched here, or is in the hands of another who serves the queue. */
export class Doorbells implements Disposable {
  readonly kicks: readonly EventFd[]
  readonly #loop: Epoll
  readonly #rung: (index: number) => void
  /** Queues in other hands, and the eventfds of ours that their interrupts come by, where no vector takes them. */
  readonly #away = new Map<number, EventFd | undefined>()

  /** @param rung hears of a doorbell of a queue that is here */
  constructor(loop: Epoll, queues: number, rung: (index: number) => void) {
    this.#loop = loop
    this.#rung = rung
    const kicks: EventFd[] = (this.kicks = [])
    try {
      for (let index = 0; index < queues; index++) {
        kicks.push(EventFd.create())
        this.#watch(index)
      }
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
  }

  /**
   * Gives a queue away (DeviceContext.handOver).
   * @param vector the eventfd of its interrupt vector; without one, `interrupt` is called for it
   */
  handOver(
    index: number,
    vector: EventFd | undefined,
    interrupt: () => void,
  ): { kick: EventFd; call: EventFd } {
    const kick = this.kicks[index]!
    this.#loop.remove(kick.fd)
    let call = vector
    if (!call) {
      const own = (call = EventFd.create())
      this.#loop.add(own.fd, EPOLLIN, () => {
        own.drain()
        interrupt()
      })
    }
    this.#away.set(index, vector ? undefined : call)
    return { kick, call }
  }

  /** Rings the bell of a queue that is away. @returns whether it is */
  pass(index: number): boolean {
    if (!this.#away.has(index)) return false
    this.kicks[index]!.signal()
    return true
  }

  /** All queues are here again, and no bell has rung. */
  takeBack(): void {
    for (const [index, call] of this.#away) {
      if (call) {
        this.#loop.remove(call.fd)
        call.close()
      }
      this.#watch(index)
    }
    this.#away.clear()
    for (const kick of this.kicks) kick.drain()
  }

  #watch(index: number): void {
    const kick = this.kicks[index]!
    this.#loop.add(kick.fd, EPOLLIN, () => {
      kick.drain()
      this.#rung(index)
    })
  }

  [Symbol.dispose](): void {
    this.takeBack()
    for (const kick of this.kicks) {
      this.#loop.remove(kick.fd)
      kick.close()
    }
  }
}
