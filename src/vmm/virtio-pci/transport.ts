import type { EventFd } from '@coracle/sys'
import {
  type DeviceContext,
  RING_FEATURES,
  type SavedState,
  VIRTIO_F_VERSION_1,
  type VirtioDevice,
  VirtioError,
  Virtqueue,
  type VirtqueueInit,
} from 'vhost-user-ts'
import { CoracleError } from '../../errors.js'
import { KVM_MEM_READONLY, type Registration } from '../../kvm/index.js'
import { type DescribedVirtio, hex } from '../description.js'
import { PAGE } from '../memory/layout.js'
import type { Bar, PciFunction, PciIdentity } from '../pci/function.js'
import { PAGES_PER_SLOT, type PciDevice, type PciHost } from '../pci/host.js'
import { Msix } from '../pci/msix.js'
import type { Saved } from '../snapshot/saved.js'
import {
  addCapability,
  ConfigurationWindow,
  VIRTIO_PCI_CAP_COMMON_CFG,
  VIRTIO_PCI_CAP_DEVICE_CFG,
  VIRTIO_PCI_CAP_ISR_CFG,
  VIRTIO_PCI_CAP_NOTIFY_CFG,
} from './capabilities.js'
import {
  COMMON_SIZE,
  CommonConfig,
  DRIVER_OK,
  type SavedCommon,
  VIRTIO_MSI_NO_VECTOR,
  statusNames,
} from './common.js'
import { DeviceCounters } from '../metrics/device-metrics.js'
import { Doorbells } from './doorbells.js'

/** linux/pci_ids.h and virtio 1.2 §4.1.2: the vendor, and the device id of type 0. */
const PCI_VENDOR_ID_REDHAT_QUMRANET = 0x1af4
const FIRST_DEVICE_ID = 0x1040
const VIRTIO_PCI_ISR_INTR = 1
const VIRTIO_PCI_ISR_CONFIG = 2

/*
 * BAR 0, in pages. The first four are memory that the guest reads without an exit (a read-only slot); a write to
 * them, and any access to the others, comes to us. Doorbells are eventfds once the device is active.
 */
const COMMON_PAGE = 0
const CONFIG_PAGE = 1
const TABLE_PAGE = 2
const PENDING_PAGE = 3
const ISR_PAGE = 4
const NOTIFY_PAGE = 5
const BAR_SIZE = 8 * PAGE
const DIRECT_SIZE = PAGES_PER_SLOT * PAGE
const NOTIFY_OFF_MULTIPLIER = 4

/** Class codes by device type, for whoever reads `lspci`; others are "unassigned". */
const CLASS_CODES: Readonly<Record<number, number>> = { 1: 0x02_00_00, 2: 0x01_80_00, 3: 0x07_80_00 }

/** A transport and its device in a snapshot; what PCI has of it is the bus's. */
export interface SavedTransport {
  readonly type: number
  readonly common: SavedCommon
  readonly msix: ReturnType<Msix['save']>
  readonly isr: number
  /** The device serves its driver: neither reset nor failed. */
  readonly active: boolean
  /** Where each queue goes on; null for one that the driver left disabled. */
  readonly rings: readonly ({ readonly nextAvailable: number; readonly nextUsed: number } | null)[]
  readonly device: SavedState
}

/**
 * One virtio device behind PCI, modern interface only (virtio 1.2 §4.1): the capabilities, the registers, doorbells
 * by ioeventfd, interrupts by MSI-X and irqfd.
 */
