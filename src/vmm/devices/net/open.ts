import { Fd, O_RDWR, SOCK_SEQPACKET, Tap, socketPair } from '@coracle/sys'
import { type DeviceHost, type OpenDevice, opened } from '../../device-thread/open-device.js'
import { Net, type NetInit } from './net.js'
import type { Wire } from './wire.js'

/** A network adapter over a tap. */
export interface NetSpec extends Omit<NetInit, 'wire' | 'vhost' | 'log'> {
  readonly kind: 'net'
  /**
   * Its name in the process's network namespace, or `/proc/self/fd/N` for one that is open already. Undefined: the
   * cable leads nowhere, as for a guest that is restored and given other adapters.
   */
  readonly tap: string | undefined
  /** Path of /dev/vhost-net, or of a descriptor of it: @see NetInit.vhost */
  readonly vhost?: string
}

/** @throws CoracleError INVALID_ARGUMENT for a tap or a value that cannot be used */
export function openNet(
  { tap: path, vhost: kernel, ...init }: NetSpec,
  { log }: Pick<DeviceHost, 'log'>,
): OpenDevice {
  if (path === undefined) return openNowhere(init, log)
  const tap = opened(`${path} as a tap`, () => openTap(path))
  const vhost = kernel === undefined ? undefined : openVhost(kernel, (why) => log(`net ${init.name}: ${why}`))
  const close = (): void => {
    tap.close()
    vhost?.close()
  }
  try {
    const more = { wire: tap, log, ...(vhost && { vhost }) }
    const device = opened(`${path} for a network adapter`, () => new Net({ ...init, ...more }))
    return { device, close }
  } catch (error) {
    close()
    throw error
  }
}

function openNowhere(init: Omit<NetInit, 'wire'>, log: (line: string) => void): OpenDevice {
  const ends = socketPair(SOCK_SEQPACKET)
  const close = (): void => ends.forEach((end) => end.close())
  const wire: Wire = { fd: ends[0], name: 'nowhere', setOffload: () => undefined }
  try {
    return {
      device: opened('these values for a network adapter', () => new Net({ ...init, wire, log })),
      close,
    }
  } catch (error) {
    close()
    throw error
  }
}

/** Its absence is no reason to be without a network. */
function openVhost(path: string, log: (line: string) => void): Fd | undefined {
  try {
    return Fd.openOrDuplicate(path, O_RDWR)
  } catch (error) {
    log(`the kernel does not carry its frames, we do: ${(error as Error).message}`)
    return undefined
  }
}

function openTap(path: string): Tap {
  return path.startsWith('/') ? Tap.adopt(Fd.openOrDuplicate(path, O_RDWR)) : Tap.open(path)
}
