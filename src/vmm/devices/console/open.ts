import { Fd, O_NONBLOCK, O_RDWR } from '@coracle/sys'
import { type DeviceHost, type OpenDevice, opened } from '../../device-thread/open-device.js'
import { Console, type ConsoleInit, type ConsoleSize } from './console.js'

/** A console beside the serial port. {@link Machine.control} takes a `ConsoleSize`. */
export interface ConsoleSpec extends Omit<ConsoleInit, 'wire' | 'log'> {
  readonly kind: 'console'
  /** Of a terminal, a pipe or a file that is there, or `/proc/self/fd/N` for what is open already, such as a socket. */
  readonly path: string
}

/** @throws CoracleError INVALID_ARGUMENT for a path or a value that cannot be used */
export function openConsole({ path, ...init }: ConsoleSpec, { log }: Pick<DeviceHost, 'log'>): OpenDevice {
  const wire = opened(`${path} as a console`, () => Fd.openOrDuplicate(path, O_RDWR | O_NONBLOCK))
  try {
    wire.setNonBlocking()
    const device = new Console({ ...init, wire, log })
    return { device, control: (size) => device.resize(size as ConsoleSize), close: () => wire.close() }
  } catch (error) {
    wire.close()
    throw error
  }
}
