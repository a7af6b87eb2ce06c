import type { Mapping } from '@coracle/sys'
import type { Vm } from '../../kvm/index.js'
import { PAGE } from '../memory/layout.js'
import type { NumberPool } from '../memory/pools.js'
import type { Bar } from '../pci/function.js'
import type { Area, HostBar, HostFunction } from './host-function.js'

/** A part of a BAR that is not the device's but ours. */
export interface Trap extends Area {
  read(offset: number, size: number, data: DataView, at: number): void
  write(offset: number, size: number, data: DataView, at: number): void
}

export interface PassthroughBarInit {
  readonly index: number
  readonly wide: boolean
  readonly prefetchable: boolean
  readonly bar: HostBar
  readonly traps: readonly Trap[]
}

/**
 * A BAR of a host device. Whole pages of it are memory of the guest's, so that it reaches the device without an exit;
 * pages with a trap in them are not, nor what the host does not let us map: there each access comes here.
 */
export class PassthroughBar implements Bar, Disposable {
  readonly index: number
  readonly wide: boolean
  readonly prefetchable: boolean
  readonly size: number
  /** Of the device's own; behind it up to `size` there is nothing. */
  readonly #length: number
  readonly #host: HostFunction
  readonly #vm: Vm
  readonly #slots: NumberPool
  readonly #traps: readonly Trap[]
  readonly #parts: { readonly area: Area; readonly mapping: Mapping; readonly slot: number }[] = []
  #placed = false

  constructor(host: HostFunction, vm: Vm, slots: NumberPool, init: PassthroughBarInit) {
    const { index, wide, prefetchable, bar, traps } = init
    this.index = index
    this.wide = wide
    this.prefetchable = prefetchable
    this.#length = bar.size
    this.size = powerOfTwo(Math.max(PAGE, bar.size))
    this.#host = host
    this.#vm = vm
    this.#slots = slots
    this.#traps = traps
    try {
      for (const area of mappedAreas(bar, traps))
        this.#parts.push({ area, mapping: host.mapBar(index, area), slot: slots.take() })
    } catch (error) {
      this.close()
      throw error
    }
  }

  place(address: number | undefined): void {
    if (this.#placed) for (const { slot } of this.#parts) this.#vm.removeMemory(slot)
    this.#placed = address !== undefined
    if (address === undefined) return
    for (const { area, mapping, slot } of this.#parts)
      this.#vm.setMemory(slot, {
        guestAddress: address + area.offset,
        size: area.size,
        mapping,
        mappingOffset: 0,
        name: `${this.#host.name} BAR ${this.index}`,
      })
  }

  read(offset: number, size: number, data: DataView, at: number): void {
    for (let i = 0; i < size; i++) data.setUint8(at + i, 0xff)
    const trap = this.#trapAt(offset, size)
    if (trap) {
      if (inside(trap, offset, size)) trap.read(offset - trap.offset, size, data, at)
    } else if (offset + size <= this.#length)
      this.#host.readBar(this.index, offset, new Uint8Array(data.buffer, data.byteOffset + at, size))
  }

  write(offset: number, size: number, data: DataView, at: number): void {
    const trap = this.#trapAt(offset, size)
    if (trap) {
      if (inside(trap, offset, size)) trap.write(offset - trap.offset, size, data, at)
    } else if (offset + size <= this.#length)
      this.#host.writeBar(this.index, offset, new Uint8Array(data.buffer, data.byteOffset + at, size))
  }

  close(): void {
    this.place(undefined)
    for (const { mapping, slot } of this.#parts) {
      mapping.unmap()
      this.#slots.giveBack(slot)
    }
    this.#parts.length = 0
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #trapAt(offset: number, size: number): Trap | undefined {
    return this.#traps.find((trap) => offset < trap.offset + trap.size && offset + size > trap.offset)
  }
}

const inside = (area: Area, offset: number, size: number): boolean =>
  offset >= area.offset && offset + size <= area.offset + area.size

const powerOfTwo = (size: number): number => 2 ** Math.ceil(Math.log2(size))

/** The whole pages of `bar` that may be mapped and hold no trap. */
export function mappedAreas(bar: HostBar, traps: readonly Area[]): Area[] {
  const down = (n: number): number => Math.floor(n / PAGE) * PAGE
  const up = (n: number): number => Math.ceil(n / PAGE) * PAGE
  let areas = bar.mappable.map(({ offset, size }) => ({
    start: up(offset),
    end: down(Math.min(offset + size, bar.size)),
  }))
  for (const { offset, size } of traps)
    areas = areas.flatMap(({ start, end }) => [
      { start, end: Math.min(end, down(offset)) },
      { start: Math.max(start, up(offset + size)), end },
    ])
  return areas
    .filter(({ start, end }) => start < end)
    .map(({ start, end }) => ({ offset: start, size: end - start }))
}
