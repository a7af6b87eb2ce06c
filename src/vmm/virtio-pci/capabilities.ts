import type { Bar, PciFunction } from '../pci/function.js'

/* linux/virtio_pci.h and virtio 1.2 §4.1.4: the capabilities that say where each structure of a device is. */

const PCI_CAP_ID_VNDR = 0x09
export const VIRTIO_PCI_CAP_COMMON_CFG = 1
export const VIRTIO_PCI_CAP_NOTIFY_CFG = 2
export const VIRTIO_PCI_CAP_ISR_CFG = 3
export const VIRTIO_PCI_CAP_DEVICE_CFG = 4
const VIRTIO_PCI_CAP_PCI_CFG = 5

/** Where in a BAR a structure is. */
interface Place {
  /** Bytes from the BAR's beginning. */
  readonly offset: number
  readonly length: number
  /** What of some types follows: a notification's multiplier, a window's data. */
  readonly extra?: number
}

/** @returns the capability's offset in the configuration space */
export function addCapability(
  target: PciFunction,
  bar: Pick<Bar, 'index'>,
  type: number,
  { offset, length, extra }: Place,
): number {
  const body = new DataView(new ArrayBuffer(extra === undefined ? 14 : 18))
  body.setUint8(0, body.byteLength + 2)
  body.setUint8(1, type)
  body.setUint8(2, bar.index)
  body.setUint32(6, offset, true)
  body.setUint32(10, length, true)
  if (extra !== undefined) body.setUint32(14, extra, true)
  return target.addCapability(PCI_CAP_ID_VNDR, new Uint8Array(body.buffer))
}

/** A window into a BAR, in the configuration space: for drivers that cannot reach the BAR yet (§4.1.4.9). */
export class ConfigurationWindow {
  readonly #function: PciFunction
  readonly #bar: Bar
  readonly #readable: number
  /** The capability's offset. */
  readonly #at: number

  /** @param readable bytes of the BAR, from its beginning, whose reading changes nothing */
  constructor(target: PciFunction, bar: Bar, readable: number) {
    this.#function = target
    this.#bar = bar
    this.#readable = readable
    const at = addCapability(target, bar, VIRTIO_PCI_CAP_PCI_CFG, { offset: 0, length: 0, extra: 0 })
    this.#at = at
    target.allowWrites(at + 4, 0xff, 1)
    for (const field of [8, 12, 16]) target.allowWrites(at + field, 0xffff_ffff, 4)
    target.watch(at + 4, 12, () => this.show())
    target.watch(at + 16, 4, () => this.#write())
  }

  /** The part of the BAR that it is on, where that is a legal access (§4.1.4.9.1). */
  #target(): { offset: number; size: number } | undefined {
    const { config } = this.#function
    const offset = config.getUint32(this.#at + 8, true)
    const size = config.getUint32(this.#at + 12, true)
    const legal = size === 1 || size === 2 || size === 4
    if (!legal || config.getUint8(this.#at + 4) !== this.#bar.index) return undefined
    return offset % size === 0 && offset + size <= this.#bar.size ? { offset, size } : undefined
  }

  /**
   * Reads of `pci_cfg_data` cause no exit, so it holds what they would give after each write; the interrupt status,
   * which clears when it is read, is left out.
   */
  show(): void {
    const target = this.#target()
    if (target && target.offset + target.size <= this.#readable)
      this.#bar.read(target.offset, target.size, this.#function.config, this.#at + 16)
  }

  #write(): void {
    const target = this.#target()
    if (target) this.#bar.write(target.offset, target.size, this.#function.config, this.#at + 16)
  }
}
