import { CoracleError } from '../../errors.js'
import { type Saved, saveBytes } from '../snapshot/saved.js'
import { type DescribedFunction, hex } from '../description.js'

/** Offsets in configuration space and their bits, under their names of linux/pci_regs.h. */
export const PCI_VENDOR_ID = 0x00
export const PCI_DEVICE_ID = 0x02
export const PCI_COMMAND = 0x04
export const PCI_COMMAND_MEMORY = 0x2
export const PCI_COMMAND_MASTER = 0x4
const PCI_COMMAND_INTX_DISABLE = 0x400
export const PCI_STATUS = 0x06
export const PCI_STATUS_CAP_LIST = 0x10
export const PCI_REVISION_ID = 0x08
export const PCI_BASE_ADDRESS_0 = 0x10
export const PCI_SUBSYSTEM_VENDOR_ID = 0x2c
export const PCI_SUBSYSTEM_ID = 0x2e
export const PCI_CAPABILITY_LIST = 0x34
const PCI_BASE_ADDRESS_MEM_TYPE_64 = 0x4
const PCI_BASE_ADDRESS_MEM_PREFETCH = 0x8
const PCI_CACHE_LINE_SIZE = 0x0c
const PCI_INTERRUPT_LINE = 0x3c
const PCI_STD_HEADER_SIZEOF = 0x40
/** Configuration space that a function of ours uses; the rest of its 4 KiB reads as zero. */
const CONFIG_SIZE = 0x100
const BARS = 6
const FOUR_GIB = 2 ** 32

/** What a function decodes in memory space: one BAR. */
export interface Bar {
  /** 0 to 5. */
  readonly index: number
  /** Bytes: a power of two, at least a page. */
  readonly size: number
  /** Of 64 bits: takes the register behind its own too, and may lie above 4 GiB. @default false */
  readonly wide?: boolean
  /** Reads have no effects; for what the guest makes of it. @default false */
  readonly prefetchable?: boolean
  /** Puts the region there, or takes it away where `address` is undefined. Called only for a change. */
  place(address: number | undefined): void
  /** An access that no memory slot and no doorbell answered. */
  read(offset: number, size: number, data: DataView, at: number): void
  write(offset: number, size: number, data: DataView, at: number): void
}

/** Who a function is. */
export interface PciIdentity {
  readonly vendor: number
  readonly device: number
  readonly revision: number
  /** 24 bits: class, subclass, interface. */
  readonly classCode: number
  readonly subsystemVendor?: number
  readonly subsystem?: number
}

/**
 * A PCI function (PCI Local Bus 3.0 §6): its configuration space lies in memory that the guest reads without an exit,
 * so every write updates that memory before the guest goes on. Only memory BARs; no I/O space, no INTx.
 */
export class PciFunction {
  /** The function's 4 KiB as the guest reads them. */
  readonly config: DataView
  readonly #mask = new Uint8Array(CONFIG_SIZE)
  readonly #bars: (Bar | undefined)[] = new Array<undefined>(BARS)
  readonly #placed: (number | undefined)[] = new Array<undefined>(BARS)
  readonly #watchers: { start: number; end: number; written: () => void }[] = []
  #nextCapability = PCI_STD_HEADER_SIZEOF
  #lastLink = PCI_CAPABILITY_LIST

  constructor(config: DataView, identity: PciIdentity) {
    this.config = config
    new Uint8Array(config.buffer, config.byteOffset, config.byteLength).fill(0)
    config.setUint16(PCI_VENDOR_ID, identity.vendor, true)
    config.setUint16(PCI_DEVICE_ID, identity.device, true)
    config.setUint32(PCI_REVISION_ID, ((identity.classCode << 8) | identity.revision) >>> 0, true)
    config.setUint16(PCI_SUBSYSTEM_VENDOR_ID, identity.subsystemVendor ?? 0, true)
    config.setUint16(PCI_SUBSYSTEM_ID, identity.subsystem ?? 0, true)
    this.allowWrites(PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE, 2)
    this.allowWrites(PCI_CACHE_LINE_SIZE, 0xff, 1)
    this.allowWrites(PCI_INTERRUPT_LINE, 0xff, 1)
  }

