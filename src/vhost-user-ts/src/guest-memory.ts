import type { Mapping } from '@coracle/sys'

/** One range of guest-physical addresses backed by host memory: a KVM memslot or a vhost-user memory region. */
export interface MemoryRegion {
  /** First guest-physical address. */
  readonly guestAddress: number
  /** Length in bytes. */
  readonly size: number
  readonly mapping: Mapping
  /** Where in the mapping the region starts, in bytes. */
  readonly mappingOffset: number
}

/** The guest's physical memory as the host sees it. */
export class GuestMemory {
  constructor(readonly regions: readonly MemoryRegion[]) {}
}