export class VirtioPci implements Bar, PciDevice {
  readonly index = 0
  readonly size = BAR_SIZE
  readonly device: VirtioDevice
  readonly slot: number
  readonly #host: PciHost
  /** Where its part of {@link PciHost.pages} begins. */
  readonly #pages: number
  /** The memory slot of those pages, where KVM has read-only ones. */
  readonly #memorySlot: number | undefined
  readonly #counters: DeviceCounters | undefined
  readonly #function: PciFunction
  readonly #common: CommonConfig
  readonly #config: DataView
  readonly #msix: Msix
  /** What gives back all that was taken so far, last first. */
  readonly #undo: (() => void)[] = []
  readonly #doorbells: Doorbells | undefined
  #isr = 0
  #address: number | undefined
  #bells: Registration[] = []
  /** The driver has set DRIVER_OK, and no reset and no failure came since. */
  #active = false
  /** The device has its context. */
  #running = false
  /** While the device has its context. */
  #queues: readonly (Virtqueue | undefined)[] = []
  readonly #window: ConfigurationWindow

  /** @throws CoracleError CONFLICT where the bus is full, KVM_REFUSED */
  constructor(device: VirtioDevice, host: PciHost) {
    this.device = device
    this.#host = host
    const { pages, bus, vm } = host
    const queues = device.queueSizes.length
    const identity: PciIdentity = {
      vendor: PCI_VENDOR_ID_REDHAT_QUMRANET,
      device: FIRST_DEVICE_ID + device.type,
      revision: 1,
      classCode: CLASS_CODES[device.type] ?? 0xff_00_00,
      subsystemVendor: PCI_VENDOR_ID_REDHAT_QUMRANET,
      subsystem: FIRST_DEVICE_ID + device.type,
    }
    const { slot, function: target } = bus.add(identity)
    this.slot = slot
    this.#counters = host.metrics && new DeviceCounters(host.metrics, slot)
    this.#counters?.clear()
    this.#function = target
    this.#pages = pages.offset + slot * DIRECT_SIZE
    const direct = pages.mapping.bytes(this.#pages, DIRECT_SIZE)
    const page = (index: number): DataView =>
      new DataView(direct.buffer, direct.byteOffset + index * PAGE, PAGE)
    this.#undo.push(() => direct.fill(0))
    try {
      if (host.readOnlySlots) {
        const number = (this.#memorySlot = host.memorySlots.take())
        this.#undo.push(() => host.memorySlots.giveBack(number))
      }
      const vectors = queues + 1
      const msix = new Msix(vm, host.gsis, target, vectors, page(TABLE_PAGE), page(PENDING_PAGE), {
        bar: this.index,
        table: TABLE_PAGE * PAGE,
        pending: PENDING_PAGE * PAGE,
      })
      this.#msix = msix
      this.#undo.push(() => msix.close())
      const offered = device.features | VIRTIO_F_VERSION_1 | (device.ringFeatures ?? RING_FEATURES)
      this.#common = new CommonConfig(page(COMMON_PAGE), offered, device.queueSizes, vectors, {
        reset: () => this.#deactivate(),
        activate: () => this.#activate(),
      })
      this.#config = page(CONFIG_PAGE)
      this.#showConfig()
      const doorbells = new Doorbells(host.loop, queues, (index) => {
        this.#counters?.noteNotification(index)
        this.#notify(index)
      })
      this.#doorbells = doorbells
      this.#undo.push(() => doorbells[Symbol.dispose]())
      bus.addBar(target, this)
      this.#addCapabilities()
      this.#window = new ConfigurationWindow(target, this, DIRECT_SIZE)
    } catch (error) {
      this.close()
      throw error
    }
  }

