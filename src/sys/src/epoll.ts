import { libc } from './libc.js'
import { check, checkAgain } from './error.js'
import { Fd } from './fd.js'

export const EPOLLIN = 0x001
export const EPOLLOUT = 0x004
export const EPOLLERR = 0x008
export const EPOLLHUP = 0x010
export const EPOLLRDHUP = 0x2000
const EPOLL_CLOEXEC = 0o2000000
const EPOLL_CTL_ADD = 1
const EPOLL_CTL_DEL = 2
const EPOLL_CTL_MOD = 3
const MAX_EVENTS = 64
/** sizeof(struct epoll_event): packed on x86-64 (sys/epoll.h). */
const EVENT_SIZE = 12

/** Called with the ready `EPOLL*` bits. */
export type EpollHandler = (events: number) => void

/**
 * A synchronous event loop for a thread of its own (a worker): it waits for eventfds, sockets and taps without
 * Node's loop in between, so a queue's doorbell costs one wake-up and no promise.
 */
export class Epoll implements Disposable {
  readonly #fd = new Fd(check(libc.epollCreate(EPOLL_CLOEXEC), 'epoll_create1'))
  readonly #handlers = new Map<number, { readonly token: number; readonly handler: EpollHandler }>()
  readonly #events = new DataView(new ArrayBuffer(MAX_EVENTS * EVENT_SIZE))
  #stopped = false
  #lastToken = 0

  /** Watches `fd`, level-triggered, until {@link remove}; remove it before it is closed. */
  add(fd: Fd, events: number, handler: EpollHandler): void {
    const token = (this.#lastToken = (this.#lastToken + 1) >>> 0)
    this.#control(EPOLL_CTL_ADD, fd, events, token)
    this.#handlers.set(fd.number, { token, handler })
  }

  /** Changes what is waited for; 0 leaves only errors and hang-ups. */
  modify(fd: Fd, events: number): void {
    this.#control(EPOLL_CTL_MOD, fd, events, this.#handlers.get(fd.number)?.token ?? 0)
  }

  remove(fd: Fd): void {
    if (this.#handlers.delete(fd.number)) this.#control(EPOLL_CTL_DEL, fd, 0, 0)
  }

  /** Handles what is ready, waiting for it at most `timeout` ms (-1: for ever). @returns events handled. */
  wait(timeout = -1): number {
    const count = checkAgain(libc.epollWait(this.#fd.number, this.#events, MAX_EVENTS, timeout), 'epoll_wait')
    for (let i = 0; i < count; i++) {
      const at = i * EVENT_SIZE
      const entry = this.#handlers.get(this.#events.getInt32(at + 4, true))
      if (entry?.token === this.#events.getUint32(at + 8, true))
        entry.handler(this.#events.getUint32(at, true))
    }
    return Math.max(count, 0)
  }

  /** Handles events until {@link stop} is called from one of them. */
  run(): void {
    this.#stopped = false
    while (!this.#stopped) this.wait()
  }

  stop(): void {
    this.#stopped = true
  }

  close(): void {
    this.#handlers.clear()
    this.#fd.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  /**
   * struct epoll_event: the events, then our 64 bits: the descriptor's number, and a token that tells the one that
   * is watched now from one of the same number that an earlier handler of this round has closed.
   */
  #control(operation: number, fd: Fd, events: number, token: number): void {
    const event = new DataView(new ArrayBuffer(EVENT_SIZE))
    event.setUint32(0, events, true)
    event.setInt32(4, fd.number, true)
    event.setUint32(8, token, true)
    check(libc.epollCtl(this.#fd.number, operation, fd.number, event), 'epoll_ctl')
  }
}
