import { EventFd } from '@coracle/sys'
import type { Registration, Vm } from '../../kvm/index.js'
import { NumberPool } from '../memory/pools.js'
import { type Saved, saveBytes } from '../snapshot/saved.js'
import { type DescribedVirtio, hex } from '../description.js'
import type { PciFunction } from './function.js'

/** linux/pci_regs.h */
export const PCI_CAP_ID_MSIX = 0x11
const PCI_MSIX_FLAGS_ENABLE = 0x8000
const PCI_MSIX_FLAGS_MASKALL = 0x4000
/** A table entry: message address (8), message data (4), vector control (4). */
const ENTRY = 16
const VECTOR_CONTROL = 12
const PCI_MSIX_ENTRY_CTRL_MASKBIT = 1

interface Vector {
  readonly event: EventFd
  /** Negative before it has one. */
  gsi: number
  /** The guest takes this vector now. */
  open: boolean
  /** Somebody else signals the event too, so KVM must watch it whenever the vector is open. */
  shared: boolean
  irqfd: Registration | undefined
  /** The message that {@link gsi} is routed to, as text for comparison. */
  routed: string
}

/** Interrupt numbers above those of the IOAPIC, below KVM_MAX_IRQ_ROUTES. */
export class GsiAllocator extends NumberPool {
  constructor() {
    super(24, 4096, 'interrupts')
  }
}

/**
 * A function's message signalled interrupts (PCI Local Bus 3.0 §6.8.2). A vector is an eventfd; while the guest has
 * it unmasked, KVM turns a signal into the message by itself. While it is masked the eventfd keeps the signal, and
 * KVM delivers it when the irqfd is set again: that is the pending bit.
 *
 * Routes and irqfds cost KVM a grace period each, and half of a device's vectors are never raised: so KVM gets to
 * know a vector when it is first raised, unless others raise it too.
 */
export class Msix implements Disposable {
  readonly count: number
  readonly #vm: Vm
  readonly #gsis: NumberPool
  readonly #function: PciFunction
  readonly #capability: number
  readonly #table: DataView
  readonly #pending: DataView
  readonly #vectors: Vector[] = []

