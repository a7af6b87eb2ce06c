import { takeSignal } from '@coracle/sys'
import { CONTINUE, type ExitHandler, MMIO, PIO, POWER_OFF, RESET, type Verdict } from './exit-handler.js'
import {
  KVM_EXIT_FAIL_ENTRY,
  KVM_EXIT_HLT,
  KVM_EXIT_INTERNAL_ERROR,
  KVM_EXIT_INTR,
  KVM_EXIT_IO,
  KVM_EXIT_IRQ_WINDOW_OPEN,
  KVM_EXIT_MMIO,
  KVM_EXIT_SHUTDOWN,
  KVM_EXIT_SYSTEM_EVENT,
  KVM_SYSTEM_EVENT_RESET,
  KVM_SYSTEM_EVENT_SHUTDOWN,
  type KvmRun,
} from './kvm-run.js'
import type { Vcpu } from './vcpu.js'
import {
  COUNTS_OFFSET,
  KICK_SIGNAL,
  REQUEST,
  REQUEST_PAUSE,
  REQUEST_RUN,
  REQUEST_STOP,
  type VcpuEnd,
} from './vcpu-control.js'

/**
 * Runs `vcpu` on the calling thread until there is a reason to end.
 * @param control the memory shared with the owner (vcpu-control.ts)
 * @param onPaused called when the processor stands still and its state is complete, before the wait for a resume
 * @throws what the handler throws, and SysError where KVM_RUN fails
 */
export function runVcpu(
  vcpu: Vcpu,
  handler: ExitHandler,
  control: SharedArrayBuffer,
  onPaused: () => void,
): VcpuEnd {
  const words = new Int32Array(control)
  const counts = new Float64Array(control, COUNTS_OFFSET)
  const { exit } = vcpu
  for (;;) {
    const request = Atomics.load(words, REQUEST)
    if (request === REQUEST_STOP) return { kind: 'stop' }
    // KVM finishes an access only in the next KVM_RUN; with immediate_exit it does that and no more, which makes the
    // state complete. An access in several parts comes back as one more exit, and is answered below as any other.
    if (request >= REQUEST_PAUSE) exit.immediateExit = true
    const reason = vcpu.run()
    if (reason < counts.length) counts[reason]!++
    let verdict: Verdict = CONTINUE
    switch (reason) {
      case KVM_EXIT_IO:
        verdict = portAccess(exit, handler)
        break
      case KVM_EXIT_MMIO:
        verdict = memoryAccess(exit, handler)
        break
      case KVM_EXIT_INTR:
        takeSignal(KICK_SIGNAL)
        if (request < REQUEST_PAUSE) break
        exit.immediateExit = false
        onPaused()
        Atomics.wait(words, REQUEST, request)
        if (Atomics.load(words, REQUEST) === REQUEST_RUN) vcpu.notePause()
        break
      case KVM_EXIT_IRQ_WINDOW_OPEN:
        break
      default:
        return endOf(reason, vcpu)
    }
    if (verdict !== CONTINUE) return endByVerdict(verdict)
  }
}

/** A string instruction comes as one exit with its data side by side. */
function portAccess(exit: KvmRun, handler: ExitHandler): Verdict {
  const { view, ioPort: port, ioSize: size, ioCount: count, ioIsWrite: isWrite } = exit
  let at = exit.ioData
  let verdict: Verdict = CONTINUE
  for (let i = 0; i < count && verdict === CONTINUE; i++, at += size) {
    if (!isWrite) clear(view, at, size)
    verdict = handler.access(PIO, port, size, isWrite, view, at)
  }
  return verdict
}

function memoryAccess(exit: KvmRun, handler: ExitHandler): Verdict {
  const { view, mmioData: at, mmioSize: size, mmioIsWrite: isWrite } = exit
  if (!isWrite) clear(view, at, size)
  return handler.access(MMIO, exit.mmioAddress, size, isWrite, view, at)
}

/** A read gets what the handler writes, not what a former access left there. */
function clear(view: DataView, at: number, size: number): void {
  for (let i = 0; i < size; i++) view.setUint8(at + i, 0)
}

function endByVerdict(verdict: Verdict): VcpuEnd {
  if (verdict === RESET) return { kind: 'reset' }
  if (verdict === POWER_OFF) return { kind: 'power-off' }
  return { kind: 'error', message: 'the devices failed to answer an access' }
}

function endOf(reason: number, vcpu: Vcpu): VcpuEnd {
  const { exit } = vcpu
  switch (reason) {
    case KVM_EXIT_HLT:
      return { kind: 'halt', interruptsOn: exit.interruptsOn, rip: rip(vcpu) }
    case KVM_EXIT_SHUTDOWN:
      return { kind: 'shutdown', rip: rip(vcpu) }
    case KVM_EXIT_FAIL_ENTRY:
      return { kind: 'fail-entry', reason: exit.failEntryReason }
    case KVM_EXIT_SYSTEM_EVENT:
      if (exit.systemEvent === KVM_SYSTEM_EVENT_SHUTDOWN) return { kind: 'power-off' }
      return { kind: exit.systemEvent === KVM_SYSTEM_EVENT_RESET ? 'reset' : 'crash' }
    case KVM_EXIT_INTERNAL_ERROR: {
      const { suberror, internalData: data, failedInstruction: bytes } = exit
      const error = { kind: 'internal-error', suberror, data, rip: rip(vcpu) } as const
      return bytes ? { ...error, instruction: Buffer.from(bytes).toString('hex') } : error
    }
    default:
      return { kind: 'unexpected-exit', reason, rip: rip(vcpu) }
  }
}

const rip = (vcpu: Vcpu): bigint => vcpu.getRegisters().rip
