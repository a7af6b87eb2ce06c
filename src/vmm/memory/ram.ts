import {
  F_SEAL_GROW,
  F_SEAL_SHRINK,
  type Fd,
  MADV_HUGEPAGE,
  MAP_NORESERVE,
  MAP_POPULATE,
  MAP_PRIVATE,
  MAP_SHARED,
  Mapping,
  PROT_READ,
  SysError,
  memfd,
} from '@coracle/sys'
import type { Vm } from '../../kvm/index.js'
import { CoracleError } from '../../errors.js'
import { type MemoryLayout, PAGE, type Range, layoutMemory } from './layout.js'

/** One range of RAM and where its bytes lie in the memory file. Structured-cloneable. */
export interface SharedRam {
  readonly address: bigint
  readonly length: number
  readonly ranges: readonly (Range & { readonly offset: number })[]
  /** The memory file, where this is all of it: not where the mapping is private. */
  readonly fd?: number
  /** @see MemoryLayout.deviceMemory */
  readonly deviceMemory: Range
}

/**
 * A guest's RAM: one memory file, mapped once, shared with whoever gets the descriptor (vhost-user), and put into the
 * guest as memory slots. Pages exist only once they are touched.
 */
export class Ram implements Disposable {
  readonly layout: MemoryLayout
  readonly mapping: Mapping
  readonly fd: Fd
  /** What the guest writes is this mapping's alone; the file stays as it is. Nobody else can share such memory. */
  readonly isPrivate: boolean
  readonly #ranges: SharedRam['ranges']

  private constructor(layout: MemoryLayout, fd: Fd, mapping: Mapping, isPrivate = false) {
    this.layout = layout
    this.fd = fd
    this.isPrivate = isPrivate
    this.mapping = mapping
    let offset = 0
    this.#ranges = layout.ram.map((range) => {
      const at = offset
      offset += range.size
      return { ...range, offset: at }
    })
  }

  /** @param size bytes @throws CoracleError MEMORY_SIZE */
  static create(size: number): Ram {
    const layout = layoutMemory(size)
    const fd = memfd('guest-ram', layout.size)
    try {
      // Whoever it is shared with must not be able to take it away from under the guest.
      fd.seal(F_SEAL_SHRINK | F_SEAL_GROW)
      const mapping = Mapping.create({ fd, length: layout.size, flags: MAP_SHARED | MAP_NORESERVE })
      try {
        mapping.advise(MADV_HUGEPAGE)
      } catch (error) {
        // A host without huge pages for shared memory: slower, and all the same.
        if (!(error instanceof SysError)) throw error
      }
      return new Ram(layout, fd, mapping)
    } catch (error) {
      fd.close()
      if (error instanceof SysError && error.code === 'ENOMEM')
        throw new CoracleError('MEMORY_SIZE', `this host cannot map ${size} bytes of guest memory`, {
          cause: error,
        })
      throw error
    }
  }

  /**
   * RAM that begins with the content of a file, which is mapped and not read: whoever maps it shares its pages until
   * the guest writes them.
   * @param file becomes ours; it must not change while this exists @param size bytes, as it was created with
   * @throws CoracleError MEMORY_SIZE
   */
  static restore(file: Fd, size: number): Ram {
    try {
      const layout = layoutMemory(size)
      const flags = MAP_PRIVATE | MAP_NORESERVE
      return new Ram(layout, file, Mapping.create({ fd: file, length: layout.size, flags }), true)
    } catch (error) {
      file.close()
      throw error
    }
  }

  /**
   * RAM with the content of a file in memory of its own, for devices that share it with other processes (vhost-user).
   * @param file stays the caller's @throws CoracleError MEMORY_SIZE
   */
  static copy(file: Fd, size: number): Ram {
    const ram = Ram.create(size)
    try {
      for (let at = 0; at < size;) {
        const data = file.nextData(at)
        if (!data) break
        const [start, end] = data
        const lead = start % PAGE
        using source = Mapping.create({
          fd: file,
          offset: start - lead,
          length: end - start + lead,
          prot: PROT_READ,
          flags: MAP_PRIVATE,
        })
        for (let done = start; done < end;)
          done += ram.fd.pwrite(source.address + BigInt(lead + done - start), done, end - done)
        at = end
      }
      return ram
    } catch (error) {
      ram.close()
      throw error
    }
  }

  /** Puts the RAM into the guest. @returns the number of slots, which are 0 up */
  install(vm: Vm): number {
    this.#ranges.forEach((range, slot) =>
      vm.setMemory(slot, {
        guestAddress: range.start,
        size: range.size,
        mapping: this.mapping,
        mappingOffset: range.offset,
        name: 'ram',
      }),
    )
    return this.#ranges.length
  }

  /** For another thread of this process. @see Mapping.borrow */
  share(): SharedRam {
    const { address, length } = this.mapping
    const file = this.isPrivate ? {} : { fd: this.fd.number }
    return { address, length, ...file, ranges: this.#ranges, deviceMemory: this.layout.deviceMemory }
  }

  /**
   * The bytes at a guest-physical address, without a copy.
   * @throws RangeError where they do not lie in one range of RAM
   */
  bytes(address: number, length: number): Uint8Array {
    for (const { start, size, offset } of this.#ranges)
      if (address >= start && length >= 0 && address + length <= start + size)
        return this.mapping.bytes(offset + address - start, length)
    throw new RangeError(`${length} bytes at 0x${address.toString(16)} are not in the guest's RAM`)
  }

  /**
   * Copies a part of a file to a guest-physical address. Written into the memory file, not into its mapping: that
   * spares a page fault and the zeroing of each page, which is most of the time that a kernel takes to load.
   * @throws RangeError where it does not fit, CoracleError KERNEL_INVALID where the file ends before
   */
  copyFile(file: Fd, fileOffset: number, length: number, address: number): void {
    const range = this.#ranges.find(({ start, size }) => address >= start && address + length <= start + size)
    if (!range)
      throw new RangeError(`${length} bytes at 0x${address.toString(16)} are not in the guest's RAM`)
    const lead = fileOffset % PAGE
    using source = Mapping.create({
      fd: file,
      offset: fileOffset - lead,
      length: lead + length,
      prot: PROT_READ,
      flags: MAP_PRIVATE | MAP_POPULATE,
    })
    const to = range.offset + address - range.start
    for (let done = 0; done < length;) {
      const from = source.address + BigInt(lead + done)
      try {
        done += this.fd.pwrite(from, to + done, length - done)
      } catch (error) {
        if (!(error instanceof SysError && error.code === 'EFAULT')) throw error
        throw new CoracleError('KERNEL_INVALID', 'a file became shorter while it was read', { cause: error })
      }
    }
  }

  close(): void {
    this.mapping.unmap()
    this.fd.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }
}
