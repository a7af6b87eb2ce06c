import type { Epoll, Mapping } from '@coracle/sys'
import type { GuestMemory } from 'vhost-user-ts'
import type { Vm } from '../../kvm/index.js'
import type { NumberPool } from '../memory/pools.js'
import type { PciBus } from './bus.js'

/** What a PCI function stands on: the parts of the machine that all of them share. */
export interface PciHost {
  readonly vm: Vm
  readonly bus: PciBus
  /** Interrupt numbers for MSI-X vectors. */
  readonly gsis: NumberPool
  /** Numbers for memory slots. */
  readonly memorySlots: NumberPool
  /** RAM and what devices bring along; it changes while devices come and go. */
  readonly memory: GuestMemory
  readonly loop: Epoll
  /** Memory for pages that the guest reads directly: all zero, {@link PAGES_PER_SLOT} for each slot of the bus from `offset` on. */
  readonly pages: { readonly mapping: Mapping; readonly offset: number }
  /** Whether KVM has read-only memory slots, so that the guest can read those pages without an exit. */
  readonly readOnlySlots: boolean
  /** Where devices count what they do. @see newMetrics @default nowhere */
  readonly metrics?: SharedArrayBuffer
  /** One line for the log. */
  log(line: string): void
  /** Ends the machine: a device is gone that it cannot do without. @param reason one line for the user */
  fail(reason: string): void
}

/** Pages of {@link PciHost.pages} that belong to one slot of the bus. */
export const PAGES_PER_SLOT = 4

/** A function on the bus, virtio or not. */
export interface PciDevice {
  /** 1 to 31; the guest knows it as 0000:00:SLOT.0 (in hexadecimal). */
  readonly slot: number
  /**
   * Somebody takes guest memory away: stops what still looks there. Its owner keeps it mapped until this returns.
   */
  memoryLeaves(guestAddress: number, size: number): void
  /** Takes it off the bus and gives all back; for the guest it was pulled out. */
  close(): void
}
