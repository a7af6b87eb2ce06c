import { Epoll, Mapping } from '@coracle/sys'
import type { VirtioDevice } from 'vhost-user-ts'
import { KVM_CAP_READONLY_MEM, Kvm } from '../../src/kvm/index.js'
import { BAY_PAGES } from '../../src/vmm/device-thread/device-bay.js'
import { ECAM, ECAM_SIZE, PAGE } from '../../src/vmm/memory/layout.js'
import { NumberPool } from '../../src/vmm/memory/pools.js'
import { newMetrics } from '../../src/vmm/metrics/device-metrics.js'
import { PciBus } from '../../src/vmm/pci/bus.js'
import type { PciHost } from '../../src/vmm/pci/host.js'
import { GsiAllocator } from '../../src/vmm/pci/msix.js'
import * as reg from '../../src/vmm/virtio-pci/common.js'
import { VirtioPci } from '../../src/vmm/virtio-pci/transport.js'
import { BASE, DriverQueue, RING_FEATURES, TestGuest } from '../vhost-user-ts/driver.js'

const VERSION_1 = 1n << 32n
const FIRST_SLOT = 8

/**
 * A bus with devices behind the real transport, and the driver's view of it. The VM has no processor: accesses come
 * from the test.
 */
export class Rig<D extends VirtioDevice = VirtioDevice> {
  readonly kvm = Kvm.open()
  readonly vm = this.kvm.createVm()
  readonly loop = new Epoll()
  readonly pages = Mapping.create({ length: BAY_PAGES })
  readonly bus: PciBus
  readonly host: PciHost
  readonly transports: VirtioPci[]
  readonly log: string[] = []
  readonly metrics = newMetrics()
  readonly readOnly: boolean
  readonly #view = new DataView(new ArrayBuffer(8))

  constructor(
    readonly devices: readonly D[],
    readonly guest = new TestGuest(1 << 20),
  ) {
    this.vm.createIrqchip()
    const { memory, region } = guest
    this.vm.setMemory(0, region)
    this.readOnly = this.vm.checkExtension(KVM_CAP_READONLY_MEM) > 0
    this.bus = new PciBus(this.pages, 0)
    this.host = {
      vm: this.vm,
      bus: this.bus,
      gsis: new GsiAllocator(),
      memorySlots: new NumberPool(FIRST_SLOT, FIRST_SLOT + 32, 'memory slots'),
      memory,
      loop: this.loop,
      pages: { mapping: this.pages, offset: ECAM_SIZE },
      metrics: this.metrics,
      readOnlySlots: this.readOnly,
      fail: (reason) => this.log.push(reason),
      log: (line) => this.log.push(line),
    }
    this.transports = this.devices.map((device) => new VirtioPci(device, this.host))
  }

  get device(): D {
    return this.devices[0]!
  }

  write(address: number, size: 1 | 2 | 4, value: number): void {
    if (size === 1) this.#view.setUint8(0, value)
    else if (size === 2) this.#view.setUint16(0, value, true)
    else this.#view.setUint32(0, value, true)
    this.bus.access(address, size, true, this.#view, 0)
  }

  read(address: number, size: 1 | 2 | 4): number {
    this.#view.setBigUint64(0, 0n)
    this.bus.access(address, size, false, this.#view, 0)
    if (size === 1) return this.#view.getUint8(0)
    return size === 2 ? this.#view.getUint16(0, true) : this.#view.getUint32(0, true)
  }

  /** Configuration space of device `index`. */
  config(offset: number, index = 0): number {
    return ECAM + (index + 1) * 8 * PAGE + offset
  }

  /** Where device `index` has its BAR. */
  bar(index = 0): number {
    return this.read(this.config(0x10, index), 4)
  }

  /** Common configuration. */
  set(register: number, size: 1 | 2 | 4, value: number, index = 0): void {
    this.write(this.bar(index) + register, size, value)
  }
  get(register: number, size: 1 | 2 | 4, index = 0): number {
    return this.read(this.bar(index) + register, size)
  }

  decode(index = 0): void {
    this.write(this.config(4, index), 2, 6)
  }

  features(bits: bigint, index = 0): void {
    for (const half of [0, 1]) {
      this.set(reg.DRIVER_FEATURE_SELECT, 4, half, index)
      this.set(reg.DRIVER_FEATURE, 4, Number((bits >> BigInt(half * 32)) & 0xffff_ffffn), index)
    }
  }

  /**
   * A driver that does all as it should: resets the device, takes every feature, and gives it all its queues, in the
   * guest's memory from where its allocator stands.
   */
  drive(index = 0): DriverQueue[] {
    const device = this.devices[index]!
    const set = (register: number, size: 1 | 2 | 4, value: number): void =>
      this.set(register, size, value, index)
    const features = device.features | RING_FEATURES
    this.decode(index)
    for (const status of [0, 1, 3]) set(reg.DEVICE_STATUS, 1, status)
    this.features(features, index)
    set(reg.DEVICE_STATUS, 1, 11)
    const queues = device.queueSizes.map((size, i) => {
      const queue = new DriverQueue(this.guest, size, features)
      set(reg.QUEUE_SELECT, 2, i)
      set(reg.QUEUE_DESC, 4, queue.descriptorTable)
      set(reg.QUEUE_DRIVER, 4, queue.availableRing)
      set(reg.QUEUE_DEVICE, 4, queue.usedRing)
      set(reg.QUEUE_ENABLE, 2, 1)
      return queue
    })
    set(reg.DEVICE_STATUS, 1, 15)
    return queues
  }

  /** Rings the doorbell of a queue, by a write that no eventfd takes. */
  ring(queue: number, index = 0): void {
    this.write(this.bar(index) + this.capability(2, index).offset + queue * 4, 4, queue)
  }

  /**
   * Lets the devices do what they have put off.
   * @throws Error where they never come to an end
   */
  settle(): void {
    for (let i = 0; i < 10_000; i++) if (this.loop.wait(0) === 0) return
    throw new Error('the devices spin')
  }

  /** As a driver does it (virtio 1.2 §3.1.1), with queue 0 alone. */
  start(ring = BASE): void {
    this.decode()
    this.set(reg.DEVICE_STATUS, 1, 1)
    this.set(reg.DEVICE_STATUS, 1, 3)
    this.features(VERSION_1)
    this.set(reg.DEVICE_STATUS, 1, 11)
    this.set(reg.QUEUE_SELECT, 2, 0)
    this.set(reg.QUEUE_DESC, 4, ring)
    this.set(reg.QUEUE_DRIVER, 4, ring + 0x1000)
    this.set(reg.QUEUE_DEVICE, 4, ring + 0x2000)
    this.set(reg.QUEUE_ENABLE, 2, 1)
    this.set(reg.DEVICE_STATUS, 1, 15)
  }

  /** The first capability of a type: its offset, and where its structure is in the BAR. */
  capability(type: number, index = 0): { at: number; offset: number; length: number } {
    for (
      let at = this.read(this.config(0x34, index), 1);
      at !== 0;
      at = this.read(this.config(at + 1, index), 1)
    )
      if (this.read(this.config(at, index), 1) === 9 && this.read(this.config(at + 3, index), 1) === type)
        return {
          at,
          offset: this.read(this.config(at + 8, index), 4),
          length: this.read(this.config(at + 12, index), 4),
        }
    throw new Error(`no capability ${type}`)
  }

  [Symbol.dispose](): void {
    for (const transport of this.transports) transport.close()
    this.loop.close()
    this.vm.close()
    this.kvm.close()
    this.pages.unmap()
    this.guest[Symbol.dispose]()
  }
}
