import { freemem } from 'node:os'
import { readFileSync } from 'node:fs'
import { CoracleError } from '../../errors.js'

/*
 * Guest-physical addresses, in bytes:
 *
 *     0            low RAM, up to 3 GiB; 640 KiB-1 MiB is memory too, though reserved: no exit for who probes it
 *     0xC000_0000  32-bit PCI window: BARs
 *     0xE000_0000  ECAM of bus 0 (MCFG)
 *     0xFEC0_0000  IOAPIC, 0xFEE0_0000 local APICs (in the kernel)
 *     0xFFFB_C000  four pages for Intel's real-mode emulation (KVM_SET_IDENTITY_MAP_ADDR, KVM_SET_TSS_ADDR)
 *     4 GiB        high RAM: what did not fit below 3 GiB
 *     …            device memory, on a GiB boundary: virtio-pmem, outside every PCI window
 *     384 GiB      64-bit PCI window: 64-bit BARs of host devices
 *     512 GiB      the end
 */
export const MIB = 2 ** 20
export const GIB = 2 ** 30
export const PAGE = 4096
export const BIOS_AREA = 0xa_0000
export const ONE_MIB = 0x10_0000
/** Where the ACPI tables lie, up to {@link GENERATION_ID}; reserved up to {@link ONE_MIB}. */
export const ACPI_AREA = 0xe_0000
/** The machine's generation identifier, in a page of its own. */
export const GENERATION_ID = 0xf_e000
export const PCI_WINDOW = 0xc000_0000
export const PCI_WINDOW_SIZE = 0x2000_0000
export const ECAM = 0xe000_0000
/** 32 slots of 8 functions of 4 KiB: bus 0. */
export const ECAM_SIZE = MIB
export const IOAPIC_ADDRESS = 0xfec0_0000
export const LOCAL_APIC_ADDRESS = 0xfee0_0000
export const IDENTITY_MAP_ADDRESS = 0xfffb_c000
export const TSS_ADDRESS = 0xfffb_d000
/** Up to 2^39: no processor with fewer address bits runs KVM guests of our time. */
export const PCI_WINDOW64 = 384 * GIB
export const PCI_WINDOW64_SIZE = 128 * GIB
/** What one guest may have at most, so that device memory fits above it. */
const MEMORY_MAX = 256 * GIB

/** A range of guest-physical addresses. */
export interface Range {
  readonly start: number
  readonly size: number
}

/** Where a guest's memory lies. */
export interface MemoryLayout {
  /** Bytes of RAM altogether. */
  readonly size: number
  /** One range, or two where it reaches above the PCI hole. */
  readonly ram: readonly Range[]
  /** Addresses for memory that devices bring along. */
  readonly deviceMemory: Range
}

/**
 * @param size bytes of RAM, rounded up to 2 MiB
 * @throws CoracleError MEMORY_SIZE
 */
export function layoutMemory(size: number): MemoryLayout {
  if (!Number.isSafeInteger(size) || size <= 0 || size > MEMORY_MAX)
    throw new CoracleError('MEMORY_SIZE', `a guest's memory is at most ${MEMORY_MAX / GIB} GiB`)
  const whole = Math.ceil(size / (2 * MIB)) * 2 * MIB
  const low = Math.min(whole, PCI_WINDOW)
  const ram: Range[] = [{ start: 0, size: low }]
  if (whole > low) ram.push({ start: 4 * GIB, size: whole - low })
  const start = Math.ceil(Math.max(4 * GIB, 4 * GIB + whole - low) / GIB) * GIB
  return { size: whole, ram, deviceMemory: { start, size: PCI_WINDOW64 - start } }
}

/**
 * Refuses a guest that the host cannot hold, before it is started and killed half-way.
 * @param available bytes; by default what /proc/meminfo calls available
 * @throws CoracleError MEMORY_SIZE
 */
export function checkHostMemory(size: number, available = hostMemory()): void {
  if (size > available)
    throw new CoracleError(
      'MEMORY_SIZE',
      `${inMib(size)} of memory are more than the ${inMib(available)} that this host has free: ask for less with --memory`,
    )
}

/** @throws CoracleError MEMORY_SIZE where `size` is less than `needed`, both in bytes */
export function checkGuestMemory(size: number, needed: number): void {
  if (size < needed)
    throw new CoracleError(
      'MEMORY_SIZE',
      `${inMib(size)} of memory are too little for this kernel and its initramfs: give it ${inMib(needed)} or more with --memory`,
    )
}

const inMib = (bytes: number): string => `${Math.ceil(bytes / MIB)} MiB`

function hostMemory(): number {
  try {
    const match = /^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'latin1'))
    if (match) return Number(match[1]) * 1024
  } catch {
    // No /proc in this sandbox: ask the kernel another way.
  }
  return freemem()
}
