import { existsSync, readFileSync, statSync } from 'node:fs'
import { deviceNumber } from '../device-number.js'
import { CoracleError } from '../errors.js'
import type { HypervisorName, IsolationName, SandboxSpec } from '../isolation/sandbox.js'

const KINDS = ['readBps', 'writeBps', 'readIops', 'writeIops'] as const
export type DeviceRateKind = (typeof KINDS)[number]

/** A limit of a block device: bytes or operations a second. */
export interface DeviceRate {
  readonly kind: DeviceRateKind
  /** Of the device, on the host. */
  readonly path: string
  readonly rate: number
}

/** Bytes a second of each network interface, for a container of our own VMM. */
export interface NetworkRates {
  readonly receiveBps?: number
  readonly sendBps?: number
}

interface Asked {
  readonly deviceRates?: readonly DeviceRate[]
  readonly networkRates?: NetworkRates
}

/** OCI runtime-spec, `linux.resources.blockIO`. */
const THROTTLES: Record<DeviceRateKind, string> = {
  readBps: 'throttleReadBpsDevice',
  writeBps: 'throttleWriteBpsDevice',
  readIops: 'throttleReadIOPSDevice',
  writeIops: 'throttleWriteIOPSDevice',
}

/**
 * The limits of a microVM's own devices. It has one disk to write, whatever device was named: the lowest rate counts.
 * @throws CoracleError INVALID_ARGUMENT for what this isolation cannot hold to
 */
export function sandboxRates(
  { deviceRates = [], networkRates = {} }: Asked,
  isolation: IsolationName,
  hypervisor: HypervisorName | undefined,
): Pick<SandboxSpec, 'diskRates' | 'networkRates'> {
  const network = networkRates.receiveBps !== undefined || networkRates.sendBps !== undefined
  if (network && hypervisor !== 'kvm')
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `network rates need --isolation microvm with --hypervisor kvm, not ${hypervisor ?? isolation}`,
    )
  if (isolation === 'process') return {}
  const disk = Object.fromEntries(
    KINDS.flatMap((kind) => {
      const rates = deviceRates.filter((each) => each.kind === kind).map(({ rate }) => rate)
      return rates.length > 0 ? [[kind, Math.min(...rates)]] : []
    }),
  )
  return {
    ...(deviceRates.length > 0 && { diskRates: disk }),
    ...(network && { networkRates }),
  }
}

/**
 * The limits of the host's block devices for a container in a cgroup: `linux.resources.blockIO`.
 * @throws CoracleError INVALID_ARGUMENT for a path that is no block device, or a host whose cgroups hold none back
 */
export function blockIo({ deviceRates = [] }: Asked): Record<string, object[]> | undefined {
  if (deviceRates.length === 0) return undefined
  if (!canThrottle())
    throw new CoracleError(
      'INVALID_ARGUMENT',
      'device rates: this host has no cgroup controller for block devices (blkio, io); use --isolation microvm',
    )
  const result: Record<string, object[]> = {}
  for (const { kind, path, rate } of deviceRates) {
    const stat = statSync(path, { throwIfNoEntry: false })
    if (!stat?.isBlockDevice())
      throw new CoracleError(
        'INVALID_ARGUMENT',
        `device rates: ${path.slice(0, 128)} is no block device of the host`,
      )
    ;(result[THROTTLES[kind]] ??= []).push({ ...deviceNumber(stat.rdev), rate })
  }
  return result
}

function canThrottle(): boolean {
  if (existsSync('/sys/fs/cgroup/blkio/blkio.throttle.read_bps_device')) return true
  const controllers = '/sys/fs/cgroup/cgroup.controllers'
  return existsSync(controllers) && readFileSync(controllers, 'utf8').split(/\s+/).includes('io')
}
