import { parentPort } from 'node:worker_threads'
import { blockSignal, threadId } from '@coracle/sys'
import { ExitChannel, type SharedExitChannel } from './exit-channel.js'
import type { ExitHandler } from './exit-handler.js'
import { Vcpu, type SharedVcpu } from './vcpu.js'
import { KICK_SIGNAL, THREAD_ID, type VcpuEnd } from './vcpu-control.js'
import { threadData } from './spare-threads.js'
import { runVcpu } from './vcpu-loop.js'

/** What {@link VcpuThread} gives its worker. */
export interface VcpuWorkerData {
  readonly vcpu: SharedVcpu
  readonly control: SharedArrayBuffer
  readonly channel: SharedExitChannel | undefined
  /** For the program's own handler. */
  readonly data: unknown
}

/** Makes a program's handler. @param next answers what the handler does not, by the channel */
export type CreateHandler = (data: unknown, next: ExitHandler | undefined) => ExitHandler | undefined

export type VcpuMessage =
  { readonly kind: 'ready' } | { readonly kind: 'paused' } | { readonly kind: 'ended'; readonly end: VcpuEnd }

const post = (message: VcpuMessage): void => parentPort!.postMessage(message)

/**
 * The body of a vCPU's thread, which its program begins. It never gets back to its event loop before the end: it blocks
 * in KVM_RUN, and what it posts goes out all the same.
 * @param createHandler @default passes every exit on to the channel
 */
export function runVcpuProgram(createHandler: CreateHandler = (_, next) => next): void {
  void threadData().then((data) => post({ kind: 'ended', end: run(data as VcpuWorkerData, createHandler) }))
}

function run(
  { vcpu: shared, control, channel, data }: VcpuWorkerData,
  createHandler: CreateHandler,
): VcpuEnd {
  try {
    const handler = createHandler(data, channel ? new ExitChannel(channel) : undefined)
    if (!handler) throw new TypeError('a vCPU needs a channel or a handler for its exits')
    using vcpu = Vcpu.borrow(shared)
    // From here on a kick ends KVM_RUN and does nothing else; before, it would end the process.
    blockSignal(KICK_SIGNAL)
    vcpu.setKickSignal(KICK_SIGNAL)
    Atomics.store(new Int32Array(control), THREAD_ID, threadId())
    post({ kind: 'ready' })
    return runVcpu(vcpu, handler, control, () => post({ kind: 'paused' }))
  } catch (error) {
    return { kind: 'error', message: error instanceof Error ? error.message : String(error) }
  } finally {
    Atomics.store(new Int32Array(control), THREAD_ID, 0)
  }
}
