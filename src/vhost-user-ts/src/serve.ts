import { rmSync } from 'node:fs'
import { accept, type Epoll, EPOLLIN, type Fd, listenUnix } from '@coracle/sys'
import { BackendConnection, type BackendOptions } from './backend.js'
import type { VirtioDevice } from './device.js'

/** A device on a Unix socket. Disposing of it ends the connection and removes the socket. */
export class BackendServer implements Disposable {
  readonly #device: VirtioDevice
  readonly #path: string
  readonly #loop: Epoll
  readonly #options: BackendOptions
  readonly #listener: Fd
  #connection: BackendConnection | undefined

  /** @throws SysError */
  constructor(device: VirtioDevice, path: string, loop: Epoll, options: BackendOptions = {}) {
    this.#device = device
    this.#path = path
    this.#loop = loop
    this.#options = options
    this.#listener = listenUnix(path, 1)
    this.#listen()
  }

  get connected(): boolean {
    return this.#connection !== undefined
  }

  #listen(): void {
    this.#loop.add(this.#listener, EPOLLIN, () => {
      const fd = accept(this.#listener)
      if (!fd) return
      // One frontend at a time: the next waits in the backlog.
      this.#loop.remove(this.#listener)
      this.#connection = new BackendConnection(this.#device, fd, this.#loop, {
        ...this.#options,
        closed: (reason) => {
          this.#connection = undefined
          if (!this.#listener.closed) this.#listen()
          this.#options.closed?.(reason)
        },
      })
    })
  }

  [Symbol.dispose](): void {
    if (this.#listener.closed) return
    this.#loop.remove(this.#listener)
    this.#listener.close()
    this.#connection?.[Symbol.dispose]()
    rmSync(this.#path, { force: true })
  }
}

/**
 * Serves `device` to the vhost-user frontends (QEMU, Cloud Hypervisor) that connect to the Unix socket `path`, one
 * after another. Everything happens on `loop`: run it.
 * @throws SysError EADDRINUSE when something is at `path`
 */
export function serve(
  device: VirtioDevice,
  path: string,
  loop: Epoll,
  options: BackendOptions = {},
): BackendServer {
  return new BackendServer(device, path, loop, options)
}
