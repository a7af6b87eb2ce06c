import { existsSync } from 'node:fs'
import { posix } from 'node:path'
import { CoracleError } from '../errors.js'
import type { ImageRuntimeConfig } from '../image/image.js'
import type { IsolationName, OciConfig } from '../isolation/sandbox.js'
import { capabilitySet } from './capabilities.js'
import { seccompOf } from './seccomp.js'
import { type MountPoint, tmpfsOptions } from './mounts.js'
import type { CreateRequest } from './record.js'

/** Carries the groups beside the user's, as they were written, with commas between them. */
export const GROUPS_ANNOTATION = 'coracle.groups'

const DEFAULT_PATH = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
const DEFAULT_SHM_SIZE = 64 * 1024 * 1024

/**
 * The annotation that carries the user as it was written (`app`, `app:staff`, `1000`). Names, the group and the
 * further groups of a user stand in the image's own /etc/passwd and /etc/group, so whoever sees the root file
 * system resolves them into `process.user`, and takes the effective, permitted and ambient capabilities away where
 * the uid is not 0. Absent: uid 0, gid 0.
 */
export const USER_ANNOTATION = 'coracle.user'

/** Docker's defaults: what of /proc and /sys a workload does not see. */
const MASKED_PATHS = [
  '/proc/asound',
  '/proc/acpi',
  '/proc/interrupts',
  '/proc/kcore',
  '/proc/keys',
  '/proc/latency_stats',
  '/proc/timer_list',
  '/proc/timer_stats',
  '/proc/sched_debug',
  '/proc/scsi',
  '/sys/firmware',
  '/sys/devices/virtual/powercap',
]

/** Docker's defaults: what of /proc a workload may read but not write. */
const READONLY_PATHS = ['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sys', '/proc/sysrq-trigger']

/** As Docker sets them: low ports and ping are for everybody. */
const NETWORK_SYSCTLS = {
  'net.ipv4.ip_unprivileged_port_start': '0',
  'net.ipv4.ping_group_range': '0 2147483647',
}

/** Character devices of every container: null, zero, full, tty, random, urandom, ptmx and pts, and mknod of any. */
const DEVICES = [
  { allow: false, access: 'rwm' },
  { allow: true, type: 'c', access: 'm' },
  { allow: true, type: 'b', access: 'm' },
  ...[
    [1, 3],
    [1, 5],
    [1, 7],
    [5, 0],
    [5, 2],
    [1, 8],
    [1, 9],
  ].map(([major, minor]) => ({ allow: true, type: 'c', major, minor, access: 'rwm' })),
  { allow: true, type: 'c', major: 136, access: 'rwm' },
]

/** What {@link buildBundle} needs beside the request. Limits of memory and CPUs are the sandbox's to set. */
export interface BundleInit {
  readonly isolation: IsolationName
  readonly request: CreateRequest
  readonly image: ImageRuntimeConfig
  readonly hostname: string
  /** OCI's `linux.resources.blockIO`. */
  readonly blockIo?: object | undefined
  /** Further parts of OCI's `linux.resources`. */
  readonly resources?: { readonly blockIO?: object }
  /** It has no network namespace of its own: what counts for a namespace is then the host's to set. */
  readonly hostNetwork?: boolean
  /** cgroup v2, where a container's own namespace is the default. */
  readonly unifiedCgroups?: boolean
  /** Those of the host's are the driver's to put in; room is made for them. @default none */
  readonly mounts?: readonly MountPoint[]
}

/**
 * The OCI runtime-spec configuration of a container, as Docker would write it.
 * @throws CoracleError INVALID_ARGUMENT
 */
