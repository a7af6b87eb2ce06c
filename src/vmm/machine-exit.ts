import { type VcpuEnd, describeEnd } from '../kvm/index.js'

const PANIC = 'Kernel panic - not syncing'

/** How a machine ended. */
export type MachineExitReason =
  /** The guest switched itself off (ACPI S5). */
  | 'poweroff'
  /** The guest asked for a reset, in good order as far as is known here. */
  | 'reset'
  /** The guest stopped its processors for good and stays so. */
  | 'halt'
  /** The guest's kernel panicked. */
  | 'panic'
  | 'triple-fault'
  /** KVM or we could not go on. */
  | 'internal-error'
  /** {@link Machine.stop}. */
  | 'stopped'

export interface MachineExit {
  readonly reason: MachineExitReason
  /** One line more, for a log. */
  readonly detail?: string
}

/** @param console what the guest wrote last: a reset may be a panic's */
export function exitOf(end: VcpuEnd, console: string): MachineExit {
  const detail = describeEnd(end)
  switch (end.kind) {
    case 'power-off':
      return { reason: 'poweroff' }
    case 'reset':
    case 'crash':
      return end.kind === 'crash' || console.includes(PANIC)
        ? { reason: 'panic', detail: lineWith(console, PANIC) }
        : { reason: 'reset' }
    case 'halt':
      return { reason: 'halt', detail }
    case 'shutdown':
      return { reason: 'triple-fault', detail }
    default:
      return { reason: 'internal-error', detail }
  }
}

function lineWith(text: string, part: string): string {
  return (
    text
      .split('\n')
      .find((line) => line.includes(part))
      ?.trim() ?? part
  )
}