  /** @param address where firmware would have put it: a multiple of its size */
  addBar(bar: Bar, address: number): void {
    const at = PCI_BASE_ADDRESS_0 + bar.index * 4
    const flags =
      (bar.wide ? PCI_BASE_ADDRESS_MEM_TYPE_64 : 0) | (bar.prefetchable ? PCI_BASE_ADDRESS_MEM_PREFETCH : 0)
    this.#bars[bar.index] = bar
    this.config.setUint32(at, (address % FOUR_GIB) + flags, true)
    this.allowWrites(at, bar.size >= FOUR_GIB ? 0 : ~(bar.size - 1) >>> 0, 4)
    if (!bar.wide) return
    this.config.setUint32(at + 4, Math.floor(address / FOUR_GIB), true)
    this.allowWrites(at + 4, ~(Math.ceil(bar.size / FOUR_GIB) - 1) >>> 0, 4)
  }

  /** As after a function-level reset: nothing is decoded, and no BAR has an address. */
  reset(): void {
    this.config.setUint16(PCI_COMMAND, 0, true)
    for (const bar of this.#bars) {
      if (!bar) continue
      const at = PCI_BASE_ADDRESS_0 + bar.index * 4
      this.config.setUint32(at, this.config.getUint8(at) & 0xf, true)
      if (bar.wide) this.config.setUint32(at + 4, 0, true)
    }
  }

