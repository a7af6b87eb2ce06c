import { EPOLLIN, EventFd } from '@coracle/sys'
import { CoracleError } from '../../errors.js'
import {
  PCI_BASE_ADDRESS_0,
  PCI_COMMAND,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_DEVICE_ID,
  PCI_REVISION_ID,
  PCI_SUBSYSTEM_ID,
  PCI_SUBSYSTEM_VENDOR_ID,
  PCI_VENDOR_ID,
  type PciFunction,
} from '../pci/function.js'
import type { PciDevice, PciHost } from '../pci/host.js'
import { Msix } from '../pci/msix.js'
import { PassthroughBar, type Trap } from './bar.js'
import {
  type MsixPlace,
  PCI_CAP_ID_EXP,
  PCI_EXP_DEVCTL,
  PCI_EXP_DEVCTL_BCR_FLR,
  checkMsix,
  readCapabilities,
} from './capabilities.js'
import type { HostFunction } from './host-function.js'

const PCI_BASE_ADDRESS_SPACE_IO = 0x1
const PCI_BASE_ADDRESS_MEM_TYPE_64 = 0x4
const PCI_BASE_ADDRESS_MEM_PREFETCH = 0x8
const PCI_COMMAND_INTX_DISABLE = 0x400
const ENTRY = 16
const BARS = 6

/** What a passed-through function stands on. */
export type PassthroughInit = Pick<PciHost, 'vm' | 'bus' | 'gsis' | 'loop' | 'memorySlots' | 'log' | 'fail'>

/**
 * A PCI function of the host in the guest's bus. The guest talks to the device itself, by its BARs; its
 * configuration space is ours, made of what the device says of itself: of what the guest writes there only bus
 * mastering and a function-level reset reach the device. Interrupts go from VFIO to KVM by eventfd, MSI-X alone.
 *
 * The device's memory decoding stays on for as long as this lives, so that the guest's mapped BARs never fault.
 */
export class VfioPci implements PciDevice, Disposable {
  readonly slot: number
  readonly #host: HostFunction
  readonly #init: PassthroughInit
  readonly #function: PciFunction
  readonly #bars: PassthroughBar[] = []
  readonly #msix: Msix
  readonly #events: readonly EventFd[]
  readonly #failed = EventFd.create()
  readonly #wanted = EventFd.create()
  #vectorsOn = false
  #master = false