  /** Moves doorbells and memory slot to where the guest put the BAR. */
  place(address: number | undefined): void {
    const { vm, pages } = this.#host
    const slot = this.#memorySlot
    this.#silence()
    if (slot !== undefined && this.#address !== undefined) vm.removeMemory(slot)
    this.#address = address
    if (address === undefined) return
    if (slot !== undefined) {
      const { mapping } = pages
      const memory = {
        guestAddress: address,
        size: DIRECT_SIZE,
        mapping,
        mappingOffset: this.#pages,
        name: `BAR 0 of slot ${this.slot}`,
      }
      vm.setMemory(slot, memory, KVM_MEM_READONLY)
    }
    if (this.#active) this.#hangBells()
  }

  read(offset: number, size: number, data: DataView, at: number): void {
    if (offset === ISR_PAGE * PAGE) {
      data.setUint8(at, this.#isr)
      this.#isr = 0
      return
    }
    if (offset + size > DIRECT_SIZE) return
    const bytes = this.#host.pages.mapping.bytes(this.#pages + offset, size)
    bytes.forEach((byte, i) => data.setUint8(at + i, byte))
  }

  write(offset: number, size: number, data: DataView, at: number): void {
    const within = offset % PAGE
    switch (Math.floor(offset / PAGE)) {
      case COMMON_PAGE:
        if (within < COMMON_SIZE) this.#common.write(within, size, data, at)
        break
      case CONFIG_PAGE:
        this.#writeConfig(within, size, data, at)
        break
      case TABLE_PAGE:
        this.#msix.writeTable(within, size, data, at)
        break
      case NOTIFY_PAGE:
        // A doorbell of a width that no eventfd matched.
        this.#notify(Math.floor(within / NOTIFY_OFF_MULTIPLIER))
        break
    }
    this.#window.show()
  }

  /** @throws CoracleError SNAPSHOT_UNSUPPORTED for a device that cannot be saved */
  save(): SavedTransport {
    const { device } = this
    if (!device.save)
      throw new CoracleError(
        'SNAPSHOT_UNSUPPORTED',
        `a machine with the device "${device.name}" cannot be saved`,
      )
    let state: SavedState
    try {
      state = device.save()
    } catch (error) {
      throw new CoracleError('SNAPSHOT_UNSUPPORTED', `${device.name}: ${String(error)}`, { cause: error })
    }
    if (this.#queues.some((queue) => (queue?.inFlight ?? 0) > 0))
      throw new CoracleError('SNAPSHOT_UNSUPPORTED', `${device.name} has requests under way`)
    return {
      type: device.type,
      common: this.#common.save(),
      msix: this.#msix.save(),
      isr: this.#isr,
      active: this.#active,
      rings: this.#queues.map((queue) =>
        queue ? { nextAvailable: queue.nextAvailable, nextUsed: queue.nextUsed } : null,
      ),
      device: state,
    }
  }

  /**
   * Takes up what {@link save} gave, on a new transport, after its function's configuration space. The device has its
   * context then, but nothing happens in the guest before {@link wake}.
   * @throws CoracleError SNAPSHOT_INVALID, SNAPSHOT_MISMATCH
   */
  restore(state: Saved): void {
    const { device } = this
    if (state.get('type').number() !== device.type)
      throw new CoracleError(
        'SNAPSHOT_MISMATCH',
        `the snapshot has another device in place of ${device.name}`,
      )
    this.#common.restore(state.get('common'))
    this.#msix.restore(state.get('msix'))
    this.#isr = state.get('isr').number(VIRTIO_PCI_ISR_INTR | VIRTIO_PCI_ISR_CONFIG)
    try {
      device.restore?.(state.get('device').raw as SavedState)
    } catch (error) {
      throw new CoracleError('SNAPSHOT_INVALID', `${device.name}: ${String(error)}`, { cause: error })
    }
    this.#showConfig()
    if (!state.get('active').boolean()) return
    if (!this.#common.agreed)
      throw new CoracleError('SNAPSHOT_MISMATCH', `the guest uses features that ${device.name} lacks here`)
    const rings = state.get('rings').list(device.queueSizes.length)
    this.#begin((index) => {
      const ring = rings[index]!
      return {
        nextAvailable: ring.get('nextAvailable').number(0xffff),
        nextUsed: ring.get('nextUsed').number(0xffff),
      }
    })
  }

  /**
   * Lets a restored device go on, when the processors are restored too. Doorbells and interrupts that were on their
   * way at the snapshot are not in it: so each queue is looked at, and its driver gets one interrupt.
   */
  wake(): void {
    if (!this.#active) return
    const { queues } = this.#common
    queues.forEach((_, index) => this.#notify(index))
    this.#msix.signalAll(queues.filter(({ enabled }) => enabled).map(({ vector }) => vector))
  }

  describe(): DescribedVirtio {
    const { name, type, queueSizes } = this.device
    const { status, features, offered, queues } = this.#common
    const metrics = this.#counters?.read(queueSizes.length)
    return {
      name,
      type,
      status: statusNames(status),
      offered: hex(offered),
      features: hex(features),
      msix: this.#msix.describe(),
      queues: queues.map((registers, index) => {
        const { enabled, size, vector } = registers
        const queue = this.#queues[index]
        return {
          index,
          enabled,
          size,
          maximum: queueSizes[index]!,
          ...(vector === VIRTIO_MSI_NO_VECTOR ? {} : { vector }),
          descriptorTable: hex(registers.descriptorTable),
          availableRing: hex(registers.availableRing),
          usedRing: hex(registers.usedRing),
          ...(queue
            ? { nextAvailable: queue.nextAvailable, nextUsed: queue.nextUsed, inFlight: queue.inFlight }
            : {}),
        }
      }),
      ...(metrics ? { metrics } : {}),
    }
  }

  /** Rings are used through views of guest memory; whatever else a device reads is looked up each time. */
  memoryLeaves(guestAddress: number, size: number): void {
    const within = (at: number): boolean => at >= guestAddress && at < guestAddress + size
    for (const { enabled, descriptorTable, availableRing, usedRing } of this.#common.queues)
      if (enabled && [descriptorTable, availableRing, usedRing].some(within))
        this.#fail(new VirtioError('QUEUE_ADDRESS', 'the memory of a ring was taken away'))
  }

  close(): void {
    this.#deactivate()
    this.#host.bus.remove(this.slot)
    for (const undo of this.#undo.splice(0).reverse()) undo()
  }

  #activate(): void {
    this.#begin()
    this.#common.queues.forEach(({ enabled }, index) => {
      if (enabled) this.#notify(index)
    })
  }

  /** @param ring where a queue that ran before goes on */
  #begin(ring?: (index: number) => Pick<VirtqueueInit, 'nextAvailable' | 'nextUsed'>): void {
    const { memory, loop } = this.#host
    const { queues: registers, features } = this.#common
    this.#active = true
    try {
      const queues = registers.map((queue, index) => {
        if (!queue.enabled) return undefined
        const { size, descriptorTable, availableRing, usedRing } = queue
        const maxSize = this.device.queueSizes[index]!
        const counters = this.#counters?.queue(index)
        return new Virtqueue(memory, {
          index,
          size,
          maxSize,
          descriptorTable,
          availableRing,
          usedRing,
          features,
          ...(counters ? { counters } : {}),
          ...ring?.(index),
        })
      })
      this.#queues = queues
      const context: DeviceContext = {
        memory,
        queues,
        features,
        loop,
        interrupt: (index) => {
          this.#counters?.noteInterrupt(index)
          this.#interrupt(registers[index]!.vector, VIRTIO_PCI_ISR_INTR)
        },
        configChanged: () => this.#configChanged(),
        handOver: (index) => this.#handOver(index),
        fail: (reason) => this.#fail(reason),
      }
      this.#hangBells()
      this.#running = true
      this.#counters?.noteActivation()
      this.device.activate(context)
    } catch (error) {
      this.#fail(error)
    }
  }

  #deactivate(): void {
    this.#silence()
    this.#active = false
    try {
      if (this.#running) this.device.reset()
    } finally {
      this.#running = false
      this.#queues = []
      this.#doorbells?.takeBack()
      this.#isr = 0
    }
  }

  /** @see DeviceContext.handOver */
  #handOver(index: number): { kick: EventFd; call: EventFd } {
    const { vector } = this.#common.queues[index]!
    const raised = this.#msix.enabled && vector !== VIRTIO_MSI_NO_VECTOR
    return this.#doorbells!.handOver(index, raised ? this.#msix.share(vector) : undefined, () =>
      // The driver polls: it may read the interrupt status, which is ours to keep.
      this.#interrupt(vector, VIRTIO_PCI_ISR_INTR),
    )
  }

