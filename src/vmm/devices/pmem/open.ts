import { type DeviceHost, type OpenDevice, opened } from '../../device-thread/open-device.js'
import { type Blob, BlobSet } from './blob-set.js'
import { Pmem } from './pmem.js'

/** Files as the partitions of one read-only persistent memory, the first as partition 1. */
export interface PmemSpec {
  readonly kind: 'pmem'
  /** For logs. */
  readonly name: string
  readonly blobs: readonly Blob[]
}

/** @throws CoracleError INVALID_ARGUMENT for a file that cannot be used, CONFLICT where no address is free */
export function openPmem({ name, blobs }: PmemSpec, { place }: DeviceHost): OpenDevice {
  const paths = blobs.map(({ path }) => path).join(', ')
  const set = opened(`${paths} as a disk`, () => BlobSet.map(blobs))
  try {
    const { mapping, size } = set
    const guestAddress = place(size)
    return {
      device: new Pmem({ name, guestAddress, size }),
      regions: [{ guestAddress, size, mapping, mappingOffset: 0, readOnly: true }],
      close: () => set[Symbol.dispose](),
    }
  } catch (error) {
    set[Symbol.dispose]()
    throw error
  }
}
