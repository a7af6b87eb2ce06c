import type { DeviceHost, OpenDevice } from '../device-thread/open-device.js'
import type { Vm } from '../../kvm/index.js'
import { VFIO_CONTAINER, VfioContainer } from './container.js'
import { VfioPci } from './passthrough.js'

/** A PCI function of the host that is bound to vfio-pci. All of the guest's memory is pinned while it has one. */
export interface VfioSpec {
  readonly kind: 'vfio'
  /** On the host's bus: `0000:01:10.0`. */
  readonly address: string
  /** The character device of its IOMMU group: `/dev/vfio/12`, or `/proc/self/fd/N` for one that is open already. */
  readonly group: string
  /** VFIO's own, likewise. @default '/dev/vfio/vfio' */
  readonly container?: string
}

/** The devices of one machine are in one container, so that its memory is mapped once. */
const containers = new WeakMap<Vm, { readonly container: VfioContainer; users: number }>()

/** @throws CoracleError DEVICE_IN_USE, DEVICE_UNUSABLE, VFIO_UNAVAILABLE */
export function openVfio(
  { container: path = VFIO_CONTAINER, ...at }: VfioSpec,
  host: DeviceHost,
): OpenDevice {
  const { vm, memory } = host
  const shared = containers.get(vm) ?? {
    container: new VfioContainer(
      vm,
      // What others brought along and the guest cannot write (pmem) is a file's: it is not for devices to pin.
      memory.regions.filter(({ readOnly }) => readOnly !== true),
      path,
    ),
    users: 0,
  }
  containers.set(vm, shared)
  shared.users++
  const close = (): void => {
    if (--shared.users > 0) return
    containers.delete(vm)
    shared.container.close()
  }
  try {
    const device = shared.container.open(at)
    let attached = false
    return {
      attach: () => {
        const pci = new VfioPci(device, host)
        attached = true
        return pci
      },
      close: () => {
        if (!attached) device.close()
        close()
      },
    }
  } catch (error) {
    close()
    throw error
  }
}
