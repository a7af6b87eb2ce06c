import type { Health } from '../engine/health.js'
import { showHealthCheck } from '../engine/health-check.js'
import type { ContainerRecord, ContainerState, CreateRequest } from '../engine/record.js'
import type { Place } from '../engine/networking.js'
import type { OciConfig, SandboxDevice } from '../isolation/sandbox.js'
import type { Image } from '../image/image.js'
import { ratesShape } from './rates.js'
import { mountHostConfig, mountsShape, volumesShape } from './mounts.js'
import {
  endpointsShape,
  exposedShape,
  networkHostConfig,
  networkSettingsShape,
  portsSummary,
} from './network-settings.js'

/** Docker's word for "never". */
const NEVER = '0001-01-01T00:00:00Z'

/** Docker's name of a state. */
export function statusOf(state: ContainerState): 'created' | 'running' | 'paused' | 'exited' {
  if (state.status === 'running') return state.paused === true ? 'paused' : 'running'
  return state.status === 'starting' ? 'created' : state.status
}

/** `State` of ContainerInspect. */
function stateShape(state: ContainerState, restarting: boolean, health: Health | undefined): object {
  const status = restarting ? 'restarting' : statusOf(state)
  const failure = state.status === 'created' ? state.failure : undefined
  return {
    Status: status,
    Running: state.status === 'running' || restarting,
    Paused: status === 'paused',
    Restarting: restarting,
    OOMKilled: state.status === 'exited' && state.oomKilled,
    Dead: false,
    Pid: state.status === 'running' ? state.pid : 0,
    ExitCode: state.status === 'exited' ? state.exitCode : (failure?.exitCode ?? 0),
    Error: state.status === 'exited' ? (state.error ?? '') : (failure?.error ?? ''),
    StartedAt: state.status === 'created' ? NEVER : state.startedAt,
    FinishedAt: state.status === 'exited' ? state.finishedAt : NEVER,
    ...(health && { Health: healthShape(health) }),
  }
}

function healthShape({ status, failingStreak, results }: Health): object {
  const Log = results.map(({ start, end, exitCode, output }) => ({
    ...{ Start: start, End: end },
    ...{ ExitCode: exitCode, Output: output },
  }))
  return { Status: status, FailingStreak: failingStreak, Log }
}

/** As {@link parseDevice} reads it. */
function showDevice(device: SandboxDevice): string {
  if (device.kind === 'pci') return `pci=${device.address}`
  const { adapter, mac, vlan, name, addresses, gateways } = device
  return [
    `sriov=${adapter}`,
    `mac=${mac}`,
    ...(vlan > 0 ? [`vlan=${vlan}`] : []),
    ...(name === undefined ? [] : [`name=${name}`]),
    ...addresses.map((address) => `ip=${address}`),
    ...gateways.map((gateway) => `gateway=${gateway}`),
  ].join(',')
}

function devicesShape({ request, spec }: ContainerRecord): object[] {
  const functions = (spec.devices ?? []).map((device) => ({
    PathOnHost: showDevice(device),
    PathInContainer: '',
    CgroupPermissions: '',
  }))
  const files = (request.deviceFiles ?? []).map(({ source, destination, access }) => ({
    PathOnHost: source,
    PathInContainer: destination,
    CgroupPermissions: access,
  }))
  return [...functions, ...files]
}

function hasNamespace({ linux }: OciConfig, name: string): boolean {
  const namespaces = (linux?.['namespaces'] ?? []) as readonly { readonly type: string }[]
  return namespaces.some(({ type }) => type === name)
}

/** The mode of a namespace. */
function modeOf({ request }: ContainerRecord, name: 'pid' | 'ipc' | 'uts', own: string): string {
  return request.hostNamespaces?.includes(name) === true ? 'host' : own
}