  /**
   * Resets the device and puts it on the bus.
   * @param host this object's from now on, unless it throws
   * @throws CoracleError DEVICE_UNUSABLE
   */
  constructor(host: HostFunction, init: PassthroughInit) {
    this.#host = host
    this.#init = init
    host.reset()
    const bytes = host.readConfig()
    if (bytes.length < 256)
      throw new CoracleError('DEVICE_UNUSABLE', `host device ${host.name} shows no configuration space`)
    const config = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    const { shown, msix: found, extended } = readCapabilities(bytes)
    const place = checkMsix(host.name, found, host.bars)
    const count = Math.min(place.count, host.vectors)
    if (count === 0)
      throw new CoracleError('DEVICE_UNUSABLE', `host device ${host.name} gets no interrupts from the host`)

    const added = init.bus.add({
      vendor: config.getUint16(PCI_VENDOR_ID, true),
      device: config.getUint16(PCI_DEVICE_ID, true),
      revision: config.getUint8(PCI_REVISION_ID),
      classCode: config.getUint32(PCI_REVISION_ID, true) >>> 8,
      subsystemVendor: config.getUint16(PCI_SUBSYSTEM_VENDOR_ID, true),
      subsystem: config.getUint16(PCI_SUBSYSTEM_ID, true),
    })
    this.slot = added.slot
    const target = (this.#function = added.function)
    const table = new DataView(new ArrayBuffer(count * ENTRY))
    const pending = new DataView(new ArrayBuffer(Math.ceil(count / 64) * 8))
    try {
      this.#msix = new Msix(init.vm, init.gsis, target, count, table, pending, {
        ...place,
        capability: place.at,
      })
      this.#addBars(config, place, table, pending)
      for (const { id, at, body } of shown) {
        target.addCapability(id, body, at)
        if (id === PCI_CAP_ID_EXP) this.#watchExpress(at)
      }
      new Uint8Array(target.config.buffer, target.config.byteOffset + 0x100, extended.length).set(extended)
      this.#events = Array.from({ length: count }, (_, i) => this.#msix.share(i))
      target.watch(this.#msix.capability + 2, 2, () => this.#setVectors(this.#msix.enabled))
      target.watch(PCI_COMMAND, 2, () => this.#command())
      this.#writeCommand(false)
      this.#watchHost()
    } catch (error) {
      this.#release()
      throw error
    }
  }

  get name(): string {
    return this.#host.name
  }

  /** Takes the device from the guest, resets it and gives it back to the host. */
  close(): void {
    // What fails here fails since the device is gone: the rest is given back all the same.
    const attempt = (action: () => void): void => {
      try {
        action()
      } catch (error) {
        this.#init.log(`host device ${this.name}: ${String(error)}`)
      }
    }
    attempt(() => this.#setVectors(false))
    attempt(() => this.#host.writeCommand(0))
    attempt(() => this.#host.reset())
    this.#release()
    attempt(() => this.#host.close())
  }

  [Symbol.dispose](): void {
    this.close()
  }

  /** What devices see of guest memory is RAM alone, which stays. */
  memoryLeaves(): void {
    return
  }

  #release(): void {
    this.#init.bus.remove(this.slot)
    for (const event of [this.#failed, this.#wanted]) {
      this.#init.loop.remove(event.fd)
      event.close()
    }
    for (const bar of this.#bars) bar.close()
    this.#msix?.close()
  }

  #addBars(config: DataView, place: MsixPlace, table: DataView, pending: DataView): void {
    const traps: (Trap & { readonly bar: number })[] = [
      {
        bar: place.bar,
        offset: place.table,
        // All that the device calls its table, also where the host has fewer vectors.
        size: place.count * ENTRY,
        read: (offset, size, data, at) => copy(table, offset, size, data, at),
        write: (offset, size, data, at) => this.#msix.writeTable(offset, size, data, at),
      },
      {
        bar: place.pendingBar,
        offset: place.pending,
        size: Math.ceil(place.count / 64) * 8,
        read: (offset, size, data, at) => {
          this.#msix.showPending()
          copy(pending, offset, size, data, at)
        },
        write: () => undefined,
      },
    ]
    for (let index = 0; index < BARS; index++) {
      const bar = this.#host.bars[index]
      const register = config.getUint32(PCI_BASE_ADDRESS_0 + index * 4, true)
      const wide = (register & PCI_BASE_ADDRESS_MEM_TYPE_64) !== 0
      // Ports are left out: no driver needs them that can do without, and the guest's bus has none.
      if (!bar || (register & PCI_BASE_ADDRESS_SPACE_IO) !== 0) continue
      if (wide && index === BARS - 1) continue
      const mine = new PassthroughBar(this.#host, this.#init.vm, this.#init.memorySlots, {
        index,
        wide,
        prefetchable: (register & PCI_BASE_ADDRESS_MEM_PREFETCH) !== 0,
        bar,
        traps: traps.filter((trap) => trap.bar === index),
      })
      this.#bars.push(mine)
      this.#init.bus.addBar(this.#function, mine)
      // The other half of a 64-bit register is none of its own.
      if (wide) index++
    }
  }

  /** The device's control register is the guest's to write, without effect but for the reset. */
  #watchExpress(at: number): void {
    const control = at + PCI_EXP_DEVCTL
    this.#function.allowWrites(control, 0xffff, 2)
    this.#function.watch(control, 2, () => {
      const value = this.#function.config.getUint16(control, true)
      if ((value & PCI_EXP_DEVCTL_BCR_FLR) === 0) return
      this.#function.config.setUint16(control, value & ~PCI_EXP_DEVCTL_BCR_FLR, true)
      this.#resetFunction()
    })
  }

  /** The guest's function-level reset (PCI Express Base 5.0 §6.6.2). */
  #resetFunction(): void {
    this.#setVectors(false)
    this.#writeCommand(false)
    this.#attempt('reset', () => this.#host.reset())
    this.#function.reset()
    this.#msix.reset()
    this.#writeCommand(false)
  }

  #setVectors(on: boolean): void {
    if (this.#vectorsOn === on) return
    this.#vectorsOn = on
    this.#attempt('set up interrupts', () => this.#host.setVectors(on ? this.#events : []))
  }

  #command(): void {
    const master = (this.#function.config.getUint16(PCI_COMMAND, true) & PCI_COMMAND_MASTER) !== 0
    if (master !== this.#master) this.#writeCommand(master)
  }

  #writeCommand(master: boolean): void {
    this.#master = master
    const value = PCI_COMMAND_MEMORY | PCI_COMMAND_INTX_DISABLE | (master ? PCI_COMMAND_MASTER : 0)
    this.#attempt('write its command register', () => this.#host.writeCommand(value))
  }

  #attempt(what: string, action: () => void): void {
    try {
      action()
    } catch (error) {
      this.#init.fail(`host device ${this.name} fails (${what}: ${(error as Error).message})`)
    }
  }

  #watchHost(): void {
    const { loop } = this.#init
    loop.add(this.#failed.fd, EPOLLIN, () => {
      this.#failed.drain()
      this.#init.fail(`host device ${this.name} reported an error that it cannot recover from`)
    })
    loop.add(this.#wanted.fd, EPOLLIN, () => {
      this.#wanted.drain()
      this.#init.fail(`the host takes its device ${this.name} away`)
    })
    this.#host.watch(this.#failed, this.#wanted)
  }
}

/** Bytes of `from`; behind its end they are zero. */
function copy(from: DataView, offset: number, size: number, data: DataView, at: number): void {
  for (let i = 0; i < size; i++)
    data.setUint8(at + i, offset + i < from.byteLength ? from.getUint8(offset + i) : 0)
}
