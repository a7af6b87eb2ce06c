import { MessageChannel, type Worker } from 'node:worker_threads'
import { EventFd, Fd } from '@coracle/sys'
import { type SharedExitChannel, closeExitChannels, newExitChannel, startThread } from '../../kvm/index.js'
import { CoracleError, type ErrorCode } from '../../errors.js'
import type { DeviceDescription } from '../description.js'
import { DEVICE_WORKER } from './module.js'
import type {
  DeviceCommand,
  DeviceMessage,
  DeviceRequest,
  DeviceRequests,
  DeviceWorkerData,
  Plugged,
  SavedDevices,
} from './device-worker.js'

/** What the thread tells its owner by itself. */
export interface DeviceEvents {
  console(bytes: Uint8Array): void
  log(line: string): void
  /** The thread has ended though nobody stopped it: no device answers any more. */
  failed(message: string): void
}

const running = new Set<DeviceThread>()

/** Node joins its workers before the process ends, and would wait for ever for one inside epoll_wait. */
function stopAllAtExit(): void {
  for (const thread of running) void thread.stop()
}

/**
 * The thread that owns PCI, the virtio transports and all devices, as its owner on the main thread sees it. It
 * answers the accesses of every vCPU, so it is started before them and stopped after them.
 */
export class DeviceThread {
  readonly #worker: Worker
  readonly #commands = new MessageChannel()
  readonly #commandBell = EventFd.create()
  readonly #doorbell = EventFd.create()
  readonly #listeners = new Map<number, (fd: Fd) => void>()
  readonly #connects = new Map<number, (fd: Fd | undefined) => void>()
  readonly #ended: Promise<void>
  readonly #requests = new Map<
    number,
    { resolve: (answer: unknown) => void; reject: (error: CoracleError) => void }
  >()
  #nextConnect = 0
  #nextRequest = 0
  #stopping = false
  /** One for each vCPU. */
  readonly channels: readonly SharedExitChannel[]
  /**
   * Settles when accesses will be answered, with the devices in the order of their specs.
   * @throws CoracleError as {@link request} of `plug`
   */
  readonly ready: Promise<readonly Plugged[]>

  constructor(
    init: Pick<DeviceWorkerData, 'vm' | 'ram' | 'devices' | 'restore' | 'metrics'>,
    cpus: number,
    events: DeviceEvents,
  ) {
    this.channels = Array.from({ length: cpus }, () => newExitChannel(this.#doorbell))
    const commands = this.#commands.port2
    const data: DeviceWorkerData = {
      ...init,
      channels: this.channels,
      doorbell: this.#doorbell.number,
      commands,
      commandBell: this.#commandBell.number,
    }
    this.#worker = startThread(DEVICE_WORKER, data, [commands])
    this.ready = new Promise((resolve, reject) => {
      const failed = (message: string, code: ErrorCode = 'INTERNAL'): void => {
        reject(new CoracleError(code, message))
        // The thread may not have come to it: no vCPU may wait for an answer for ever.
        closeExitChannels(this.channels)
        if (!this.#stopping) events.failed(message)
      }
      this.#worker.on('message', (message: DeviceMessage) => {
        if (message.kind === 'ready') resolve(message.devices)
        else if (message.kind === 'failed') failed(message.message, message.code)
        else this.#handle(message, events)
      })
      this.#worker.on('error', (error) => failed(String(error)))
      this.#worker.on('exit', () => failed('the thread of the devices has ended'))
    })
    // Whoever waits for it gets the error; if nobody does, `failed` has told it.
    this.ready.catch(() => undefined)
    this.#ended = new Promise((resolve) => this.#worker.on('exit', () => resolve()))
    if (running.size === 0) process.on('exit', stopAllAtExit)
    running.add(this)
  }

  /** Accepts the guest's vsock connections to host port `port`; the handler owns what it gets. */
  listen(port: number, handler: (fd: Fd) => void): void {
    this.#listeners.set(port, handler)
    this.#command({ kind: 'listen', port })
  }

  unlisten(port: number): void {
    this.#listeners.delete(port)
    this.#command({ kind: 'unlisten', port })
  }

  /** Connects to the guest's vsock port; undefined where the guest refuses. */
  connect(port: number): Promise<Fd | undefined> {
    const id = this.#nextConnect++
    return new Promise((resolve) => {
      this.#connects.set(id, resolve)
      this.#command({ kind: 'connect', port, id })
    })
  }

  /**
   * The state of all devices, for a snapshot. No processor may run; from here to {@link thaw} the devices stand still.
   * @throws CoracleError SNAPSHOT_UNSUPPORTED: then they go on
   */
  save(): Promise<SavedDevices> {
    return this.request('save', {})
  }

  thaw(): void {
    this.#command({ kind: 'thaw' })
  }

  /** Lets restored devices go on; before the processors run. */
  wake(): void {
    this.#command({ kind: 'wake' })
  }

  /** What the thread has. @throws CoracleError NOT_RUNNING */
  describe(): Promise<DeviceDescription> {
    return this.request('describe', {})
  }

  /**
   * Has the thread do something, between two accesses of the guest.
   * @throws CoracleError what it failed with there; NOT_RUNNING where the thread ends first
   */
  request<K extends keyof DeviceRequests>(
    kind: K,
    fields: DeviceRequests[K]['request'],
  ): Promise<DeviceRequests[K]['answer']> {
    const request = this.#nextRequest++
    return new Promise((resolve, reject) => {
      if (this.#stopping) return reject(ended())
      this.#requests.set(request, { resolve, reject })
      this.#command({ kind, request, ...fields } as DeviceRequest)
    })
  }

  /** Ends the thread and closes all its devices. No vCPU may run any more. Idempotent. */
  async stop(): Promise<void> {
    if (!this.#stopping) {
      this.#stopping = true
      this.#command({ kind: 'stop' })
    }
    await this.#ended
    running.delete(this)
    if (running.size === 0) process.off('exit', stopAllAtExit)
    for (const done of this.#connects.values()) done(undefined)
    this.#connects.clear()
    for (const { reject } of this.#requests.values()) reject(ended())
    this.#requests.clear()
    this.#commands.port1.close()
    this.#commandBell.close()
    this.#doorbell.close()
  }

  #command(command: DeviceCommand): void {
    this.#commands.port1.postMessage(command)
    this.#commandBell.signal()
  }

  #handle(message: DeviceMessage, events: DeviceEvents): void {
    switch (message.kind) {
      case 'console':
        events.console(message.bytes)
        break
      case 'log':
        events.log(message.line)
        break
      case 'connection': {
        const fd = new Fd(message.fd)
        const handler = this.#listeners.get(message.port)
        if (handler) handler(fd)
        else fd.close()
        break
      }
      case 'connected': {
        const done = this.#connects.get(message.id)
        this.#connects.delete(message.id)
        done?.(message.fd < 0 ? undefined : new Fd(message.fd))
        break
      }
      case 'answer':
        this.#take(message.request)?.resolve(message.answer)
        break
      case 'refused':
        this.#take(message.request)?.reject(new CoracleError(message.code, message.message))
        break
    }
  }

  #take(
    request: number,
  ): { resolve: (answer: unknown) => void; reject: (error: CoracleError) => void } | undefined {
    const pending = this.#requests.get(request)
    this.#requests.delete(request)
    return pending
  }
}

const ended = (): CoracleError => new CoracleError('NOT_RUNNING', 'the machine has ended')
