import { type BalloonSpec, openBalloon } from '../devices/balloon/open.js'
import { type BlkSpec, openBlk } from '../devices/blk/open.js'
import { type ConsoleSpec, openConsole } from '../devices/console/open.js'
import { type FsSpec, openFs } from '../devices/fs/open.js'
import { type NetSpec, openNet } from '../devices/net/open.js'
import { type PmemSpec, openPmem } from '../devices/pmem/open.js'
import { type RngSpec, openRng } from '../devices/rng/open.js'
import { type VhostUserSpec, openVhostUser } from '../devices/vhost-user/open.js'
import { type VsockSpec, openVsock } from '../devices/vsock/open.js'
import { type VfioSpec, openVfio } from '../vfio/open.js'
import type { DeviceHost, OpenDevice } from './open-device.js'

/** A device of the machine, in a form that can be handed to the thread which serves it. */
export type DeviceSpec =
  | BalloonSpec
  | BlkSpec
  | ConsoleSpec
  | FsSpec
  | NetSpec
  | PmemSpec
  | RngSpec
  | VhostUserSpec
  | VfioSpec
  | VsockSpec

type Kind = DeviceSpec['kind']
type Open<K extends Kind> = (spec: Extract<DeviceSpec, { kind: K }>, host: DeviceHost) => OpenDevice

/** Every kind of device: its folder's `open.ts` says what its spec is and how it is opened. */
const KINDS: { readonly [K in Kind]: Open<K> } = {
  balloon: openBalloon,
  blk: openBlk,
  console: openConsole,
  fs: openFs,
  net: openNet,
  pmem: openPmem,
  rng: openRng,
  'vhost-user': openVhostUser,
  vfio: openVfio,
  vsock: openVsock,
}

/** @throws CoracleError INVALID_ARGUMENT, naming what cannot be used; whatever the kind throws */
export function openDevice(spec: DeviceSpec, host: DeviceHost): OpenDevice {
  return (KINDS[spec.kind] as Open<Kind>)(spec as never, host)
}

/**
 * Whether the device needs the guest's memory to be shared with another process. A machine restored from a snapshot
 * maps the snapshot's memory privately, which cannot be shared: one that has such a device, or is to be given one
 * later, gets a copy of it in place of that ({@link RestoreConfig.copyMemory}), which costs the copying of what was
 * in use and none of the guest's boot.
 */
export function sharesMemory({ kind }: DeviceSpec): boolean {
  return kind === 'fs' || kind === 'vhost-user'
}
