import { type BalloonSpec, openBalloon } from '../devices/balloon/open.js'
import { type BlkSpec, openBlk } from '../devices/blk/open.js'
import { type NetSpec, openNet } from '../devices/net/open.js'
import { type PmemSpec, openPmem } from '../devices/pmem/open.js'
import { type RngSpec, openRng } from '../devices/rng/open.js'
import { type VsockSpec, openVsock } from '../devices/vsock/open.js'
import type { DeviceHost, OpenDevice } from './open-device.js'

/** A device of the machine, in a form that can be handed to the thread which serves it. */
export type DeviceSpec = BalloonSpec | BlkSpec | NetSpec | PmemSpec | RngSpec | VsockSpec

type Kind = DeviceSpec['kind']
type Open<K extends Kind> = (spec: Extract<DeviceSpec, { kind: K }>, host: DeviceHost) => OpenDevice

/** Every kind of device: its folder's `open.ts` says what its spec is and how it is opened. */
const KINDS: { readonly [K in Kind]: Open<K> } = {
  balloon: openBalloon,
  blk: openBlk,
  net: openNet,
  pmem: openPmem,
  rng: openRng,
  vsock: openVsock,
}

/** @throws CoracleError INVALID_ARGUMENT, naming what cannot be used; whatever the kind throws */
export function openDevice(spec: DeviceSpec, host: DeviceHost): OpenDevice {
  return (KINDS[spec.kind] as Open<Kind>)(spec as never, host)
}
