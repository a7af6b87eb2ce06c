import type { Worker } from 'node:worker_threads'
import { signalThread } from '@coracle/sys'
import type { SharedExitChannel } from './exit-channel.js'
import { exitName } from './kvm-run.js'
import { startThread } from './spare-threads.js'
import {
  CONTROL_SIZE,
  COUNTS_OFFSET,
  KICK_SIGNAL,
  REQUEST,
  REQUEST_PAUSE,
  REQUEST_RUN,
  REQUEST_STOP,
  THREAD_ID,
  type VcpuEnd,
} from './vcpu-control.js'
import { VCPU_WORKER } from './vcpu-module.js'
import type { SharedVcpu } from './vcpu.js'
import type { VcpuMessage, VcpuWorkerData } from './vcpu-program.js'

const running = new Set<VcpuThread>()
let willStopAll = false

/** Node joins its workers before the process ends, and would wait for ever for one inside KVM_RUN. */
function stopAllAtExit(): void {
  if (willStopAll) return
  willStopAll = true
  process.on('exit', () => running.forEach((thread) => void thread.stop()))
}

/** How a thread answers the exits of its vCPU: one of the two, or a program that passes on what it cannot answer. */
export interface VcpuThreadOptions {
  readonly vcpu: SharedVcpu
  /** To the thread of the devices. */
  readonly channel?: SharedExitChannel
  /** A program for the thread that calls `runVcpuProgram` with a handler of its own, and what that is made of. */
  readonly handler?: { readonly program: URL; readonly data?: unknown }
  /** Begin paused: {@link VcpuThread.resume} then starts the guest. @default false */
  readonly paused?: boolean
}

/**
 * A thread that runs one vCPU. Its owner must have an event loop (the thread of the devices has none), and closes
 * the {@link Vcpu} only after {@link ended}.
 */
export class VcpuThread {
  readonly #worker: Worker
  readonly #control = new SharedArrayBuffer(CONTROL_SIZE)
  readonly #words = new Int32Array(this.#control)
  #pausing: { promise: Promise<void>; resolve: () => void } | undefined
  #paused = false
  #lastPause = REQUEST_PAUSE
  #end: VcpuEnd | undefined
  /** Settles when the guest runs, or is ready to be resumed. */
  readonly ready: Promise<void>
  /** Why it ended; never rejects. */
  readonly ended: Promise<VcpuEnd>

  constructor({ vcpu, channel, handler, paused = false }: VcpuThreadOptions) {
    if (paused) void this.pause()
    const data: VcpuWorkerData = { vcpu, control: this.#control, channel, data: handler?.data }
    this.#worker = startThread(handler?.program ?? VCPU_WORKER, data)
    const ready = newPromise()
    this.ready = ready.promise
    this.ended = new Promise((resolve) => {
      const finish = (end: VcpuEnd): void => {
        this.#end ??= end
        running.delete(this)
        ready.resolve()
        this.#pausing?.resolve()
        resolve(this.#end)
      }
      this.#worker.on('message', (message: VcpuMessage) => {
        if (message.kind === 'ended') this.#end = message.end
        else if (message.kind === 'paused') this.#notePaused()
        else if (!paused) ready.resolve()
        if (paused && message.kind === 'paused') ready.resolve()
      })
      this.#worker.on('error', (error: unknown) => finish({ kind: 'error', message: String(error) }))
      this.#worker.on('exit', (status) =>
        finish({ kind: 'error', message: `the vCPU's thread ended by itself with status ${status}` }),
      )
    })
    stopAllAtExit()
    running.add(this)
  }

  /** Exits so far by their name; for people and benches, since the counts are read while they change. */
  get exits(): Record<string, number> {
    const counts = Array.from(new Float64Array(this.#control, COUNTS_OFFSET))
    return Object.fromEntries(
      counts.map((count, reason) => [exitName(reason), count] as const).filter(([, count]) => count > 0),
    )
  }

  /** Brings the thread back from KVM_RUN for a moment; nothing is lost where it is not in it. */
  kick(): void {
    const thread = Atomics.load(this.#words, THREAD_ID)
    if (thread === 0) return
    try {
      signalThread(thread, KICK_SIGNAL)
    } catch (error) {
      // It has ended since.
      if ((error as { code?: string }).code !== 'ESRCH') throw error
    }
  }

  /**
   * Makes the guest stand still. When this settles, the processor's state is complete and may be read or written
   * from any thread; so it does when the thread has ended.
   * An access under way is answered first: whoever answers must not wait for this.
   */
  pause(): Promise<void> {
    if (this.#end || this.#paused) return Promise.resolve()
    if (!this.#pausing) {
      this.#pausing = newPromise()
      Atomics.compareExchange(this.#words, REQUEST, REQUEST_RUN, ++this.#lastPause)
      this.kick()
    }
    return this.#pausing.promise
  }

  /** @throws Error where a pause is still under way */
  resume(): void {
    if (this.#pausing) throw new Error('the vCPU is not paused yet')
    if (!this.#paused) return
    this.#paused = false
    Atomics.compareExchange(this.#words, REQUEST, this.#lastPause, REQUEST_RUN)
    Atomics.notify(this.#words, REQUEST)
  }

  /** Ends the thread. An access under way is answered first, as for {@link pause}. */
  stop(): Promise<VcpuEnd> {
    Atomics.store(this.#words, REQUEST, REQUEST_STOP)
    Atomics.notify(this.#words, REQUEST)
    this.kick()
    return this.ended
  }

  #notePaused(): void {
    this.#paused = true
    this.#pausing?.resolve()
    this.#pausing = undefined
  }
}

function newPromise(): { promise: Promise<void>; resolve: () => void } {
  let resolve = (): void => undefined
  const promise = new Promise<void>((settle) => (resolve = settle))
  return { promise, resolve }
}
