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
import { AddressPool } from '../memory/pools.js'
import type { Saved } from '../snapshot/saved.js'
import type { DescribedFunction } from '../description.js'
import { type Bar, PciFunction, type PciIdentity } from './function.js'

const FUNCTION_SIZE = 4096
const SLOT_SIZE = 8 * FUNCTION_SIZE
export const SLOTS = ECAM_SIZE / SLOT_SIZE
/** A host bridge of Intel's, for which Linux knows no quirk. */
const HOST_BRIDGE: PciIdentity = { vendor: 0x8086, device: 0x0d57, revision: 0, classCode: 0x06_00_00 }

/** Addresses for BARs, and which of them firmware has given away: the guest may lay BARs elsewhere. */
interface Window {
  readonly start: number
  readonly end: number
  readonly pool: AddressPool
}

function window(start: number, size: number, name: string): Window {
  return { start, end: start + size, pool: new AddressPool({ start, size }, name) }
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
    window(PCI_WINDOW, PCI_WINDOW_SIZE, 'the PCI window'),
    window(PCI_WINDOW64, PCI_WINDOW64_SIZE, 'the 64-bit PCI window'),
  ]
  /** Slots that {@link add} passes over. */
  #kept = new Set<number>()
  /** What gives back the places of each slot's BARs. */
  readonly #places: (() => void)[][] = Array.from({ length: SLOTS }, () => [])

  /** @param ecam memory of {@link ECAM_SIZE} bytes from `offset` on, all zero */
  constructor(ecam: Mapping, offset: number) {
    this.#ecam = ecam
    this.#offset = offset
    // An empty slot reads as ones. The other functions of a slot are not looked at.
    for (let slot = 0; slot < SLOTS; slot++) this.#config(slot).fill(0xff)
    this.add(HOST_BRIDGE)
  }

  /** Has {@link add} pass over the slots that are not in a saved bus, so that its devices find theirs; or over none. */
  keepTo(saved: Saved | undefined): void {
    const slots = saved?.list(SLOTS, true).map((each) => each.get('slot').number(SLOTS - 1))
    const last = slots?.at(-1) ?? 0
    const all = Array.from({ length: last }, (_, slot) => slot)
    this.#kept = new Set(slots ? all.filter((slot) => !slots.includes(slot)) : [])
  }

  /** Puts a function into the first free slot. @throws CoracleError CONFLICT where the bus is full */
  add(identity: PciIdentity): { readonly slot: number; readonly function: PciFunction } {
    const slot = this.#slots.findIndex((each, i) => each === undefined && !this.#kept.has(i))
    if (slot < 0)
      throw new CoracleError('CONFLICT', `a machine has at most ${SLOTS - 1} devices: remove one first`)
    const { buffer, byteOffset, length } = this.#config(slot)
    const added = new PciFunction(new DataView(buffer, byteOffset, length), identity)
    added.mayPlace = (address, size) => this.#mayPlace(added, address, size)
    this.#slots[slot] = added
    return { slot, function: added }
  }

  /**
   * Takes a function away, with all that it decodes: the slot reads as ones, its BARs' places are free. Whether the
   * guest had let go of it does not matter here.
   */
  remove(slot: number): void {
    this.#slots[slot]?.withdraw()
    this.#slots[slot] = undefined
    for (const giveBack of this.#places[slot]!.splice(0)) giveBack()
    this.#config(slot).fill(0xff)
  }

  /**
   * Gives a BAR its place in the window of its width, as firmware does, so that the kernel leaves it there.
   * @throws CoracleError CONFLICT where the window is full
   */
  addBar(target: PciFunction, bar: Bar): void {
    const { pool } = this.#windows[bar.wide ? 1 : 0]!
    const address = pool.take(bar.size, bar.size)
    this.#places[this.#slots.indexOf(target)]!.push(() => pool.giveBack(address))
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
      this.#accessConfig(address - ECAM, size, isWrite, data, at)
      return true
    }
    if (!this.#windows.some(({ start, end }) => address >= start && address < end)) return false
    const call = (bar: Bar, offset: number): void =>
      isWrite ? bar.write(offset, size, data, at) : bar.read(offset, size, data, at)
    for (const each of this.#slots) if (each?.access(address, call) === true) return true
    if (!isWrite) for (let i = 0; i < size; i++) data.setUint8(at + i, 0xff)
    return true
  }

  /** A slot's configuration space. */
  #config(slot: number): Uint8Array {
    return this.#ecam.bytes(this.#offset + slot * SLOT_SIZE, FUNCTION_SIZE)
  }

  #accessConfig(offset: number, size: number, isWrite: boolean, data: DataView, at: number): void {
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
