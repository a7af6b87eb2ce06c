import { Fd, type Mapping, O_RDWR, SysError } from '@coracle/sys'
import { CoracleError } from '../../errors.js'
import type { Vm } from '../../kvm/index.js'
import {
  VFIO_API_VERSION,
  VFIO_CHECK_EXTENSION,
  VFIO_DMA_MAP_FLAG_READ,
  VFIO_DMA_MAP_FLAG_WRITE,
  VFIO_GET_API_VERSION,
  VFIO_GROUP_FLAGS_VIABLE,
  VFIO_GROUP_GET_DEVICE_FD,
  VFIO_GROUP_GET_STATUS,
  VFIO_GROUP_SET_CONTAINER,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_UNMAP_DMA,
  VFIO_SET_IOMMU,
  VFIO_TYPE1v2_IOMMU,
} from './ioctl.js'
import { VfioDevice } from './device.js'

/** Memory of the guest that its devices may reach. */
export interface DmaRange {
  readonly guestAddress: number
  readonly size: number
  readonly mapping: Mapping
  readonly mappingOffset: number
}

/** Where a function of the host is reached. */
export interface VfioAddress {
  /** On the host's bus: `0000:01:10.0`. */
  readonly address: string
  /** The character device of its IOMMU group, such as `/dev/vfio/12`. */
  readonly group: string
}

/** VFIO's container device. */
export const VFIO_CONTAINER = '/dev/vfio/vfio'

/**
 * The devices of one guest and what they see of its memory (Linux, Documentation/driver-api/vfio.rst): its RAM, at
 * the guest's own addresses, and nothing else, by the host's IOMMU. All of that memory is pinned while it is mapped:
 * map it once the guest's memory is in place, since a page that changes hands later would be the device's no more.
 */
export class VfioContainer implements Disposable {
  readonly #fd: Fd
  readonly #vm: Vm
  readonly #ranges: readonly DmaRange[]
  readonly #groups = new Map<string, Fd>()
  #bridge: Fd | undefined
  #mapped: DmaRange[] = []

  /** @throws CoracleError VFIO_UNAVAILABLE */
  constructor(vm: Vm, ranges: readonly DmaRange[], path = VFIO_CONTAINER) {
    this.#vm = vm
    this.#ranges = ranges
    try {
      this.#fd = Fd.openOrDuplicate(path, O_RDWR)
    } catch (error) {
      throw unavailable(error)
    }
    const version = this.#fd.ioctl(VFIO_GET_API_VERSION, 0, 'VFIO_GET_API_VERSION')
    const iommu = this.#fd.ioctl(VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU, 'VFIO_CHECK_EXTENSION')
    if (version === VFIO_API_VERSION && iommu > 0) return
    this.#fd.close()
    throw new CoracleError(
      'VFIO_UNAVAILABLE',
      "this host's VFIO has no type 1 IOMMU: load the module vfio_iommu_type1 (modprobe vfio-pci)",
    )
  }

  /**
   * Opens a function that is bound to vfio-pci. The first one maps the guest's memory.
   * @throws CoracleError DEVICE_IN_USE, DEVICE_UNUSABLE, VFIO_UNAVAILABLE
   */
  open({ address, group: path }: VfioAddress): VfioDevice {
    const group = this.#group(address, path)
    let fd: Fd
    try {
      const name = Buffer.from(`${address}\0`, 'latin1')
      fd = new Fd(group.ioctl(VFIO_GROUP_GET_DEVICE_FD, name, 'VFIO_GROUP_GET_DEVICE_FD'))
    } catch (error) {
      throw reasoned(`host device ${address}`, error, {
        ENODEV: ['DEVICE_UNUSABLE', 'is not bound to vfio-pci'],
        EBUSY: ['DEVICE_IN_USE', 'is in use'],
      })
    }
    try {
      return new VfioDevice(address, fd)
    } catch (error) {
      fd.close()
      throw error
    }
  }

