import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads'
import { EventFd } from '@coracle/sys'
import { type VsockCommand, type VsockEvent, VsockHost } from './vsock-host.js'

/** What the thread gets at its start. */
export interface VsockServerData {
  readonly cid: number
  readonly path: string
  readonly port: MessagePort
  /** An eventfd's number: signalled after each command. */
  readonly wake: number
}

export type VsockServerCommand = VsockCommand | { readonly type: 'stop' }
export type VsockServerEvent =
  | VsockEvent
  /** The socket is there: QEMU may be started. */
  | { readonly type: 'ready' }
  | { readonly type: 'log'; readonly message: string }

export interface VsockServerOptions {
  /** The guest's context id. Nothing on the host sees it, so it may be the same for every guest. @default 3 */
  readonly cid?: number
  /** Where QEMU finds the device: a Unix socket that this creates and removes. */
  readonly path: string
  /** Hears why the device or the connection to QEMU stopped. */
  readonly log?: (message: string) => void
}

/**
 * Serves a vsock device to QEMU (`-device vhost-user-vsock-pci`) from a thread of its own, so that bytes of the guest
 * never wait for the main thread's loop.
 */
export class VsockServer implements AsyncDisposable {
  readonly host: VsockHost
  readonly #worker: Worker
  readonly #wake = EventFd.create()
  readonly #port: MessagePort
  readonly #exited: Promise<void>

  private constructor({ cid = 3, path, log }: VsockServerOptions, ready: (error?: Error) => void) {
    const { port1, port2 } = new MessageChannel()
    this.#port = port1
    const data: VsockServerData = { cid, path, port: port2, wake: this.#wake.number }
    this.#worker = new Worker(new URL('./vsock-server-thread.js', import.meta.url), {
      workerData: data,
      transferList: [port2],
    })
    this.host = new VsockHost((command) => this.#send(command))
    this.#exited = new Promise((resolve) => this.#worker.on('exit', () => resolve()))
    port1.on('message', (event: VsockServerEvent) => {
      if (event.type === 'ready') ready()
      else if (event.type === 'log') log?.(event.message)
      else this.host.receive(event)
    })
    this.#worker.on('error', (error) => {
      log?.(`the vsock thread failed: ${error.message}`)
      ready(error)
    })
    // At process.exit Node waits for its threads, and ours waits for epoll: it has to be told.
    const stop = (): void => this.#send({ type: 'stop' })
    process.on('exit', stop)
    this.#worker.on('exit', () => {
      process.off('exit', stop)
      this.host.close()
      port1.close()
      this.#wake.close()
    })
  }

  /** @throws SysError, such as EADDRINUSE for the path */
  static start(options: VsockServerOptions): Promise<VsockServer> {
    return new Promise((resolve, reject) => {
      const server = new VsockServer(options, (error) => {
        if (error) reject(error)
        else resolve(server)
      })
    })
  }

  /** Ends the connection to QEMU and the thread. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#send({ type: 'stop' })
    await this.#exited
  }

  #send(command: VsockServerCommand): void {
    if (this.#wake.fd.closed) return
    this.#port.postMessage(command)
    this.#wake.signal()
  }
}