  /**
   * @param table the table's memory, which the guest reads without an exit
   * @param pending the pending bits' memory, likewise
   * @param where BAR and offsets of both, for the capability; and its own offset, where that matters
   */
  constructor(
    vm: Vm,
    gsis: NumberPool,
    target: PciFunction,
    count: number,
    table: DataView,
    pending: DataView,
    where: {
      readonly bar: number
      readonly table: number
      readonly pendingBar?: number
      readonly pending: number
      readonly capability?: number
    },
  ) {
    this.count = count
    this.#vm = vm
    this.#gsis = gsis
    this.#function = target
    this.#table = table
    this.#pending = pending
    const body = new DataView(new ArrayBuffer(10))
    body.setUint16(0, count - 1, true)
    body.setUint32(2, where.table | where.bar, true)
    body.setUint32(6, where.pending | (where.pendingBar ?? where.bar), true)
    this.#capability = target.addCapability(PCI_CAP_ID_MSIX, new Uint8Array(body.buffer), where.capability)
    target.allowWrites(this.#capability + 2, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL, 2)
    target.watch(this.#capability + 2, 2, () => this.#update())
    try {
      for (let i = 0; i < count; i++) {
        table.setUint32(i * ENTRY + VECTOR_CONTROL, PCI_MSIX_ENTRY_CTRL_MASKBIT, true)
        const event = EventFd.create()
        this.#vectors.push({ event, gsi: -1, open: false, shared: false, irqfd: undefined, routed: '' })
      }
      for (const each of this.#vectors) each.gsi = gsis.take()
    } catch (error) {
      this.close()
      throw error
    }
  }

  get #flags(): number {
    return this.#function.config.getUint16(this.#capability + 2, true)
  }

  /** Whether the guest uses MSI-X at all. */
  get enabled(): boolean {
    return (this.#flags & PCI_MSIX_FLAGS_ENABLE) !== 0
  }

  /** The eventfd of a vector, for one that raises it without us, such as vhost. */
  share(vector: number): EventFd {
    const each = this.#vectors[vector]!
    each.shared = true
    this.#update(vector)
    return each.event
  }

  /** Raises a vector, or remembers it while it is masked. */
  signal(vector: number): void {
    const each = this.#vectors[vector]
    if (!each) return
    each.event.signal()
    if (!each.open) this.#setPending(vector, true)
    else if (!each.irqfd) this.#attach([vector])
  }

  /** {@link signal} for several vectors, with one change of KVM's routes for all. */
  signalAll(vectors: readonly number[]): void {
    const silent = new Set(vectors.filter((i) => this.#vectors[i]?.open === true && !this.#vectors[i].irqfd))
    if (silent.size > 0) this.#attach([...silent])
    for (const vector of new Set(vectors)) this.signal(vector)
  }

  /** The guest's write into the table: 4 or 8 bytes, aligned (§6.8.2.1); others are ignored. */
  writeTable(offset: number, size: number, data: DataView, at: number): void {
    if ((size !== 4 && size !== 8) || offset % size !== 0 || offset + size > this.count * ENTRY) return
    for (let i = 0; i < size; i += 4) this.#table.setUint32(offset + i, data.getUint32(at + i, true), true)
    this.#update(Math.floor(offset / ENTRY))
  }

  /** Brings the pending bits up to date, for events that others signal. */
  showPending(): void {
    this.#vectors.forEach(({ event, open, shared }, i) => {
      if (!shared) return
      const pending = !open && event.drain()
      // A signal that came between the two is merged into ours: one interrupt either way.
      if (pending) event.signal()
      this.#setPending(i, pending)
    })
  }

  /** As after a reset of the function: off, each vector masked, nothing pending. */
  reset(): void {
    this.#function.config.setUint16(this.#capability + 2, this.count - 1, true)
    for (let i = 0; i < this.count; i++) {
      this.#table.setUint32(i * ENTRY + VECTOR_CONTROL, PCI_MSIX_ENTRY_CTRL_MASKBIT, true)
      this.#vectors[i]!.event.drain()
      this.#setPending(i, false)
    }
    this.#update()
  }

  describe(): DescribedVirtio['msix'] {
    return {
      enabled: this.enabled,
      vectors: this.#vectors.map(({ open, irqfd }, vector) => {
        const word = (at: number): number => this.#table.getUint32(vector * ENTRY + at, true)
        return {
          vector,
          masked: !open,
          pending: this.#isPending(vector),
          attached: irqfd !== undefined,
          message: [hex(word(4) * 2 ** 32 + word(0)), hex(word(8))],
        }
      }),
    }
  }

  /** The offset of the capability, behind which the control register is at 2. */
  get capability(): number {
    return this.#capability
  }

  /** The table and the pending bits, for a snapshot. */
  save(): { readonly table: string; readonly pending: string } {
    return {
      table: saveBytes(bytesOf(this.#table, this.count * ENTRY)),
      pending: saveBytes(this.#pendingBytes),
    }
  }

  /**
   * Takes up what {@link save} gave, after the function's configuration space. No interrupt is raised.
   * @throws CoracleError SNAPSHOT_INVALID
   */
  restore(state: Saved): void {
    const size = this.count * ENTRY
    bytesOf(this.#table, size).set(state.get('table').bytes(size))
    this.#pendingBytes.set(state.get('pending').bytes(this.#pendingBytes.length))
    this.#vectors.forEach((each, i) => {
      each.open = this.#isOpen(i)
      if (this.#isPending(i)) each.event.signal()
    })
  }

  get #pendingBytes(): Uint8Array {
    return bytesOf(this.#pending, Math.ceil(this.count / 8))
  }

  /** Whether the guest takes the vector now. */
  #isOpen(vector: number): boolean {
    const on = (this.#flags & (PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL)) === PCI_MSIX_FLAGS_ENABLE
    const control = this.#table.getUint32(vector * ENTRY + VECTOR_CONTROL, true)
    return on && (control & PCI_MSIX_ENTRY_CTRL_MASKBIT) === 0
  }

  /** The routes go with the next table that is committed: without an irqfd nobody uses them. */
  close(): void {
    for (const each of this.#vectors) {
      each.irqfd?.remove()
      each.event.close()
      if (each.gsi < 0) continue
      this.#vm.routing.remove(each.gsi)
      this.#gsis.giveBack(each.gsi)
    }
  }

  [Symbol.dispose](): void {
    this.close()
  }

  /** Makes KVM's irqfds agree with the table, for one vector or for all. */
  #update(only?: number): void {
    const attach: number[] = []
    this.#vectors.forEach((each, i) => {
      if (only !== undefined && only !== i) return
      each.open = this.#isOpen(i)
      if (!each.open) {
        each.irqfd?.remove()
        each.irqfd = undefined
      } else if (each.irqfd || each.shared || this.#isPending(i)) attach.push(i)
    })
    if (attach.length > 0) this.#attach(attach)
  }

  /** Gives KVM the routes of these vectors, with one commit for all, then their irqfds: it takes none without. */
  #attach(vectors: readonly number[]): void {
    let commit = false
    for (const i of vectors) {
      const each = this.#vectors[i]!
      const low = this.#table.getUint32(i * ENTRY, true)
      const high = this.#table.getUint32(i * ENTRY + 4, true)
      const data = this.#table.getUint32(i * ENTRY + 8, true)
      const message = `${high}:${low}:${data}`
      if (each.routed === message) continue
      this.#vm.routing.setMsi(each.gsi, { address: high * 2 ** 32 + low, data })
      each.routed = message
      commit = true
    }
    if (commit) this.#vm.commitRouting()
    for (const i of vectors) {
      const each = this.#vectors[i]!
      if (!each.irqfd) {
        // KVM delivers what it finds in a new irqfd, but leaves it there, to be delivered again the next time.
        const waiting = each.event.drain()
        each.irqfd = this.#vm.irqfd(each.event, each.gsi)
        if (waiting) each.event.signal()
      }
      this.#setPending(i, false)
    }
  }

  #isPending(vector: number): boolean {
    return ((this.#pending.getUint8(Math.floor(vector / 8)) >> (vector % 8)) & 1) !== 0
  }

  #setPending(vector: number, on: boolean): void {
    const at = Math.floor(vector / 8)
    const bit = 1 << (vector % 8)
    const old = this.#pending.getUint8(at)
    this.#pending.setUint8(at, on ? old | bit : old & ~bit)
  }
}

const bytesOf = ({ buffer, byteOffset }: DataView, size: number): Uint8Array =>
  new Uint8Array(buffer, byteOffset, size)