  /** Closes the groups too; their devices must be closed by then. */
  close(): void {
    if (this.#groups.size > 0) this.#unmap()
    this.#bridge?.close()
    for (const group of this.#groups.values()) group.close()
    this.#groups.clear()
    this.#fd.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #group(address: string, path: string): Fd {
    const known = this.#groups.get(path)
    if (known) return known
    let group: Fd
    try {
      group = Fd.openOrDuplicate(path, O_RDWR)
    } catch (error) {
      throw reasoned(`host device ${address}`, error, {
        ENOENT: ['DEVICE_UNUSABLE', 'is not bound to vfio-pci, or has no IOMMU group'],
        EBUSY: ['DEVICE_IN_USE', 'is in use: another program has its IOMMU group open'],
      })
    }
    try {
      // struct vfio_group_status: argsz, flags.
      const status = new Uint32Array([8, 0])
      group.ioctl(VFIO_GROUP_GET_STATUS, status, 'VFIO_GROUP_GET_STATUS')
      if ((status[1]! & VFIO_GROUP_FLAGS_VIABLE) === 0)
        throw new CoracleError(
          'DEVICE_UNUSABLE',
          `host device ${address} shares its IOMMU group with devices that the host uses: give all of the group ` +
            'to vfio-pci, or put the adapter into another slot',
        )
      this.#join(address, group)
    } catch (error) {
      group.close()
      throw error
    }
    this.#groups.set(path, group)
    return group
  }

  #join(address: string, group: Fd): void {
    try {
      group.ioctl(VFIO_GROUP_SET_CONTAINER, new Int32Array([this.#fd.number]), 'VFIO_GROUP_SET_CONTAINER')
    } catch (error) {
      throw reasoned(`host device ${address}`, error, { EBUSY: ['DEVICE_IN_USE', 'is in use'] })
    }
    if (this.#groups.size === 0) {
      try {
        this.#fd.ioctl(VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU, 'VFIO_SET_IOMMU')
      } catch (error) {
        throw reasoned(`host device ${address}`, error, {
          EPERM: ['VFIO_UNAVAILABLE', "cannot be isolated: the host's IOMMU does not remap interrupts"],
          ENODEV: ['VFIO_UNAVAILABLE', 'has no IOMMU that VFIO can use'],
        })
      }
      this.#map()
    }
    this.#bridge ??= this.#vm.createVfioBridge()
    this.#vm.addVfioGroup(this.#bridge, group.number)
  }

  #map(): void {
    for (const range of this.#ranges) {
      const { guestAddress, size, mapping, mappingOffset } = range
      // struct vfio_iommu_type1_dma_map: argsz, flags, vaddr, iova, size.
      const map = new DataView(new ArrayBuffer(32))
      map.setUint32(0, 32, true)
      map.setUint32(4, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE, true)
      map.setBigUint64(8, mapping.address + BigInt(mappingOffset), true)
      map.setBigUint64(16, BigInt(guestAddress), true)
      map.setBigUint64(24, BigInt(size), true)
      try {
        this.#fd.ioctl(VFIO_IOMMU_MAP_DMA, map, 'VFIO_IOMMU_MAP_DMA')
      } catch (error) {
        // What was mapped before goes with the group, which leaves the container now.
        this.#mapped = []
        throw reasoned("the guest's memory", error, {
          ENOMEM: [
            'DEVICE_UNUSABLE',
            'cannot be pinned for its devices: raise the limit of locked memory (ulimit -l) or ask for less memory',
          ],
          EINVAL: ['DEVICE_UNUSABLE', "does not fit the addresses that the host's IOMMU has"],
        })
      }
      this.#mapped.push(range)
    }
  }

  #unmap(): void {
    for (const { guestAddress, size } of this.#mapped) {
      // struct vfio_iommu_type1_dma_unmap: argsz, flags, iova, size.
      const unmap = new DataView(new ArrayBuffer(24))
      unmap.setUint32(0, 24, true)
      unmap.setBigUint64(8, BigInt(guestAddress), true)
      unmap.setBigUint64(16, BigInt(size), true)
      this.#fd.ioctl(VFIO_IOMMU_UNMAP_DMA, unmap, 'VFIO_IOMMU_UNMAP_DMA')
    }
    this.#mapped = []
  }
}

type Reason = readonly [code: 'DEVICE_IN_USE' | 'DEVICE_UNUSABLE' | 'VFIO_UNAVAILABLE', text: string]

function reasoned(what: string, error: unknown, reasons: Record<string, Reason>): unknown {
  const reason = error instanceof SysError ? reasons[error.code] : undefined
  if (!reason) return error
  return new CoracleError(reason[0], `${what} ${reason[1]}`, { cause: error })
}

function unavailable(error: unknown): unknown {
  if (!(error instanceof SysError)) return error
  const why =
    error.code === 'EACCES' || error.code === 'EPERM'
      ? 'no permission on /dev/vfio/vfio: devices are given away by root'
      : `this host has no VFIO (/dev/vfio/vfio: ${error.code}): load its module with modprobe vfio-pci`
  return new CoracleError('VFIO_UNAVAILABLE', why, { cause: error })
}