export function buildBundle({
  request,
  image,
  hostname,
  hostNetwork,
  isolation,
  unifiedCgroups = false,
  blockIo,
  resources = {},
  mounts = [],
}: BundleInit): OciConfig {
  const user = request.user ?? image.User ?? ''
  const { uid, gid } = numericUser(user)
  const { privileged = false, hostNamespaces = [] } = request
  const groups = groupsOf(request)
  const added = privileged ? ['ALL'] : (request.capAdd ?? [])
  const caps = capabilitySet(added, privileged ? [] : (request.capDrop ?? []), isolation)
  const effective = uid === 0 ? caps : []
  const size = request.consoleSize
  const seccomp = seccompOf(request.seccomp ?? (privileged ? 'unconfined' : undefined), caps)
  const namespaces = ['mount', 'network', 'uts', 'pid', 'ipc'].filter(
    (type) => !hostNamespaces.some((each) => each === type),
  )
  const ownCgroups = request.cgroupNamespace ?? (unifiedCgroups ? 'private' : 'host')
  return {
    // Debian's crun takes no newer one, and nothing here is newer.
    ociVersion: '1.0.2',
    process: {
      terminal: request.tty ?? false,
      ...(request.tty && size && size[0] > 0 && size[1] > 0
        ? { consoleSize: { height: size[0], width: size[1] } }
        : {}),
      user: { uid, gid },
      args: commandOf(request, image),
      env: environmentOf(request, image, hostname),
      cwd: workingDirectoryOf(request, image),
      capabilities: {
        bounding: caps,
        effective,
        permitted: effective,
        inheritable: [],
        ambient: [],
      },
      rlimits: rlimitsOf(request),
      noNewPrivileges: request.noNewPrivileges ?? false,
      oomScoreAdj: oomScoreAdjOf(request),
    },
    root: { path: 'rootfs', readonly: request.readOnly ?? false },
    ...(hostNamespaces.includes('uts') ? {} : { hostname }),
    mounts: mountsOf(request, mounts),
    linux: {
      namespaces: [...namespaces, ...(ownCgroups === 'private' ? ['cgroup'] : [])].map((type) => ({ type })),
      resources: {
        devices: privileged ? [{ allow: true, access: 'rwm' }] : [...DEVICES, ...deviceRulesOf(request)],
        ...resources,
        ...(blockIo ? { blockIO: { ...resources.blockIO, ...blockIo } } : {}),
        ...((request.pidsLimit ?? 0) > 0 ? { pids: { limit: request.pidsLimit } } : {}),
      },
      sysctl: { ...(hostNetwork ? {} : NETWORK_SYSCTLS), ...sysctlsOf(request, hostNetwork) },
      maskedPaths: pathsOf(request.maskedPaths ?? (privileged ? [] : MASKED_PATHS)),
      readonlyPaths: pathsOf(request.readonlyPaths ?? (privileged ? [] : READONLY_PATHS)),
      ...(seccomp && { seccomp }),
    },
    annotations: {
      ...request.annotations,
      ...(user === '' && groups === '' ? {} : { [USER_ANNOTATION]: user || '0' }),
      ...(groups === '' ? {} : { [GROUPS_ANNOTATION]: groups }),
    },
  }
}

/** Docker's `c 1:3 rwm`, as OCI's `linux.resources.devices` has it. @throws CoracleError INVALID_ARGUMENT */
function deviceRulesOf({ deviceRules = [] }: CreateRequest): object[] {
  return deviceRules.map((rule) => {
    const [, type, major, minor, access] = /^([acb]) (\d{1,7}|\*):(\d{1,7}|\*) ([rwm]{1,3})$/.exec(rule) ?? []
    if (access === undefined)
      throw new CoracleError(
        'INVALID_ARGUMENT',
        `invalid device cgroup rule: '${rule.slice(0, 64)}', such as c 1:3 rwm`,
      )
    return {
      allow: true,
      type,
      ...(major !== '*' && { major: Number(major) }),
      ...(minor !== '*' && { minor: Number(minor) }),
      access,
    }
  })
}

function groupsOf({ groupAdd = [] }: CreateRequest): string {
  for (const group of groupAdd)
    if (!/^[^\0\n:,/]{1,64}$/.test(group))
      throw new CoracleError('INVALID_ARGUMENT', `invalid group: ${group.slice(0, 64)}`)
  return groupAdd.join(',')
}

function oomScoreAdjOf({ oomScoreAdj = 0 }: CreateRequest): number {
  if (Number.isInteger(oomScoreAdj) && Math.abs(oomScoreAdj) <= 1000) return oomScoreAdj
  throw new CoracleError(
    'INVALID_ARGUMENT',
    `Invalid value ${oomScoreAdj}, range for oom score adj is [-1000, 1000]`,
  )
}

function pathsOf(paths: readonly string[]): readonly string[] {
  const wrong = paths.find((path) => !path.startsWith('/') || path.includes('\0'))
  if (wrong === undefined) return paths
  throw new CoracleError('INVALID_ARGUMENT', `not an absolute path: ${wrong.slice(0, 64)}`)
}

function sysctlsOf({ sysctls = {} }: CreateRequest, hostNetwork = false): Readonly<Record<string, string>> {
  const refused = hostNetwork ? Object.keys(sysctls).find((name) => name.startsWith('net.')) : undefined
  if (refused !== undefined)
    throw new CoracleError('INVALID_ARGUMENT', `sysctl '${refused}' not allowed in host network namespace`)
  return sysctls
}

function commandOf(request: CreateRequest, image: ImageRuntimeConfig): string[] {
  const reset = request.entrypoint?.length === 0 || request.entrypoint?.[0] === ''
  const entrypoint = reset ? [] : (request.entrypoint ?? image.Entrypoint ?? [])
  // An entrypoint of one's own does not go with the image's arguments.
  const command = request.command?.length
    ? request.command
    : request.entrypoint === undefined
      ? (image.Cmd ?? [])
      : []
  const args = [...entrypoint, ...command]
  if (args.length === 0 || args[0] === '')
    throw new CoracleError('INVALID_ARGUMENT', 'no command specified: the image has none, name one behind it')
  if (args.some((each) => each.includes('\0')))
    throw new CoracleError('INVALID_ARGUMENT', 'an argument of the command has a NUL character')
  return args
}

