// Why KVM_RUN came back (KVM_EXIT_* of linux/kvm.h).
export const KVM_EXIT_UNKNOWN = 0
export const KVM_EXIT_EXCEPTION = 1
export const KVM_EXIT_IO = 2
export const KVM_EXIT_HYPERCALL = 3
export const KVM_EXIT_DEBUG = 4
export const KVM_EXIT_HLT = 5
export const KVM_EXIT_MMIO = 6
export const KVM_EXIT_IRQ_WINDOW_OPEN = 7
export const KVM_EXIT_SHUTDOWN = 8
export const KVM_EXIT_FAIL_ENTRY = 9
export const KVM_EXIT_INTR = 10
export const KVM_EXIT_INTERNAL_ERROR = 17
export const KVM_EXIT_SYSTEM_EVENT = 24
export const KVM_EXIT_IOAPIC_EOI = 26

export const KVM_SYSTEM_EVENT_SHUTDOWN = 1
export const KVM_SYSTEM_EVENT_RESET = 2
export const KVM_SYSTEM_EVENT_CRASH = 3
export const KVM_INTERNAL_ERROR_EMULATION = 1
export const KVM_INTERNAL_ERROR_SIMUL_EX = 2
export const KVM_INTERNAL_ERROR_DELIVERY_EV = 3
export const KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4

const KVM_EXIT_IO_OUT = 1
/** KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES: the bytes are in the exit (linux/kvm.h). */
const INSTRUCTION_BYTES = 1n

const NAMES: Readonly<Record<number, string>> = {
  [KVM_EXIT_UNKNOWN]: 'unknown',
  [KVM_EXIT_EXCEPTION]: 'exception',
  [KVM_EXIT_IO]: 'io',
  [KVM_EXIT_HYPERCALL]: 'hypercall',
  [KVM_EXIT_DEBUG]: 'debug',
  [KVM_EXIT_HLT]: 'hlt',
  [KVM_EXIT_MMIO]: 'mmio',
  [KVM_EXIT_IRQ_WINDOW_OPEN]: 'irq-window-open',
  [KVM_EXIT_SHUTDOWN]: 'shutdown',
  [KVM_EXIT_FAIL_ENTRY]: 'fail-entry',
  [KVM_EXIT_INTR]: 'intr',
  [KVM_EXIT_INTERNAL_ERROR]: 'internal-error',
  [KVM_EXIT_SYSTEM_EVENT]: 'system-event',
  [KVM_EXIT_IOAPIC_EOI]: 'ioapic-eoi',
}

/** An exit's name for people, such as `mmio`; its number where it has none here. */
export const exitName = (reason: number): string => NAMES[reason] ?? `exit-${reason}`

/**
 * struct kvm_run (linux/kvm.h), the memory a vCPU shares with us. The accessors below `exitReason` are a union: only
 * those of the present reason mean anything. They read in place and allocate no object.
 */
export class KvmRun {
  /** The whole run area: where the data of an access lie, at {@link ioData} or {@link mmioData}. */
  readonly view: DataView

  constructor(view: DataView) {
    this.view = view
  }

  /** Asks for KVM_EXIT_IRQ_WINDOW_OPEN; without an in-kernel irqchip. */
  set requestInterruptWindow(on: boolean) {
    this.view.setUint8(0, on ? 1 : 0)
  }
  /** Makes KVM_RUN finish the instruction under way and come back as KVM_EXIT_INTR, before the guest runs. */
  set immediateExit(on: boolean) {
    this.view.setUint8(1, on ? 1 : 0)
  }
  get exitReason(): number {
    return this.view.getUint32(8, true)
  }
  get readyForInterruptInjection(): boolean {
    return this.view.getUint8(12) !== 0
  }
  /** The guest's RFLAGS.IF. */
  get interruptsOn(): boolean {
    return this.view.getUint8(13) !== 0
  }

  // KVM_EXIT_IO: `io`.
  get ioIsWrite(): boolean {
    return this.view.getUint8(32) === KVM_EXIT_IO_OUT
  }
  /** Bytes of one access: 1, 2 or 4. */
  get ioSize(): number {
    return this.view.getUint8(33)
  }
  get ioPort(): number {
    return this.view.getUint16(34, true)
  }
  /** Accesses in a row, more than one for a string instruction. */
  get ioCount(): number {
    return this.view.getUint32(36, true)
  }
  /** Where in {@link view} the data of the first access are; the others follow. */
  get ioData(): number {
    return this.view.getUint32(40, true) + this.view.getUint32(44, true) * 2 ** 32
  }

  // KVM_EXIT_MMIO: `mmio`.
  /** Guest-physical address; exact, since x86 has 52 bits of them. */
  get mmioAddress(): number {
    return this.view.getUint32(32, true) + this.view.getUint32(36, true) * 2 ** 32
  }
  /** Where in {@link view} the data are. */
  readonly mmioData = 40
  /** Bytes, 1 to 8. */
  get mmioSize(): number {
    return this.view.getUint32(48, true)
  }
  get mmioIsWrite(): boolean {
    return this.view.getUint8(52) !== 0
  }

  // KVM_EXIT_FAIL_ENTRY: `fail_entry`.
  /** What the processor said: a VMX or SVM code. */
  get failEntryReason(): bigint {
    return this.view.getBigUint64(32, true)
  }

  // KVM_EXIT_INTERNAL_ERROR: `internal`.
  /** KVM_INTERNAL_ERROR_* */
  get suberror(): number {
    return this.view.getUint32(32, true)
  }
  /** What KVM adds to the error. */
  get internalData(): bigint[] {
    const count = Math.min(this.view.getUint32(36, true), 16)
    return Array.from({ length: count }, (_, i) => this.view.getBigUint64(40 + i * 8, true))
  }
  /** The instruction that KVM could not emulate, where it says (`emulation_failure`). */
  get failedInstruction(): Uint8Array | undefined {
    if (this.suberror !== KVM_INTERNAL_ERROR_EMULATION || this.view.getUint32(36, true) < 1) return undefined
    if ((this.view.getBigUint64(40, true) & INSTRUCTION_BYTES) === 0n) return undefined
    const size = Math.min(this.view.getUint8(48), 15)
    return new Uint8Array(this.view.buffer, this.view.byteOffset + 49, size).slice()
  }

  // KVM_EXIT_SYSTEM_EVENT: `system_event`.
  /** KVM_SYSTEM_EVENT_* */
  get systemEvent(): number {
    return this.view.getUint32(32, true)
  }

  // KVM_EXIT_IOAPIC_EOI: `eoi`, with the split irqchip.
  get eoiVector(): number {
    return this.view.getUint8(32)
  }
}
