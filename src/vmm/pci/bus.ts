import type { Mapping } from '@coracle/sys'
import { CoracleError } from '../../errors.js'
import {
  ECAM,
  ECAM_SIZE,
  PCI_WINDOW,
  PCI_WINDOW64,
  PCI_WINDOW64_SIZE,
  PCI_WINDOW_SIZE,
} from '../memory/layout.js'
import type { Saved } from '../snapshot/saved.js'
import type { DescribedFunction } from '../description.js'
import { type Bar, PciFunction, type PciIdentity } from './function.js'

const FUNCTION_SIZE = 4096
const SLOT_SIZE = 8 * FUNCTION_SIZE
const SLOTS = ECAM_SIZE / SLOT_SIZE
/** A host bridge of Intel's, for which Linux knows no quirk. */
const HOST_BRIDGE: PciIdentity = { vendor: 0x8086, device: 0x0d57, revision: 0, classCode: 0x06_00_00 }

/** Addresses for BARs; `next` is the first that firmware has not given away. */
interface Window {
  readonly start: number
  readonly end: number
  next: number
}

/**
 * Bus 0: one function a slot, the host bridge in slot 0. Its configuration space (ECAM, PCI Express 5.0 §7.2.2) is
 * memory that the guest may read; writes, and accesses to BARs that nothing else answers, come here.
 */
export class PciBus {
  readonly #ecam: Mapping
  readonly #offset: number
  readonly #slots: (PciFunction | undefined)[] = new Array<undefined>(SLOTS)
  readonly #windows: readonly Window[] = [
    { start: PCI_WINDOW, end: PCI_WINDOW + PCI_WINDOW_SIZE, next: PCI_WINDOW },
    { start: PCI_WINDOW64, end: PCI_WINDOW64 + PCI_WINDOW64_SIZE, next: PCI_WINDOW64 },
  ]

  /** @param ecam memory of {@link ECAM_SIZE} bytes from `offset` on, all zero */
  constructor(ecam: Mapping, offset: number) {
    this.#ecam = ecam
    this.#offset = offset
    // An empty slot reads as ones. Zero would do for Linux; the other functions of a slot are not looked at.
    for (let slot = 0; slot < SLOTS; slot++) ecam.bytes(offset + slot * SLOT_SIZE, 64).fill(0xff)
    this.add(HOST_BRIDGE)
  }

  /** Puts a function into the next free slot. @throws RangeError where the bus is full */
  add(identity: PciIdentity): { readonly slot: number; readonly function: PciFunction } {
    const slot = this.#slots.findIndex((each) => each === undefined)
    if (slot < 0) throw new RangeError(`a bus has ${SLOTS} slots`)
    const config = new DataView(this.#ecam.view(this.#offset + slot * SLOT_SIZE, FUNCTION_SIZE))
    const added = new PciFunction(config, identity)
    added.mayPlace = (address, size) => this.#mayPlace(added, address, size)
    this.#slots[slot] = added
    return { slot, function: added }
  }

  /** Gives a BAR its place in the window of its width, as firmware does, so that the kernel leaves it there. */
  addBar(target: PciFunction, bar: Bar): void {
    const window = this.#windows[bar.wide ? 1 : 0]!
    const address = Math.ceil(window.next / bar.size) * bar.size
    if (address + bar.size > window.end) throw new RangeError('the PCI window is full')
    window.next = address + bar.size
    target.addBar(bar, address)
  }

  /** What the guest has written into each function, for a snapshot. */
  save(): ({ readonly slot: number } & ReturnType<PciFunction['save']>)[] {
    return this.#slots.flatMap((each, slot) => (each ? [{ slot, ...each.save() }] : []))
  }

  /**
   * Takes up what {@link save} gave, on a bus with the same functions in the same slots.
   * @throws CoracleError SNAPSHOT_INVALID, SNAPSHOT_MISMATCH
   */
  restore(state: Saved): void {
    const present = this.#slots.flatMap((each, slot) => (each ? [{ slot, each }] : []))
    const saved = state.list(present.length)
    present.forEach(({ slot, each }, i) => {
      if (saved[i]!.get('slot').number() !== slot)
        throw new CoracleError('SNAPSHOT_MISMATCH', 'the snapshot has its devices in other slots')
      each.restore(saved[i]!)
    })
  }

  /** The guest's access to memory. @returns whether it was for the bus */
  access(address: number, size: number, isWrite: boolean, data: DataView, at: number): boolean {
    if (address >= ECAM && address < ECAM + ECAM_SIZE) {
      this.#config(address - ECAM, size, isWrite, data, at)
      return true
    }
    if (!this.#windows.some(({ start, end }) => address >= start && address < end)) return false
    const call = (bar: Bar, offset: number): void =>
      isWrite ? bar.write(offset, size, data, at) : bar.read(offset, size, data, at)
    for (const each of this.#slots) if (each?.access(address, call) === true) return true
    if (!isWrite) for (let i = 0; i < size; i++) data.setUint8(at + i, 0xff)
    return true
  }

  #config(offset: number, size: number, isWrite: boolean, data: DataView, at: number): void {
    if (!isWrite) {
      // Only where KVM has no read-only slots: the same memory, by hand.
      const bytes = this.#ecam.bytes(this.#offset + offset, Math.min(size, ECAM_SIZE - offset))
      bytes.forEach((byte, i) => data.setUint8(at + i, byte))
      return
    }
    const within = offset % SLOT_SIZE
    if (within >= FUNCTION_SIZE) return
    this.#slots[Math.floor(offset / SLOT_SIZE)]?.writeConfig(within, size, data, at)
  }

  describe(): DescribedFunction[] {
    return this.#slots.flatMap((each, slot) => (each ? [each.describe(slot)] : []))
  }

  /** A region must lie in a window and on no other that is decoded. */
  #mayPlace(asking: PciFunction, address: number, size: number): boolean {
    if (!this.#windows.some(({ start, end }) => address >= start && address + size <= end)) return false
    return this.#slots.every((each) => !each || each === asking || each.evict(address, size))
  }
}