  /**
   * Appends a capability (§6.7).
   * @param body what follows its id and link
   * @param at its offset in configuration space, where it is not to be the next free one
   * @returns its offset
   */
  addCapability(id: number, body: Uint8Array, at = this.#nextCapability): number {
    if (at + 2 + body.length > CONFIG_SIZE) throw new RangeError('no room for one more PCI capability')
    this.config.setUint8(this.#lastLink, at)
    this.config.setUint8(at, id)
    body.forEach((byte, i) => this.config.setUint8(at + 2 + i, byte))
    this.config.setUint16(PCI_STATUS, PCI_STATUS_CAP_LIST, true)
    this.#lastLink = at + 1
    this.#nextCapability = Math.max(this.#nextCapability, Math.ceil((at + 2 + body.length) / 4) * 4)
    return at
  }

  /** Makes the bits of `mask` writable, in `size` bytes at `offset`. */
  allowWrites(offset: number, mask: number, size: 1 | 2 | 4): void {
    for (let i = 0; i < size; i++) this.#mask[offset + i] = (mask >>> (8 * i)) & 0xff
  }

  /** Calls `written` after each write into the range. */
  watch(offset: number, size: number, written: () => void): void {
    this.#watchers.push({ start: offset, end: offset + size, written })
  }

  /** The guest's write into configuration space. */
  writeConfig(offset: number, size: number, data: DataView, at: number): void {
    for (let i = 0; i < size && offset + i < CONFIG_SIZE; i++) {
      const mask = this.#mask[offset + i]!
      if (mask === 0) continue
      const old = this.config.getUint8(offset + i)
      this.config.setUint8(offset + i, (old & ~mask) | (data.getUint8(at + i) & mask))
    }
    if (offset < PCI_STATUS && offset + size > PCI_COMMAND) this.#decode()
    else if (offset >= PCI_BASE_ADDRESS_0 && offset < PCI_BASE_ADDRESS_0 + BARS * 4) this.#decode()
    for (const { start, end, written } of this.#watchers) if (offset < end && offset + size > start) written()
  }

  /** Finds the BAR that decodes `address`, and calls back. @returns whether there is one */
  access(address: number, call: (bar: Bar, offset: number) => void): boolean {
    for (let i = 0; i < BARS; i++) {
      const start = this.#placed[i]
      const bar = this.#bars[i]
      if (bar === undefined || start === undefined || address < start || address >= start + bar.size) continue
      if ((this.config.getUint16(PCI_COMMAND, true) & PCI_COMMAND_MEMORY) === 0) return false
      call(bar, address - start)
      return true
    }
    return false
  }

  /**
   * Where its regions are. A region stays where it is while decoding is off, since sizing a BAR goes off and on
   * again; {@link evict} takes it away when another needs the place.
   */
  #decode(): void {
    if ((this.config.getUint16(PCI_COMMAND, true) & PCI_COMMAND_MEMORY) === 0) return
    this.#bars.forEach((bar, i) => {
      if (!bar) return
      const at = PCI_BASE_ADDRESS_0 + i * 4
      const high = bar.wide ? this.config.getUint32(at + 4, true) : 0
      const address = high * FOUR_GIB + ((this.config.getUint32(at, true) & ~0xf) >>> 0)
      if (this.#placed[i] === address) return
      if (this.#placed[i] !== undefined) this.#move(bar, undefined)
      if (this.#isFree(address, bar.size) && this.mayPlace(address, bar.size)) this.#move(bar, address)
    })
  }

  /** Whether no other BAR of this function lies there. */
  #isFree(address: number, size: number): boolean {
    return this.#bars.every((bar, i) => {
      const start = this.#placed[i]
      return !bar || start === undefined || start + bar.size <= address || address + size <= start
    })
  }

  /** @param slot where the bus has it */
  describe(slot: number): DescribedFunction {
    const { config } = this
    const command = config.getUint16(PCI_COMMAND, true)
    const text = (value: number, digits: number): string => value.toString(16).padStart(digits, '0')
    const decoded = (command & PCI_COMMAND_MEMORY) !== 0
    return {
      slot,
      id: `${text(config.getUint16(PCI_VENDOR_ID, true), 4)}:${text(config.getUint16(PCI_DEVICE_ID, true), 4)}`,
      class: text(config.getUint32(PCI_REVISION_ID, true) >>> 8, 6),
      memoryDecoded: decoded,
      busMaster: (command & PCI_COMMAND_MASTER) !== 0,
      bars: this.#bars.flatMap((bar, index) => {
        const address = decoded ? this.#placed[index] : undefined
        return bar
          ? [{ index, size: bar.size, ...(address === undefined ? {} : { address: hex(address) }) }]
          : []
      }),
    }
  }

  /** Whether a region may go there; the bus decides. */
  mayPlace: (address: number, size: number) => boolean = () => true

  /** Takes away what lies in the range though decoding is off. @returns false where it is on */
  evict(address: number, size: number): boolean {
    return this.#bars.every((bar, i) => {
      const start = this.#placed[i]
      if (!bar || start === undefined || start + bar.size <= address || address + size <= start) return true
      if ((this.config.getUint16(PCI_COMMAND, true) & PCI_COMMAND_MEMORY) !== 0) return false
      this.#move(bar, undefined)
      return true
    })
  }

  /** What the guest has written, and where its regions are, for a snapshot. */
  save(): { readonly config: string; readonly placed: readonly (number | null)[] } {
    return { config: saveBytes(this.#bytes), placed: this.#placed.map((address) => address ?? null) }
  }

  /**
   * Takes up what {@link save} gave, with the regions where they were.
   * @throws CoracleError SNAPSHOT_INVALID, or SNAPSHOT_MISMATCH where the function is another one
   */
  restore(state: Saved): void {
    const saved = state.get('config').bytes(CONFIG_SIZE)
    const config = this.#bytes
    const same = saved.every((byte, i) => ((byte ^ config[i]!) & ~this.#mask[i]!) === 0)
    if (!same) throw new CoracleError('SNAPSHOT_MISMATCH', 'the snapshot has other devices than this machine')
    config.set(saved)
    state
      .get('placed')
      .list(BARS)
      .forEach((each, i) => {
        const address = each.optional()?.number()
        const bar = this.#bars[i]
        if (!bar || address === undefined || address % bar.size !== 0) return
        if (this.#isFree(address, bar.size) && this.mayPlace(address, bar.size)) this.#move(bar, address)
      })
  }

  /** The part of configuration space that is in use. */
  get #bytes(): Uint8Array {
    return new Uint8Array(this.config.buffer, this.config.byteOffset, CONFIG_SIZE)
  }

  /** Takes away everything that it decodes, for good. */
  withdraw(): void {
    for (const bar of this.#bars) if (bar && this.#placed[bar.index] !== undefined) this.#move(bar, undefined)
  }

  #move(bar: Bar, address: number | undefined): void {
    this.#placed[bar.index] = address
    bar.place(address)
  }
}
