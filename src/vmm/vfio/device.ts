import { type EventFd, type Fd, Mapping, SysError } from '@coracle/sys'
import { CoracleError } from '../../errors.js'
import { PAGE } from '../memory/layout.js'
import { PCI_COMMAND } from '../pci/function.js'
import type { Area, HostBar, HostFunction } from './host-function.js'
import {
  VFIO_DEVICE_FLAGS_PCI,
  VFIO_DEVICE_FLAGS_RESET,
  VFIO_DEVICE_GET_INFO,
  VFIO_DEVICE_GET_IRQ_INFO,
  VFIO_DEVICE_GET_REGION_INFO,
  VFIO_DEVICE_RESET,
  VFIO_DEVICE_SET_IRQS,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_PCI_CONFIG_REGION_INDEX,
  VFIO_PCI_ERR_IRQ_INDEX,
  VFIO_PCI_MSIX_IRQ_INDEX,
  VFIO_PCI_REQ_IRQ_INDEX,
  VFIO_REGION_INFO_CAP_SPARSE_MMAP,
  VFIO_REGION_INFO_FLAG_CAPS,
  VFIO_REGION_INFO_FLAG_MMAP,
} from './ioctl.js'

const BARS = 6
/** sizeof(struct vfio_region_info), whose capabilities follow it. */
const REGION_INFO = 32
const MAX_REGION_INFO = 4096
const MAX_CAPABILITIES = 16

interface Region extends HostBar {
  /** Where in the device's file it lies. */
  readonly offset: number
}

/** A PCI function that VFIO gives us (linux/vfio.h). Its group must be in a container with an IOMMU. */
export class VfioDevice implements HostFunction {
  readonly name: string
  readonly bars: readonly (HostBar | undefined)[]
  readonly vectors: number
  readonly #fd: Fd
  readonly #regions: readonly (Region | undefined)[]
  readonly #config: Region
  readonly #canReset: boolean

  /** @param fd of VFIO_GROUP_GET_DEVICE_FD: this object's from now on, unless it throws */
  constructor(name: string, fd: Fd) {
    this.name = name
    this.#fd = fd
    // struct vfio_device_info: argsz, flags, num_regions, num_irqs, cap_offset, padding.
    const info = new Uint32Array([24, 0, 0, 0, 0, 0])
    fd.ioctl(VFIO_DEVICE_GET_INFO, info, 'VFIO_DEVICE_GET_INFO')
    if ((info[1]! & VFIO_DEVICE_FLAGS_PCI) === 0)
      throw new CoracleError('DEVICE_UNUSABLE', `host device ${name} is no PCI device`)
    this.#canReset = (info[1]! & VFIO_DEVICE_FLAGS_RESET) !== 0
    this.#regions = Array.from({ length: BARS }, (_, index) => this.#region(index))
    this.bars = this.#regions
    const config = this.#region(VFIO_PCI_CONFIG_REGION_INDEX)
    if (!config) throw new CoracleError('DEVICE_UNUSABLE', `host device ${name} shows no configuration space`)
    this.#config = config
    this.vectors = this.#irqs(VFIO_PCI_MSIX_IRQ_INDEX)
  }

