import { type Epoll, Fd, Mapping } from '@coracle/sys'
import { GuestMemory, type MemoryRegion } from 'vhost-user-ts'
import { CoracleError } from '../../errors.js'
import { KVM_CAP_NR_MEMSLOTS, KVM_CAP_READONLY_MEM, KVM_MEM_READONLY, type Vm } from '../../kvm/index.js'
import type { DeviceDescription } from '../description.js'
import { Vsock } from '../devices/vsock/vsock.js'
import { ECAM, ECAM_SIZE, MIB, PAGE } from '../memory/layout.js'
import { RamDiscard } from '../memory/discard.js'
import { AddressPool, NumberPool } from '../memory/pools.js'
import { describeSlots } from '../memory/slots.js'
import type { SharedRam } from '../memory/ram.js'
import { PciBus, SLOTS } from '../pci/bus.js'
import { PAGES_PER_SLOT, type PciDevice, type PciHost } from '../pci/host.js'
import { GsiAllocator } from '../pci/msix.js'
import type { Saved } from '../snapshot/saved.js'
import { type SavedTransport, VirtioPci } from '../virtio-pci/transport.js'
import { type DeviceSpec, openDevice } from './device-spec.js'
import type { OpenDevice } from './open-device.js'

/** Memory slots: RAM has the first ones. */
const ECAM_SLOT = 4
const FIRST_FREE_SLOT = 8
/** What huge pages and the guest's memory sections like. */
const REGION_ALIGNMENT = 128 * MIB
/** Bytes of memory that {@link DeviceBay} wants for its registers. */
export const BAY_PAGES = ECAM_SIZE + SLOTS * PAGES_PER_SLOT * PAGE

/** A device that is in the machine. */
interface Live {
  readonly open: OpenDevice
  readonly pci: PciDevice
  readonly regions: readonly { readonly region: MemoryRegion; readonly slot: number }[]
  readonly addresses: readonly number[]
}

/**
 * Where devices are put into the machine and taken out again, while the guest runs or before: PCI, the memory that
 * they bring along, and the numbers that they hold. Either all of a device is in the machine or nothing.
 */
export class DeviceBay {
  readonly #host: PciHost
  readonly #addresses: AddressPool
  readonly #live = new Map<number, Live>()
  #next = 1
  /** The one vsock device, if there is one. */
  vsock: Vsock | undefined
  readonly #ram: RamDiscard
  readonly #ramSize: number

