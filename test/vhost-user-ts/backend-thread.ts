import { once } from 'node:events'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { Epoll, EPOLLIN, EventFd, Fd } from '@coracle/sys'
import { type DescriptorChain, type DeviceContext, type VirtioDevice, serve } from 'vhost-user-ts'

interface Data {
  readonly path: string
  readonly device: 'shout' | 'hold'
  readonly stop: number
}

/** Answers each request with its bytes in upper case; or (`hold`) only the third, and keeps the others for ever. */
export class Shout implements VirtioDevice {
  readonly name = 'shout'
  readonly type = 42
  readonly queueSizes = [8, 8]
  readonly features = 3n
  readonly config = new Uint8Array([1, 2, 3, 4])
  readonly #hold: boolean
  #active: DeviceContext | undefined
  #taken: DescriptorChain[] = []

  constructor(hold = false) {
    this.#hold = hold
  }

  activate(context: DeviceContext): void {
    this.#active = context
  }
  writeConfig(offset: number, data: Uint8Array): void {
    this.config.set(data, offset)
    this.#active?.configChanged()
  }
  notify(index: number): void {
    const context = this.#active!
    const queue = context.queues[index]!
    for (let chain = queue.pop(); chain; chain = queue.pop()) {
      this.#taken.push(chain)
      if (this.#hold && this.#taken.length !== 3) continue
      const text = new Uint8Array(chain.reader.length)
      chain.reader.bytes(text)
      if (Buffer.from(text).toString() === 'fail') throw new Error('as asked')
      chain.writer.bytes(Buffer.from(Buffer.from(text).toString().toUpperCase()))
      queue.push(chain, chain.writer.position)
    }
    queue.enableNotifications()
    if (queue.flush()) context.interrupt(index)
  }
  reset(): void {
    this.#active = undefined
    this.#taken = []
  }
}

/** A backend on a thread of its own, so that a frontend that waits for it need not be on another. */
export class BackendThread implements AsyncDisposable {
  readonly #worker: Worker
  readonly #stop = EventFd.create()
  readonly #exited: Promise<unknown>

  private constructor(path: string, device: Data['device']) {
    const data: Data = { path, device, stop: this.#stop.number }
    this.#worker = new Worker(new URL(import.meta.url), { workerData: data, execArgv: [] })
    this.#exited = once(this.#worker, 'exit')
  }

  static async start(path: string, device: Data['device'] = 'shout'): Promise<BackendThread> {
    const thread = new BackendThread(path, device)
    await once(thread.#worker, 'message')
    return thread
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.signal()
    await this.#exited
    this.#stop.close()
  }
}

if (!isMainThread && (workerData as Data | null)?.path !== undefined) {
  const { path, device, stop } = workerData as Data
  const loop = new Epoll()
  {
    using _server = serve(new Shout(device === 'hold'), path, loop)
    loop.add(new Fd(stop), EPOLLIN, () => loop.stop())
    parentPort!.postMessage('ready')
    loop.run()
  }
  loop.close()
}
