import { exitName } from './kvm-run.js'

/*
 * The memory that a vCPU's thread shares with its owner: 32-bit words, then a count for each exit reason (f64).
 *
 *   0 request   1 thread id, once kicks are safe   64… counts
 */
export const REQUEST = 0
export const THREAD_ID = 1
export const COUNTS_OFFSET = 64
const REASONS = 64
export const CONTROL_SIZE = COUNTS_OFFSET + REASONS * 8

// What the owner wants of the thread.
export const REQUEST_RUN = 0
export const REQUEST_STOP = 1
/**
 * This and all above: pause. Each pause has a number of its own, so that a thread on its way into one pause does not
 * take the next for the same and leave it unanswered.
 */
export const REQUEST_PAUSE = 2

/**
 * The signal that brings a thread back from KVM_RUN: a realtime one, above the two that glibc keeps for itself.
 * It stays blocked in that thread, so that it has no effect but that.
 */
export const KICK_SIGNAL = 36

/** Why a vCPU's thread ended. */
export type VcpuEnd =
  /** It was told to. */
  | { readonly kind: 'stop' }
  /** HLT where no in-kernel irqchip could wake it. */
  | { readonly kind: 'halt'; readonly interruptsOn: boolean; readonly rip: bigint }
  /** The guest asked for it, by a device or a system event. */
  | { readonly kind: 'reset' | 'power-off' | 'crash' }
  /** A triple fault. KVM has reset the registers of an SVM guest by then, so `rip` may say nothing. */
  | { readonly kind: 'shutdown'; readonly rip: bigint }
  /** The processor refused the guest's state; `reason` is VMX's or SVM's code. */
  | { readonly kind: 'fail-entry'; readonly reason: bigint }
  /** KVM gave up, such as an instruction that it cannot emulate. */
  | {
      readonly kind: 'internal-error'
      readonly suberror: number
      readonly data: readonly bigint[]
      readonly rip: bigint
      /** Hexadecimal, where KVM tells it. */
      readonly instruction?: string
    }
  /** An exit that nobody here asked for. */
  | { readonly kind: 'unexpected-exit'; readonly reason: number; readonly rip: bigint }
  /** An error of ours, or of the system call. */
  | { readonly kind: 'error'; readonly message: string }

/** One line for a log. */
export function describeEnd(end: VcpuEnd): string {
  const hex = (value: bigint): string => `0x${value.toString(16)}`
  switch (end.kind) {
    case 'halt':
      return `halted at ${hex(end.rip)} with interrupts ${end.interruptsOn ? 'on' : 'off'}`
    case 'shutdown':
      return `triple fault (rip ${hex(end.rip)})`
    case 'fail-entry':
      return `the processor refused to enter the guest (${hex(end.reason)})`
    case 'internal-error':
      return (
        `KVM internal error ${end.suberror} at ${hex(end.rip)}` +
        (end.instruction === undefined ? '' : `, instruction ${end.instruction}`) +
        `, data ${end.data.map(hex).join(' ')}`
      )
    case 'unexpected-exit':
      return `unexpected exit ${exitName(end.reason)} at ${hex(end.rip)}`
    case 'error':
      return end.message
    default:
      return end.kind
  }
}
