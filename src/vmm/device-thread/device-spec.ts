import { Fd, O_RDONLY, O_RDWR, Tap } from '@coracle/sys'
import type { VirtioDevice } from 'vhost-user-ts'
import { CoracleError } from '../../errors.js'
import { MIB } from '../memory/layout.js'
import { Blk } from '../devices/blk/blk.js'
import { FileDisk } from '../devices/blk/disk.js'
import { Net, type NetLimits } from '../devices/net/net.js'
import { type Blob, BlobSet } from '../devices/pmem/blob-set.js'
import { Pmem } from '../devices/pmem/pmem.js'
import { Rng } from '../devices/rng/rng.js'
import { Vsock } from '../devices/vsock/vsock.js'

/** A device of the machine, in a form that can be handed to the thread which serves it. */
export type DeviceSpec =
  /** Sockets between guest and host: {@link Machine.vsock}. `cid` is the guest's context id, 3 or more. */
  | { readonly kind: 'vsock'; readonly cid: number }
  | { readonly kind: 'rng' }
  /** A disk image in a file, raw. `name` is for logs and, at most 20 bytes of it, the disk's serial number. */
  | { readonly kind: 'blk'; readonly name: string; readonly path: string; readonly readOnly?: boolean }
  /**
   * A network adapter over a tap: its name in the process's network namespace, or `/proc/self/fd/N` for one that is
   * open already. `mac` in hexadecimal octets; `mtu` in bytes.
   */
  | {
      readonly kind: 'net'
      readonly name: string
      readonly tap: string
      readonly mac: string
      readonly mtu?: number
      readonly limits?: NetLimits
    }
  /** Files as the partitions of one read-only persistent memory, the first as partition 1. */
  | { readonly kind: 'pmem'; readonly name: string; readonly blobs: readonly Blob[] }

/** A device, and what it holds beside what {@link VirtioDevice.reset} gives back. */
export interface OpenDevice {
  readonly device: VirtioDevice
  /** Memory that the guest may read, at this address. */
  readonly region?: { readonly guestAddress: number; readonly blobs: BlobSet }
  close(): void
}

/**
 * Opens what the device stands on.
 * @param place finds guest-physical addresses for so many bytes
 * @throws CoracleError INVALID_ARGUMENT, naming the file that cannot be used
 */
export function openDevice(
  spec: DeviceSpec,
  place: (size: number) => number,
  log: (line: string) => void,
): OpenDevice {
  switch (spec.kind) {
    case 'vsock':
      return { device: new Vsock({ cid: spec.cid }), close: () => undefined }
    case 'rng':
      return { device: new Rng(), close: () => undefined }
    case 'blk': {
      const { name, path, readOnly = false } = spec
      const fd = opened(path, () => Fd.openOrDuplicate(path, readOnly ? O_RDONLY : O_RDWR))
      const disk = new FileDisk(fd, readOnly)
      return { device: new Blk({ name, disk, serial: name, log }), close: () => fd.close() }
    }
    case 'net': {
      const { tap: path, ...init } = spec
      const tap = opened(path, () => openTap(path), 'a tap')
      try {
        return { device: new Net({ ...init, wire: tap, log }), close: () => tap.close() }
      } catch (error) {
        tap.close()
        throw new CoracleError('INVALID_ARGUMENT', String(error), { cause: error })
      }
    }
    case 'pmem': {
      const { name } = spec
      const blobs = opened(spec.blobs.map(({ path }) => path).join(', '), () => BlobSet.map(spec.blobs))
      const guestAddress = place(blobs.size)
      const device = new Pmem({ name, guestAddress, size: blobs.size })
      return { device, region: { guestAddress, blobs }, close: () => blobs[Symbol.dispose]() }
    }
  }
}

/** Addresses for device memory: each on a boundary that huge pages and the guest's memory sections like. */
export class DeviceMemory {
  #next: number
  readonly #end: number
  constructor(range: { readonly start: number; readonly size: number }) {
    this.#next = range.start
    this.#end = range.start + range.size
  }

  take(size: number): number {
    const at = this.#next
    this.#next = Math.ceil((at + size) / (128 * MIB)) * 128 * MIB
    if (this.#next > this.#end) throw new CoracleError('INVALID_ARGUMENT', 'too much device memory')
    return at
  }
}

function openTap(path: string): Tap {
  return path.startsWith('/') ? Tap.adopt(Fd.openOrDuplicate(path, O_RDWR)) : Tap.open(path)
}

function opened<T>(what: string, open: () => T, as = 'a disk'): T {
  try {
    return open()
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    throw new CoracleError('INVALID_ARGUMENT', `cannot use ${what} as ${as}: ${why}`, { cause: error })
  }
}
