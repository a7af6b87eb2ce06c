import { fstatSync } from 'node:fs'
import { type Fd, Mapping } from '@coracle/sys'
import { GuestMemory, type MemoryRegion } from './guest-memory.js'
import { VhostUserError } from './message.js'

const PAGE_SIZE = 4096

/** One entry of VHOST_USER_SET_MEM_TABLE, with its descriptor. Addresses and lengths are bytes. */
export interface SharedRegion {
  readonly guestAddress: number
  readonly size: number
  /** Where the frontend has mapped it: ring addresses come as its addresses. */
  readonly userAddress: number
  readonly offset: number
  readonly fd: Fd
}

/** The guest's memory as a vhost-user frontend shares it: mapped here for as long as this object lives. */
export class SharedMemory implements Disposable {
  readonly memory: GuestMemory
  readonly #regions: readonly SharedRegion[]
  readonly #mappings: Mapping[] = []

  /** @param regions their descriptors are only borrowed @throws VhostUserError, VirtioError, SysError */
  constructor(regions: readonly SharedRegion[]) {
    this.#regions = regions
    try {
      this.memory = new GuestMemory(regions.map((region) => this.#map(region)))
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
  }

  /** The guest-physical address of one of the frontend's own. @throws VhostUserError */
  guestAddress(userAddress: number): number {
    for (const each of this.#regions)
      if (userAddress >= each.userAddress && userAddress < each.userAddress + each.size)
        return userAddress - each.userAddress + each.guestAddress
    throw new VhostUserError(`ring address 0x${userAddress.toString(16)} is not in the memory table`)
  }

  #map({ fd, size, offset, guestAddress }: SharedRegion): MemoryRegion {
    const file = fstatSync(fd.number)
    // Beyond the end of a file a mapping is a trap, not memory.
    if (file.isFile() && offset + size > file.size)
      throw new VhostUserError(`a region of ${size} bytes at ${offset} of a file of ${file.size}`)
    const lead = offset % PAGE_SIZE
    const mapping = Mapping.create({ fd, offset: offset - lead, length: size + lead })
    this.#mappings.push(mapping)
    return { guestAddress, size, mapping, mappingOffset: lead }
  }

  [Symbol.dispose](): void {
    for (const mapping of this.#mappings.splice(0)) mapping.unmap()
  }
}
