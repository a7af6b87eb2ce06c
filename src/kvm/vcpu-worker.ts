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
  readonly handler: { readonly module: string; readonly data?: unknown } | undefined
}

/** What a handler module exports as `createHandler`. @param next answers what the handler does not, by the channel */
export type CreateHandler = (data: unknown, next: ExitHandler | undefined) => ExitHandler

export type VcpuMessage =
  { readonly kind: 'ready' } | { readonly kind: 'paused' } | { readonly kind: 'ended'; readonly end: VcpuEnd }

/*
 * The body of a vCPU's thread. It never gets back to its event loop before the end: it blocks in KVM_RUN, and what
 * it posts goes out all the same.
 */
const { vcpu: shared, control, channel, handler: spec } = (await threadData()) as VcpuWorkerData
const post = (message: VcpuMessage): void => parentPort!.postMessage(message)

async function newHandler(): Promise<ExitHandler> {
  const next = channel ? new ExitChannel(channel) : undefined
  if (spec) {
    const { createHandler } = (await import(spec.module)) as { createHandler: CreateHandler }
    return createHandler(spec.data, next)
  }
  if (!next) throw new TypeError('a vCPU needs a channel or a handler for its exits')
  return next
}

async function main(): Promise<VcpuEnd> {
  try {
    const handler = await newHandler()
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

post({ kind: 'ended', end: await main() })
