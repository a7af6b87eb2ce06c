import { CoracleError } from '../errors.js'
import type { CreateRequest, HostNamespace } from '../engine/record.js'
import { bytesOf } from '../size.js'
import type { Loose } from './create.js'
import type { HostConfig } from './schemas.js'
import { refuseFields } from './unhonoured.js'

type Sharing = Pick<
  Loose<CreateRequest>,
  | 'privileged'
  | 'groupAdd'
  | 'hostNamespaces'
  | 'pidContainer'
  | 'ipcContainer'
  | 'ipcShareable'
  | 'cgroupNamespace'
  | 'cgroupParent'
  | 'deviceRules'
  | 'noSharedMemory'
  | 'oomScoreAdj'
  | 'maskedPaths'
  | 'readonlyPaths'
  | 'diskSize'
>

/** What of the host, and of its own kernel, a container may see and do. @throws CoracleError INVALID_ARGUMENT */
export function sharingOf(host: HostConfig): Sharing {
  const modes: [HostNamespace, string | undefined][] = [
    ['pid', host.PidMode],
    ['ipc', host.IpcMode],
    ['uts', host.UTSMode],
  ]
  const hostNamespaces = modes.flatMap(([name, mode]) => (mode === 'host' ? [name] : []))
  const cgroup = host.CgroupnsMode || undefined
  if (cgroup !== undefined && cgroup !== 'host' && cgroup !== 'private')
    throw new CoracleError('INVALID_ARGUMENT', `invalid cgroup namespace mode: ${cgroup.slice(0, 64)}`)
  return {
    privileged: host.Privileged || undefined,
    groupAdd: host.GroupAdd?.length ? host.GroupAdd : undefined,
    hostNamespaces: hostNamespaces.length > 0 ? hostNamespaces : undefined,
    pidContainer: containerOf(host.PidMode),
    ipcContainer: containerOf(host.IpcMode),
    ipcShareable: host.IpcMode === 'shareable' || undefined,
    cgroupNamespace: cgroup,
    cgroupParent: host.CgroupParent || undefined,
    deviceRules: host.DeviceCgroupRules?.length ? host.DeviceCgroupRules : undefined,
    noSharedMemory: host.IpcMode === 'none' || undefined,
    oomScoreAdj: host.OomScoreAdj || undefined,
    maskedPaths: host.MaskedPaths ?? undefined,
    readonlyPaths: host.ReadonlyPaths ?? undefined,
    diskSize: diskSizeOf(host),
  }
}

const containerOf = (mode = ''): string | undefined => /^container:(.+)$/s.exec(mode)?.[1]

function diskSizeOf({ StorageOpt }: HostConfig): number | undefined {
  const { size, ...others } = StorageOpt ?? {}
  const other = Object.keys(others)[0]
  if (other !== undefined)
    throw new CoracleError('INVALID_ARGUMENT', `unknown storage option ${other.slice(0, 64)}: there is size`)
  if (size === undefined) return undefined
  const bytes = bytesOf(size)
  if (bytes !== undefined) return bytes
  throw new CoracleError('INVALID_ARGUMENT', `invalid size '${size.slice(0, 64)}': such as 20G`)
}

/** A setting that we do not have must not be dropped in silence: the container would not be what was asked for. */
export function refuseUnbuilt(host: HostConfig): void {
  refuseFields('HostConfig', host)
  const notIn = (value: string | undefined, known: string[]): boolean => !known.includes(value ?? '')
  const refused: [boolean, string][] = [
    [
      notIn(host.PidMode?.replace(/^container:.+/s, ''), ['', 'private', 'host']),
      `pid mode ${host.PidMode} is`,
    ],
    [
      notIn(host.IpcMode?.replace(/^container:.+/s, ''), ['', 'private', 'shareable', 'none', 'host']),
      `ipc mode ${host.IpcMode} is`,
    ],
    [notIn(host.UTSMode, ['', 'private', 'host']), `uts mode ${host.UTSMode} is`],
    [notIn(host.UsernsMode, ['', 'host']), `user namespace mode ${host.UsernsMode} is`],
  ]
  for (const [is, what] of refused) if (is) throw new CoracleError('NOT_IMPLEMENTED', `${what} not built yet`)
}
