import { Fd, O_RDWR, Tap } from '@coracle/sys'
import { type DeviceHost, type OpenDevice, opened } from '../../device-thread/open-device.js'
import { Net, type NetInit } from './net.js'

/** A network adapter over a tap. */
export interface NetSpec extends Omit<NetInit, 'wire' | 'log'> {
  readonly kind: 'net'
  /** Its name in the process's network namespace, or `/proc/self/fd/N` for one that is open already. */
  readonly tap: string
}

/** @throws CoracleError INVALID_ARGUMENT for a tap or a value that cannot be used */
export function openNet({ tap: path, ...init }: NetSpec, { log }: Pick<DeviceHost, 'log'>): OpenDevice {
  const tap = opened(`${path} as a tap`, () => openTap(path))
  try {
    const device = opened(`${path} for a network adapter`, () => new Net({ ...init, wire: tap, log }))
    return { device, close: () => tap.close() }
  } catch (error) {
    tap.close()
    throw error
  }
}

function openTap(path: string): Tap {
  return path.startsWith('/') ? Tap.adopt(Fd.openOrDuplicate(path, O_RDWR)) : Tap.open(path)
}
