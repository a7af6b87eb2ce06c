import { VhostUserDevice, type VhostUserDeviceInit } from 'vhost-user-ts'
import { CoracleError } from '../../../errors.js'
import { type DeviceHost, type OpenDevice, opened } from '../../device-thread/open-device.js'

/** A device that another process serves over vhost-user. */
export interface VhostUserSpec extends Omit<VhostUserDeviceInit, 'config' | 'log' | 'features' | 'path'> {
  readonly kind: 'vhost-user'
  /** Where that process listens: a Unix socket. */
  readonly socket: string
  /** Bytes of the configuration space, which that process has. @default 0 */
  readonly configSize?: number
}

/** @throws CoracleError INVALID_ARGUMENT where nothing usable listens, CONFLICT where the memory is private */
export function openVhostUser(
  { socket, configSize = 0, ...init }: VhostUserSpec,
  host: DeviceHost,
): OpenDevice {
  return openBackend({ ...init, path: socket, config: configSize }, host)
}

/** @throws CoracleError INVALID_ARGUMENT where nothing usable listens, CONFLICT where the memory is private */
export function openBackend(init: VhostUserDeviceInit, { memory, log }: DeviceHost): OpenDevice {
  if (!memory.regions.some(({ file }) => file))
    throw new CoracleError(
      'CONFLICT',
      `${init.name} shares the guest's memory with another process, and this machine's memory is its own: ` +
        'it was restored without copyMemory',
    )
  const device = opened(`${init.path} as a vhost-user device`, () => new VhostUserDevice({ ...init, log }))
  return { device, close: () => device[Symbol.dispose]() }
}
