import type { DeviceHost, OpenDevice } from '../../device-thread/open-device.js'
import { Balloon, type BalloonRequest } from './balloon.js'

/** A balloon that gives memory back to the host. {@link Machine.control} takes a `BalloonRequest`. */
export interface BalloonSpec {
  readonly kind: 'balloon'
}

export function openBalloon(_: BalloonSpec, { memorySize, discard, log }: DeviceHost): OpenDevice {
  const device = new Balloon({ memory: memorySize, discard, log })
  return {
    device,
    control: (request) => device.control(request as BalloonRequest),
    close: () => undefined,
  }
}