  readConfig(): Uint8Array {
    const bytes = new Uint8Array(Math.min(this.#config.size, PAGE))
    const length = this.#fd.pread(bytes, this.#config.offset)
    return bytes.subarray(0, length)
  }

  writeCommand(value: number): void {
    this.#fd.pwrite(new Uint16Array([value]), this.#config.offset + PCI_COMMAND)
  }

  readBar(index: number, offset: number, into: Uint8Array): void {
    this.#fd.pread(into, this.#regions[index]!.offset + offset)
  }

  writeBar(index: number, offset: number, from: Uint8Array): void {
    this.#fd.pwrite(from, this.#regions[index]!.offset + offset)
  }

  mapBar(index: number, { offset, size }: Area): Mapping {
    return Mapping.create({ fd: this.#fd, offset: this.#regions[index]!.offset + offset, length: size })
  }

  setVectors(events: readonly EventFd[]): void {
    this.#setIrqs(VFIO_PCI_MSIX_IRQ_INDEX, events)
  }

  watch(failed: EventFd, wanted: EventFd): void {
    const each = [
      [VFIO_PCI_ERR_IRQ_INDEX, failed],
      [VFIO_PCI_REQ_IRQ_INDEX, wanted],
    ] as const
    // Not every device has them: errors are reported over PCI Express alone.
    for (const [index, event] of each) if (this.#irqs(index) > 0) this.#setIrqs(index, [event])
  }

  reset(): void {
    if (this.#canReset) this.#fd.ioctl(VFIO_DEVICE_RESET, 0, 'VFIO_DEVICE_RESET')
  }

  close(): void {
    this.#fd.close()
  }

  #region(index: number): Region | undefined {
    // struct vfio_region_info: argsz, flags, index, cap_offset, size, offset.
    const info = new DataView(new ArrayBuffer(MAX_REGION_INFO))
    info.setUint32(0, MAX_REGION_INFO, true)
    info.setUint32(8, index, true)
    this.#fd.ioctl(VFIO_DEVICE_GET_REGION_INFO, info, 'VFIO_DEVICE_GET_REGION_INFO')
    const flags = info.getUint32(4, true)
    const size = Number(info.getBigUint64(16, true))
    if (size === 0) return undefined
    const sparse = (flags & VFIO_REGION_INFO_FLAG_CAPS) !== 0 ? sparseAreas(info) : undefined
    const mappable = (flags & VFIO_REGION_INFO_FLAG_MMAP) === 0 ? [] : (sparse ?? [{ offset: 0, size }])
    return { size, offset: Number(info.getBigUint64(24, true)), mappable }
  }

  /** How many interrupts an index has; 0 for one that the device does not know. */
  #irqs(index: number): number {
    // struct vfio_irq_info: argsz, flags, index, count.
    const info = new Uint32Array([16, 0, index, 0])
    try {
      this.#fd.ioctl(VFIO_DEVICE_GET_IRQ_INFO, info, 'VFIO_DEVICE_GET_IRQ_INFO')
    } catch (error) {
      if (error instanceof SysError && error.code === 'EINVAL') return 0
      throw error
    }
    return info[3]!
  }

  #setIrqs(index: number, events: readonly EventFd[]): void {
    // struct vfio_irq_set: argsz, flags, index, start, count, data.
    const set = new Int32Array(5 + events.length)
    const data = events.length === 0 ? VFIO_IRQ_SET_DATA_NONE : VFIO_IRQ_SET_DATA_EVENTFD
    set.set([set.byteLength, data | VFIO_IRQ_SET_ACTION_TRIGGER, index, 0, events.length])
    events.forEach((event, i) => (set[5 + i] = event.number))
    this.#fd.ioctl(VFIO_DEVICE_SET_IRQS, set, 'VFIO_DEVICE_SET_IRQS')
  }
}

/** The parts that may be mapped (struct vfio_region_info_cap_sparse_mmap), where the kernel names them. */
function sparseAreas(info: DataView): Area[] | undefined {
  let at = info.getUint32(12, true)
  for (let i = 0; i < MAX_CAPABILITIES && at >= REGION_INFO && at + 16 <= MAX_REGION_INFO; i++) {
    if (info.getUint16(at, true) === VFIO_REGION_INFO_CAP_SPARSE_MMAP) {
      const count = Math.min(info.getUint32(at + 8, true), Math.floor((MAX_REGION_INFO - at - 16) / 16))
      return Array.from({ length: count }, (_, n) => ({
        offset: Number(info.getBigUint64(at + 16 + n * 16, true)),
        size: Number(info.getBigUint64(at + 24 + n * 16, true)),
      }))
    }
    at = info.getUint32(at + 4, true)
  }
  return undefined
}
