import type { OpenDevice } from '../../device-thread/open-device.js'
import { Vsock } from './vsock.js'

/** Sockets between guest and host: {@link Machine.vsock}. A machine has at most one. */
export interface VsockSpec {
  readonly kind: 'vsock'
  /** The guest's context id, 3 or more. */
  readonly cid: number
}

export function openVsock({ cid }: VsockSpec): OpenDevice {
  return { device: new Vsock({ cid }), close: () => undefined }
}