function hostConfigShape(record: ContainerRecord): object {
  const { request, spec } = record
  return {
    AutoRemove: request.autoRemove ?? false,
    Isolation: spec.isolation,
    Runtime: spec.isolation,
    Memory: request.memory ?? 0,
    NanoCpus: request.nanoCpus ?? 0,
    CpuShares: request.cpuShares ?? 0,
    MemoryReservation: request.cgroupLimits?.memoryReservation ?? 0,
    MemorySwap: request.cgroupLimits?.memorySwap ?? 0,
    MemorySwappiness: request.cgroupLimits?.memorySwappiness ?? null,
    OomKillDisable: request.cgroupLimits?.oomKillDisable ?? false,
    BlkioWeight: request.cgroupLimits?.blkioWeight ?? 0,
    ...ratesShape(request),
    CpusetCpus: request.cgroupLimits?.cpusetCpus ?? '',
    CpusetMems: request.cgroupLimits?.cpusetMems ?? '',
    ReadonlyRootfs: request.readOnly ?? false,
    CapAdd: request.capAdd ?? null,
    CapDrop: request.capDrop ?? null,
    Ulimits: request.ulimits?.map(({ name, soft, hard }) => ({ Name: name, Soft: soft, Hard: hard })) ?? null,
    ShmSize: request.shmSize ?? 64 * 1024 * 1024,
    Tmpfs: request.tmpfs ?? null,
    Sysctls: request.sysctls ?? null,
    PidsLimit: request.pidsLimit ?? null,
    SecurityOpt: securityOptions(request),
    Annotations: {
      ...request.annotations,
      ...(spec.hypervisor ? { 'coracle.hypervisor': spec.hypervisor } : {}),
      ...(spec.cold === true ? { 'coracle.cold': 'true' } : {}),
      ...(spec.kernel ? { 'coracle.kernel': spec.kernel } : {}),
    },
    ConsoleSize: request.consoleSize ?? [0, 0],
    Devices: devicesShape(record),
    ...mountHostConfig(request),
    ...(request.init === true && { Init: true }),
    Privileged: request.privileged ?? false,
    GroupAdd: request.groupAdd ?? null,
    OomScoreAdj: request.oomScoreAdj ?? 0,
    MaskedPaths: spec.bundle.linux?.['maskedPaths'] ?? null,
    ReadonlyPaths: spec.bundle.linux?.['readonlyPaths'] ?? null,
    ...(request.diskSize !== undefined && { StorageOpt: { size: String(request.diskSize) } }),
    ...networkHostConfig(request),
    Links: request.links?.map(({ container, alias }) => `${container}:${alias}`) ?? null,
    IpcMode: modeOf(record, 'ipc', ipcMode(request)),
    DeviceCgroupRules: request.deviceRules ?? null,
    PidMode: modeOf(record, 'pid', request.pidContainer ? `container:${request.pidContainer}` : ''),
    UTSMode: modeOf(record, 'uts', ''),
    UsernsMode: '',
    CgroupParent: request.cgroupParent ?? '',
    CgroupnsMode: hasNamespace(spec.bundle, 'cgroup') ? 'private' : 'host',
    RestartPolicy: {
      Name: request.restart?.name ?? 'no',
      MaximumRetryCount: request.restart?.maximumRetryCount ?? 0,
    },
    LogConfig: { Type: request.log?.driver || 'json-file', Config: request.log?.options ?? {} },
  }
}

/** What of a container is known beside its record. */
export interface Beside {
  readonly place: Place
  /** It waits to be started again by its restart policy. */
  readonly restarting: boolean
  readonly health: Health | undefined
}

/** Answer of ContainerInspect. */
export function containerShape(record: ContainerRecord, { place, restarting, health }: Beside): object {
  const { request, spec } = record
  const { args, env, cwd } = spec.bundle.process
  return {
    Id: record.id,
    Created: record.created,
    Path: args[0],
    Args: args.slice(1),
    State: stateShape(record.state, restarting, health),
    Image: record.imageId,
    Name: `/${record.name}`,
    RestartCount: record.restartCount ?? 0,
    Driver: 'erofs',
    Platform: 'linux',
    LogPath: spec.log?.files === 0 ? '' : `${spec.stateDirectory}/container.log`,
    ResolvConfPath: '',
    HostnamePath: '',
    HostsPath: '',
    MountLabel: '',
    ProcessLabel: '',
    AppArmorProfile: '',
    ExecIDs: null,
    HostConfig: hostConfigShape(record),
    GraphDriver: { Name: 'erofs', Data: null },
    Mounts: mountsShape(record),
    Config: {
      Hostname: spec.hostname,
      Domainname: request.domainname ?? '',
      ...exposedShape(request, place),
      User: request.user ?? '',
      AttachStdin: request.openStdin ?? false,
      AttachStdout: true,
      AttachStderr: true,
      Tty: spec.tty,
      OpenStdin: spec.openStdin,
      StdinOnce: spec.stdinOnce,
      Env: env,
      Cmd: request.command ?? null,
      Image: request.image,
      Volumes: volumesShape(record),
      WorkingDir: cwd,
      Entrypoint: request.entrypoint ?? null,
      Labels: request.labels ?? {},
      ...(record.healthCheck && { Healthcheck: showHealthCheck(record.healthCheck) }),
      ...(request.stopSignal ? { StopSignal: request.stopSignal } : {}),
      ...(request.stopTimeout !== undefined ? { StopTimeout: request.stopTimeout } : {}),
    },
    NetworkSettings: networkSettingsShape(record, place),
  }
}

