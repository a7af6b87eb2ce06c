import { Fd, O_RDONLY, O_RDWR } from '@coracle/sys'
import { type DeviceHost, type OpenDevice, opened } from '../../device-thread/open-device.js'
import { Blk, type BlkLimits } from './blk.js'
import { FileDisk } from './disk.js'

/** A disk image in a file, raw. */
export interface BlkSpec {
  readonly kind: 'blk'
  /** For logs and, at most 20 bytes of it, the disk's serial number. */
  readonly name: string
  readonly path: string
  /** @default false */
  readonly readOnly?: boolean
  readonly limits?: BlkLimits
}

/** @throws CoracleError INVALID_ARGUMENT for a file that cannot be used */
export function openBlk(spec: BlkSpec, { log }: Pick<DeviceHost, 'log'>): OpenDevice {
  const { name, path, readOnly = false, limits } = spec
  const fd = opened(`${path} as a disk`, () => Fd.openOrDuplicate(path, readOnly ? O_RDONLY : O_RDWR))
  const disk = new FileDisk(fd, readOnly)
  return {
    device: new Blk({ name, disk, serial: name, log, ...(limits && { limits }) }),
    close: () => disk.close(),
  }
}
