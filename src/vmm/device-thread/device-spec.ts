import type { VirtioDevice } from 'vhost-user-ts'
import { Vsock } from '../devices/vsock/vsock.js'

/** A device of the machine, in a form that can be handed to the thread which serves it. */
export type DeviceSpec =
  /** Sockets between guest and host. @param cid the guest's context id, 3 or more */
  { readonly kind: 'vsock'; readonly cid: number }

/** Opens what the device stands on. */
export function openDevice(spec: DeviceSpec): VirtioDevice {
  switch (spec.kind) {
    case 'vsock':
      return new Vsock({ cid: spec.cid })
  }
}