/** One element of ContainerList's answer. */
export function summaryShape(record: ContainerRecord, { place, restarting, health }: Beside): object {
  const { request, spec, state } = record
  return {
    Id: record.id,
    Names: [`/${record.name}`],
    Image: request.image,
    ImageID: record.imageId,
    Command: spec.bundle.process.args.join(' '),
    Created: Math.floor(Date.parse(record.created) / 1000),
    Ports: portsSummary(place),
    Labels: request.labels ?? {},
    State: restarting ? 'restarting' : statusOf(state),
    Status: describe(state, restarting, health),
    HostConfig: { NetworkMode: request.networkMode ?? 'none' },
    NetworkSettings: { Networks: endpointsShape(record, place) },
    Mounts: mountsShape(record),
  }
}

function describe(state: ContainerState, restarting: boolean, health: Health | undefined): string {
  if (state.status === 'running')
    return `Up ${ago(state.startedAt)}${state.paused === true ? ' (Paused)' : showHealth(health)}`
  if (restarting && state.status === 'exited')
    return `Restarting (${state.exitCode}) ${ago(state.finishedAt)} ago`
  if (state.status === 'exited') return `Exited (${state.exitCode}) ${ago(state.finishedAt)} ago`
  return 'Created'
}

function showHealth(health: Health | undefined): string {
  if (!health) return ''
  return health.status === 'starting' ? ' (health: starting)' : ` (${health.status})`
}

const UNITS: readonly (readonly [seconds: number, name: string])[] = [
  [365 * 86_400, 'year'],
  [30 * 86_400, 'month'],
  [7 * 86_400, 'week'],
  [86_400, 'day'],
  [3600, 'hour'],
  [60, 'minute'],
]

/** The time since then in words, as Docker's status lines have it. @param time RFC 3339 */
export function ago(time: string): string {
  const seconds = Math.max(0, (Date.now() - Date.parse(time)) / 1000)
  if (seconds < 1) return 'Less than a second'
  for (const [length, name] of UNITS) {
    const count = Math.floor(seconds / length)
    if (count >= 2) return `${count} ${name}s`
    if (count === 1) return `${name === 'hour' ? 'About an' : name === 'minute' ? 'About a' : '1'} ${name}`
  }
  return Math.floor(seconds) === 1 ? '1 second' : `${Math.floor(seconds)} seconds`
}

/**
 * One element of ImageList's answer.
 * @param users containers of each image, by its id
 * @param shared bytes of its layers that others have too, −1 where nobody looked
 */
export function imageSummaryShape(image: Image, users: ReadonlyMap<string, number>, shared = -1): object {
  return {
    Id: image.id,
    ParentId: '',
    RepoTags: image.tags,
    RepoDigests: image.digests,
    Created: Math.floor(Date.parse(image.created) / 1000) || 0,
    Size: image.size,
    SharedSize: shared,
    Labels: image.config.Labels ?? null,
    Containers: users.get(image.id) ?? 0,
  }
}

/** Answer of ImageInspect. */
export function imageShape(image: Image): object {
  return {
    Id: image.id,
    RepoTags: image.tags,
    RepoDigests: image.digests,
    Parent: '',
    Comment: '',
    Created: image.created,
    Author: '',
    Architecture: image.architecture,
    Os: image.os,
    Size: image.size,
    Config: image.config,
    GraphDriver: { Name: 'erofs', Data: null },
    RootFS: { Type: 'layers', Layers: image.layers.map(({ diffId }) => diffId) },
    Metadata: { LastTagTime: NEVER },
  }
}

function ipcMode({ noSharedMemory, ipcShareable, ipcContainer }: CreateRequest): string {
  if (noSharedMemory === true) return 'none'
  if (ipcShareable === true) return 'shareable'
  return ipcContainer ? `container:${ipcContainer}` : 'private'
}

function securityOptions({ noNewPrivileges, seccomp }: CreateRequest): string[] | null {
  const options = [
    ...(noNewPrivileges ? ['no-new-privileges'] : []),
    ...(seccomp === undefined ? [] : [`seccomp=${seccomp}`]),
  ]
  return options.length > 0 ? options : null
}
