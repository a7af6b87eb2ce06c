import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, Fd, MADV_DONTNEED, Mapping } from '@coracle/sys'
import { PAGE } from './layout.js'
import type { SharedRam } from './ram.js'

/**
 * Gives pages of RAM back to the host. From a memory file they are gone for all who map it; what was a copy of a
 * snapshot's page is the snapshot's again. Either way the guest finds other content there than it left.
 */
export class RamDiscard {
  readonly #ram: SharedRam
  readonly #mapping: Mapping
  readonly #file: Fd | undefined

  constructor(ram: SharedRam) {
    this.#ram = ram
    this.#mapping = Mapping.borrow(ram.address, ram.length)
    this.#file = ram.fd === undefined ? undefined : new Fd(ram.fd)
  }

  /**
   * The whole pages of a stretch of guest-physical addresses, as far as they are RAM: nothing else is touched.
   * @returns bytes given back @throws SysError
   */
  discard(address: number, length: number): number {
    const first = Math.ceil(address / PAGE) * PAGE
    const last = Math.floor((address + length) / PAGE) * PAGE
    let bytes = 0
    for (const { start, size, offset } of this.#ram.ranges) {
      const from = Math.max(first, start)
      const piece = Math.min(last, start + size) - from
      if (!(piece > 0)) continue
      const at = offset + from - start
      if (this.#file) this.#file.allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, piece)
      else this.#mapping.advise(MADV_DONTNEED, at, piece)
      bytes += piece
    }
    return bytes
  }
}