  #notify(index: number): void {
    if (!this.#active || this.#common.queues[index]?.enabled !== true) return
    if (this.#doorbells!.pass(index)) return
    try {
      this.device.notify(index)
    } catch (error) {
      this.#fail(error)
    }
  }

  /** The device stops; the guest hears of it and may reset it; everything else lives on. */
  #fail(error: unknown): void {
    if (!this.#active) return
    this.#counters?.noteFailure()
    this.#host.log(`${this.device.name}: ${error instanceof Error ? error.message : String(error)}`)
    try {
      this.#deactivate()
    } catch (again) {
      this.#host.log(`${this.device.name}: while it stopped: ${String(again)}`)
    }
    this.#common.setNeedsReset()
    if ((this.#common.status & DRIVER_OK) !== 0) this.#configInterrupt()
  }

  #configChanged(): void {
    this.#showConfig()
    this.#common.nextGeneration()
    this.#configInterrupt()
  }

  #configInterrupt(): void {
    this.#interrupt(this.#common.configVector, VIRTIO_PCI_ISR_CONFIG)
  }

  #interrupt(vector: number, isr: number): void {
    if (!this.#msix.enabled) this.#isr |= isr
    else if (vector !== VIRTIO_MSI_NO_VECTOR) this.#msix.signal(vector)
  }

  #hangBells(): void {
    const address = this.#address
    if (address === undefined) return
    const { vm } = this.#host
    const kicks = this.#doorbells!.kicks
    this.#bells = kicks
      .filter((_, i) => this.#common.queues[i]!.enabled)
      .map((kick) => {
        const i = kicks.indexOf(kick)
        return vm.ioeventfd(kick, {
          space: 'mmio',
          address: address + NOTIFY_PAGE * PAGE + i * NOTIFY_OFF_MULTIPLIER,
          length: 2,
        })
      })
  }

  #silence(): void {
    for (const bell of this.#bells) bell.remove()
    this.#bells = []
  }

  #writeConfig(offset: number, size: number, data: DataView, at: number): void {
    if (!this.device.writeConfig || offset + size > this.device.config.length) return
    const bytes = Uint8Array.from({ length: size }, (_, i) => data.getUint8(at + i))
    try {
      this.device.writeConfig(offset, bytes)
    } catch (error) {
      this.#fail(error)
    }
    this.#showConfig()
  }

  #showConfig(): void {
    const { buffer, byteOffset } = this.#config
    new Uint8Array(buffer, byteOffset, PAGE).set(this.device.config.subarray(0, PAGE))
  }

  /** §4.1.4: where each structure is. */
  #addCapabilities(): void {
    const add = (type: number, page: number, length: number, extra?: number): void => {
      const place = { offset: page * PAGE, length, ...(extra === undefined ? {} : { extra }) }
      addCapability(this.#function, this, type, place)
    }
    const bells = Math.max(1, this.device.queueSizes.length) * NOTIFY_OFF_MULTIPLIER
    add(VIRTIO_PCI_CAP_COMMON_CFG, COMMON_PAGE, COMMON_SIZE)
    add(VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY_PAGE, bells, NOTIFY_OFF_MULTIPLIER)
    add(VIRTIO_PCI_CAP_ISR_CFG, ISR_PAGE, 1)
    if (this.device.config.length > 0) add(VIRTIO_PCI_CAP_DEVICE_CFG, CONFIG_PAGE, this.device.config.length)
  }
}
