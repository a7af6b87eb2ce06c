/** Address spaces of an access: ports and memory. */
export const PIO = 0
export const MMIO = 1

// What becomes of the processor after an access.
export const CONTINUE = 0
/** The guest asked for a reset: port 0xcf9, the keyboard controller, ACPI's reset register. */
export const RESET = 1
/** The guest asked to be switched off: ACPI S5. */
export const POWER_OFF = 2
/** The handler failed: an error of ours. */
export const FAILED = 3

export type AddressSpace = typeof PIO | typeof MMIO
export type Verdict = typeof CONTINUE | typeof RESET | typeof POWER_OFF | typeof FAILED

/** Answers the accesses of a guest that KVM cannot. Called on hot paths: numbers in, a number out, no objects. */
export interface ExitHandler {
  /**
   * One access. What it writes lies in `data`; what a read gets goes there, else it reads as 0.
   * @param address a port, or a guest-physical address
   * @param size bytes: 1, 2, 4 for a port; 1 to 8 for memory
   * @param data where the bytes are, from `offset` on; not to be kept
   */
  access(
    space: AddressSpace,
    address: number,
    size: number,
    isWrite: boolean,
    data: DataView,
    offset: number,
  ): Verdict
}