  /** @param pages {@link BAY_PAGES} bytes, all zero */
  constructor(
    vm: Vm,
    ram: SharedRam,
    pages: Mapping,
    loop: Epoll,
    { metrics, log, fail }: Pick<PciHost, 'metrics' | 'log' | 'fail'>,
  ) {
    this.#ram = new RamDiscard(ram)
    this.#ramSize = ram.length
    const mapping = Mapping.borrow(ram.address, ram.length)
    // The descriptor is the giver's: it stays open for as long as there are devices.
    const fd = ram.fd === undefined ? undefined : new Fd(ram.fd)
    const memory = new GuestMemory(
      ram.ranges.map(({ start, size, offset }) => ({
        guestAddress: start,
        size,
        mapping,
        mappingOffset: offset,
        ...(fd ? { file: { fd, offset } } : {}),
      })),
    )
    const readOnlySlots = vm.checkExtension(KVM_CAP_READONLY_MEM) > 0
    this.#addresses = new AddressPool(ram.deviceMemory, "the guest's address space")
    this.#host = {
      vm,
      bus: new PciBus(pages, 0),
      gsis: new GsiAllocator(),
      memorySlots: new NumberPool(FIRST_FREE_SLOT, vm.checkExtension(KVM_CAP_NR_MEMSLOTS), 'memory slots'),
      memory,
      loop,
      pages: { mapping: pages, offset: ECAM_SIZE },
      readOnlySlots,
      ...(metrics ? { metrics } : {}),
      log,
      fail,
    }
    const ecam = { guestAddress: ECAM, size: ECAM_SIZE, mapping: pages, mappingOffset: 0, name: 'ECAM' }
    if (readOnlySlots) vm.setMemory(ECAM_SLOT, ecam, KVM_MEM_READONLY)
  }

  get bus(): PciBus {
    return this.#host.bus
  }

  /**
   * Opens a device and puts it on the bus. A running guest finds it when it looks.
   * @throws CoracleError INVALID_ARGUMENT, CONFLICT, KVM_REFUSED, or what else its kind throws; nothing stays then
   */
  plug(spec: DeviceSpec): { readonly id: number; readonly slot: number } {
    if (spec.kind === 'vsock' && this.vsock)
      throw new CoracleError('CONFLICT', 'a machine has one vsock device at most')
    const undo: (() => void)[] = []
    try {
      const live = this.#plug(spec, undo)
      const id = this.#next++
      this.#live.set(id, live)
      if ('device' in live.open && live.open.device instanceof Vsock) this.vsock = live.open.device
      return { id, slot: live.pci.slot }
    } catch (error) {
      for (const step of undo.reverse()) step()
      throw error
    }
  }

  /**
   * Takes a device out, whether the guest has let go of it or not, and closes it.
   * @throws CoracleError NOT_FOUND
   */
  unplug(id: number): void {
    const live = this.#find(id)
    this.#live.delete(id)
    const { open, pci, regions, addresses } = live
    pci.close()
    for (const { region, slot } of regions) this.#removeRegion(region, slot)
    for (const address of addresses) this.#addresses.giveBack(address)
    if ('device' in open && open.device === this.vsock) this.vsock = undefined
    open.close()
  }

  /** @throws CoracleError NOT_FOUND, NOT_IMPLEMENTED, or what the device throws */
  control(id: number, request: unknown): unknown {
    const { open } = this.#find(id)
    if (!open.control) throw new CoracleError('NOT_IMPLEMENTED', 'this device takes no requests')
    return open.control(request)
  }

  /**
   * Bus and devices in a snapshot, by slot: plain JSON.
   * @throws CoracleError SNAPSHOT_UNSUPPORTED for a device that cannot be saved
   */
  save(): { readonly bus: ReturnType<PciBus['save']>; readonly transports: readonly SavedTransport[] } {
    const transports = this.#bySlot().map(({ pci }) => {
      if (pci instanceof VirtioPci) return pci.save()
      throw new CoracleError('SNAPSHOT_UNSUPPORTED', 'a machine with a device of the host cannot be saved')
    })
    return { bus: this.bus.save(), transports }
  }

  /**
   * Takes up what {@link save} gave, with the same devices in the same slots. They do nothing before {@link wake}.
   * @throws CoracleError SNAPSHOT_INVALID, SNAPSHOT_MISMATCH
   */
  restore(state: Saved): void {
    this.bus.restore(state.get('bus'))
    const live = this.#bySlot()
    const saved = state.get('transports').list(live.length)
    live.forEach(({ pci }, i) => {
      if (pci instanceof VirtioPci) pci.restore(saved[i]!)
    })
  }

  wake(): void {
    for (const { pci } of this.#bySlot()) if (pci instanceof VirtioPci) pci.wake()
  }

  describe(): DeviceDescription {
    const virtio = new Map(
      this.#bySlot().flatMap(({ pci }) => (pci instanceof VirtioPci ? [[pci.slot, pci] as const] : [])),
    )
    return {
      memory: describeSlots(this.#host.vm),
      pci: this.bus.describe().map((each) => {
        const transport = virtio.get(each.slot)
        return transport ? { ...each, virtio: transport.describe() } : each
      }),
    }
  }

  /** Takes all devices out. */
  close(): void {
    for (const id of [...this.#live.keys()].reverse()) this.unplug(id)
  }

  #bySlot(): Live[] {
    return [...this.#live.values()].sort((a, b) => a.pci.slot - b.pci.slot)
  }

  #find(id: number): Live {
    const live = this.#live.get(id)
    if (!live) throw new CoracleError('NOT_FOUND', 'the machine has no such device: it was removed before')
    return live
  }

  #plug(spec: DeviceSpec, undo: (() => void)[]): Live {
    const addresses: number[] = []
    const place = (size: number): number => {
      const address = this.#addresses.take(size, REGION_ALIGNMENT)
      addresses.push(address)
      undo.push(() => this.#addresses.giveBack(address))
      return address
    }
    const memorySize = this.#ramSize
    const discard = (address: number, length: number): number => {
      const pinned = [...this.#live.values()].some((each) => !('device' in each.open))
      return pinned ? 0 : this.#ram.discard(address, length)
    }
    const open = openDevice(spec, { ...this.#host, place, memorySize, discard })
    undo.push(() => open.close())
    const regions = (open.regions ?? []).map((region) => {
      const slot = this.#addRegion(region, 'device' in open ? open.device.name : spec.kind)
      undo.push(() => this.#removeRegion(region, slot))
      return { region, slot }
    })
    const pci = 'device' in open ? new VirtioPci(open.device, this.#host) : open.attach()
    return { open, pci, regions, addresses }
  }

  #addRegion(region: MemoryRegion, name: string): number {
    const { vm, memory, memorySlots } = this.#host
    const slot = memorySlots.take()
    try {
      vm.setMemory(slot, { ...region, name }, region.readOnly === true ? KVM_MEM_READONLY : 0)
      try {
        memory.add(region)
      } catch (error) {
        vm.removeMemory(slot)
        throw error
      }
    } catch (error) {
      memorySlots.giveBack(slot)
      throw error
    }
    return slot
  }

  /** Nobody may look there any more when this returns: the memory is unmapped next. */
  #removeRegion(region: MemoryRegion, slot: number): void {
    const { vm, memory, memorySlots } = this.#host
    for (const { pci } of this.#live.values()) pci.memoryLeaves(region.guestAddress, region.size)
    vm.removeMemory(slot)
    memorySlots.giveBack(slot)
    memory.remove(region)
  }
}
