import { fstatSync } from 'node:fs'
import { type Fd, F_SEAL_SHRINK, Mapping, SysError } from '@coracle/sys'
import { GuestMemory } from './guest-memory.js'
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

interface MappedRegion {
  readonly guestAddress: number
  readonly size: number
  readonly userAddress: number
  readonly mapping: Mapping
  readonly mappingOffset: number
}

/** The guest's memory as a vhost-user frontend shares it: mapped here for as long as this object lives. */
export class SharedMemory implements Disposable {
  #regions: readonly MappedRegion[] = []
  #memory = new GuestMemory([])

  /** @param regions their descriptors are only borrowed @throws VhostUserError, VirtioError, SysError */
  constructor(regions: readonly SharedRegion[]) {
    try {
      for (const region of regions) this.add(region)
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
  }

  /** As it is now: a later {@link add} or {@link remove} makes another. */
  get memory(): GuestMemory {
    return this.#memory
  }

  get count(): number {
    return this.#regions.length
  }

  /**
   * @param region its descriptor is only borrowed
   * @throws VhostUserError, VirtioError, SysError; all is then as it was
   */
  add(region: SharedRegion): void {
    const mapped = map(region)
    try {
      const regions = [...this.#regions, mapped]
      this.#memory = new GuestMemory(regions)
      this.#regions = regions
    } catch (error) {
      mapped.mapping.unmap()
      throw error
    }
  }

  /** The region with these addresses goes. @throws VhostUserError where there is none */
  remove(which: Omit<SharedRegion, 'fd' | 'offset'>): void {
    const found = this.#regions.find(
      (each) =>
        each.guestAddress === which.guestAddress &&
        each.userAddress === which.userAddress &&
        each.size === which.size,
    )
    if (!found) throw new VhostUserError(`no region of ${which.size} bytes at ${which.guestAddress}`)
    this.#regions = this.#regions.filter((each) => each !== found)
    this.#memory = new GuestMemory(this.#regions)
    found.mapping.unmap()
  }

  /** The guest-physical address of one of the frontend's own. @throws VhostUserError */
  guestAddress(userAddress: number): number {
    for (const each of this.#regions)
      if (userAddress >= each.userAddress && userAddress < each.userAddress + each.size)
        return userAddress - each.userAddress + each.guestAddress
    throw new VhostUserError(`ring address 0x${userAddress.toString(16)} is not in the memory table`)
  }

  [Symbol.dispose](): void {
    for (const { mapping } of this.#regions) mapping.unmap()
    this.#regions = []
  }
}

function map({ fd, size, offset, guestAddress, userAddress }: SharedRegion): MappedRegion {
  sealAgainstShrinking(fd)
  checkFileRange(fd, offset, size)
  const lead = offset % PAGE_SIZE
  const mapping = Mapping.create({ fd, offset: offset - lead, length: size + lead })
  return { guestAddress, size, userAddress, mapping, mappingOffset: lead }
}

/** Beyond the end of a file a mapping is a trap, not memory. @throws VhostUserError */
export function checkFileRange(fd: Fd, offset: number, size: number): void {
  const file = fstatSync(fd.number)
  if (file.isFile() && offset + size > file.size)
    throw new VhostUserError(`a region of ${size} bytes at ${offset} of a file of ${file.size}`)
}

/** So that the other end cannot shorten a file that we have mapped, where that can be had: memfd_create(2). */
export function sealAgainstShrinking(fd: Fd): void {
  try {
    fd.seal(F_SEAL_SHRINK)
  } catch (error) {
    // A file on a disk or in /dev/shm, or one whose owner allows no more seals.
    if (!(error instanceof SysError && (error.code === 'EINVAL' || error.code === 'EPERM'))) throw error
  }
}