function environmentOf(request: CreateRequest, image: ImageRuntimeConfig, hostname: string): string[] {
  const env = new Map<string, string | undefined>()
  const add = (entry: string): void => {
    const name = entry.split('=', 1)[0]!
    if (name === '' || entry.includes('\0'))
      throw new CoracleError('INVALID_ARGUMENT', `invalid environment variable: ${entry.slice(0, 64)}`)
    env.set(name, entry.includes('=') ? entry : undefined)
  }
  add(DEFAULT_PATH)
  add(`HOSTNAME=${hostname}`)
  if (request.tty) add('TERM=xterm')
  image.Env?.forEach(add)
  request.env?.forEach(add)
  return [...env.values()].filter((entry) => entry !== undefined)
}

function workingDirectoryOf(request: CreateRequest, image: ImageRuntimeConfig): string {
  const path = request.workingDirectory || image.WorkingDir || '/'
  if (!path.startsWith('/') || path.includes('\0'))
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `the working directory '${path.slice(0, 64)}' is invalid, it needs to be an absolute path`,
    )
  return path
}

/** The numbers of `uid[:gid]`; 0 stands where a name has still to be resolved. */
function numericUser(user: string): { uid: number; gid: number } {
  const parts = user.split(':')
  if (parts.length > 2 || (user !== '' && parts.some((part) => part === '')) || /[\0\n/]/.test(user))
    throw new CoracleError('INVALID_ARGUMENT', `invalid user: ${user.slice(0, 64)}`)
  const [uid, gid] = parts.map((part) => (/^\d{1,10}$/.test(part) ? Number(part) : 0))
  if ((uid ?? 0) > 0x7fffffff || (gid ?? 0) > 0x7fffffff)
    throw new CoracleError('INVALID_ARGUMENT', `uids and gids must be in range 0-2147483647: ${user}`)
  return { uid: uid ?? 0, gid: gid ?? 0 }
}

function rlimitsOf(request: CreateRequest): { type: string; hard: number; soft: number }[] {
  // Without any asked for, those of whoever starts it: a host may have none to spare.
  const limits = new Map<string, { type: string; hard: number; soft: number }>()
  for (const { name, soft, hard } of request.ulimits ?? []) {
    if (!/^[a-z]{2,12}$/.test(name) || (hard !== -1 && (soft > hard || soft === -1)))
      throw new CoracleError('INVALID_ARGUMENT', `invalid ulimit: ${name.slice(0, 32)}=${soft}:${hard}`)
    const type = `RLIMIT_${name.toUpperCase()}`
    // RLIM_INFINITY does not fit a JSON number; the largest exact one serves.
    const value = (limit: number): number => (limit === -1 ? Number.MAX_SAFE_INTEGER : limit)
    limits.set(type, { type, hard: value(hard), soft: value(soft) })
  }
  return [...limits.values()]
}

function mountsOf(request: CreateRequest, points: readonly MountPoint[]): NonNullable<OciConfig['mounts']> {
  const plain = ['nosuid', 'noexec', 'nodev']
  const system = request.privileged === true ? plain : [...plain, 'ro']
  const hostIpc = request.hostNamespaces?.includes('ipc') === true
  const shared = ['/dev/mqueue', '/dev/shm'].filter((path) => existsSync(path))
  const defaults = [
    { destination: '/proc', type: 'proc', source: 'proc', options: plain },
    {
      destination: '/dev',
      type: 'tmpfs',
      source: 'tmpfs',
      options: ['nosuid', 'strictatime', 'mode=755', 'size=65536k'],
    },
    {
      destination: '/dev/pts',
      type: 'devpts',
      source: 'devpts',
      options: ['nosuid', 'noexec', 'newinstance', 'ptmxmode=0666', 'mode=0620', 'gid=5'],
    },
    { destination: '/sys', type: 'sysfs', source: 'sysfs', options: system },
    { destination: '/sys/fs/cgroup', type: 'cgroup', source: 'cgroup', options: system },
    ...(hostIpc
      ? shared.map((path) => ({
          destination: path,
          type: 'bind',
          source: path,
          options: ['rbind', ...plain],
        }))
      : [{ destination: '/dev/mqueue', type: 'mqueue', source: 'mqueue', options: plain }]),
    ...(hostIpc || request.noSharedMemory === true || request.ipcContainer
      ? []
      : [
          {
            destination: '/dev/shm',
            type: 'tmpfs',
            source: 'shm',
            options: [...plain, 'mode=1777', `size=${request.shmSize || DEFAULT_SHM_SIZE}`],
          },
        ]),
  ]
  const tmpfs = [
    ...Object.entries(request.tmpfs ?? {}).map(([path, options]) => ({
      destination: posix.normalize(path),
      options: tmpfsOptions(options),
    })),
    ...points.flatMap(({ destination, options }) => (options ? { destination, options: [...options] } : [])),
  ].map((mount) => ({ ...mount, type: 'tmpfs', source: 'tmpfs' }))
  const taken = new Set([...tmpfs, ...points].map(({ destination }) => destination))
  return [...defaults.filter(({ destination }) => !taken.has(destination)), ...tmpfs]
}
