import type { OpenDevice } from '../../device-thread/open-device.js'
import { Rng } from './rng.js'

/** Random bytes of the host's kernel. */
export interface RngSpec {
  readonly kind: 'rng'
}

export function openRng(): OpenDevice {
  return { device: new Rng(), close: () => undefined }
}
