import type { MemoryRegion, VirtioDevice } from 'vhost-user-ts'
import { CoracleError } from '../../errors.js'
import type { PciDevice, PciHost } from '../pci/host.js'

/** What a kind of device gets to open with, on the thread of the devices. */
export interface DeviceHost extends PciHost {
  /**
   * Guest-physical addresses for memory that the device brings along; given back when the device is gone.
   * @param size bytes @throws CoracleError CONFLICT where none are free
   */
  place(size: number): number
  /** Bytes of RAM. */
  readonly memorySize: number
  /**
   * Gives whole pages of RAM back to the host, and touches nothing else.
   * @returns bytes; none while a device of the host may write to any page (VFIO) @throws SysError
   */
  discard(address: number, length: number): number
}

/** What every open device has, whatever it is for the guest. */
interface Opened {
  /** Memory that comes and goes with the device: slots of the VM, and part of {@link PciHost.memory}. */
  readonly regions?: readonly MemoryRegion[]
  /**
   * Carries out what the machine's owner asks of this device: plain data both ways. @see Machine.control
   * @throws CoracleError
   */
  control?(request: unknown): unknown
  /** Closes what the device stands on. Called once, after its function and its regions are gone from the guest. */
  close(): void
}

/**
 * A device that is open, not yet seen by the guest: a virtio device, which gets its place on the bus here, or
 * anything else that makes its own PCI function (VFIO) once its regions are in the guest.
 */
export type OpenDevice = Opened & ({ readonly device: VirtioDevice } | { attach(): PciDevice })

/**
 * Opens what a device stands on.
 * @param what names it for the message, such as `/a/file as a disk`
 * @throws CoracleError INVALID_ARGUMENT for whatever `open` throws
 */
export function opened<T>(what: string, open: () => T): T {
  try {
    return open()
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    throw new CoracleError('INVALID_ARGUMENT', `cannot use ${what}: ${why}`, { cause: error })
  }
}
