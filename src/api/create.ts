import type { CgroupLimits } from '../engine/cgroup-limits.js'
import { deviceFile, parseDevice } from '../engine/devices.js'
import { CoracleError } from '../errors.js'
import type { CreateRequest, RestartPolicy } from '../engine/record.js'
import type {
  GuestKernelName,
  HypervisorName,
  IsolationName,
  SandboxDeviceFile,
} from '../isolation/sandbox.js'
import { mountPart } from './mounts.js'
import { networkPart } from './network-settings.js'
import { RECEIVE_ANNOTATION, SEND_ANNOTATION, ratesOf } from './rates.js'
import type { CreateBody, HostConfig } from './schemas.js'
import { refuseUnbuilt, sharingOf } from './sharing.js'
import { refuseFields } from './unhonoured.js'

/** The annotation (`HostConfig.Annotations`) that chooses who runs a microVM: auto, kvm or qemu. */
export const HYPERVISOR_ANNOTATION = 'coracle.hypervisor'
/** `true`: a microVM boots, in place of starting from a template. */
const COLD_ANNOTATION = 'coracle.cold'
/** The annotation that names a snapshot to go on from; the image may be empty then. */
const FROM_ANNOTATION = 'coracle.from'
/** The annotation that names the kernel of a microVM: cloud or generic. */
export const KERNEL_ANNOTATION = 'coracle.kernel'
/** The vendor of our devices where they are named as CDI does (`docker run --device coracle.dev/sriov=eth0`). */
const CDI_VENDOR = 'coracle.dev/'
/** The prefix of annotations that are ours to set. */
const RESERVED = 'coracle.'

/** Names of `HostConfig.Runtime` and `HostConfig.Isolation`. Docker's clients send its own defaults. */
const ISOLATIONS: Record<string, IsolationName | undefined> = {
  microvm: 'microvm',
  coracle: 'microvm',
  process: 'process',
  runc: 'process',
  crun: 'process',
}

/**
 * Docker's creation request as the engine's.
 * @throws CoracleError INVALID_ARGUMENT; NOT_IMPLEMENTED for what would silently mean something else
 */
export function createRequest(body: CreateBody, name: string | undefined): CreateRequest {
  const host = body.HostConfig ?? {}
  refuseFields('Config', body)
  refuseUnbuilt(host)
  const {
    [HYPERVISOR_ANNOTATION]: hypervisor,
    [COLD_ANNOTATION]: cold,
    [FROM_ANNOTATION]: from,
    [RECEIVE_ANNOTATION]: _receive,
    [SEND_ANNOTATION]: _send,
    [KERNEL_ANNOTATION]: kernel,
    ...annotations
  } = host.Annotations ?? {}
  const taken = Object.keys(annotations).find((key) => key.startsWith(RESERVED))
  if (taken !== undefined)
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `unknown annotation ${taken}: names with ${RESERVED} are the engine's own`,
    )
  if (body.Image === '' && from === undefined)
    throw new CoracleError('INVALID_ARGUMENT', 'Image is empty: a container needs one')
  return defined({
    name,
    from,
    image: body.Image,
    command: list(body.Cmd),
    entrypoint: list(body.Entrypoint),
    env: body.Env ?? undefined,
    workingDirectory: body.WorkingDir || undefined,
    user: body.User || undefined,
    hostname: body.Hostname || undefined,
    labels: body.Labels ?? undefined,
    annotations,
    init: host.Init || undefined,
    tty: body.Tty ?? undefined,
    openStdin: body.OpenStdin ?? undefined,
    stdinOnce: body.StdinOnce ?? undefined,
    stopSignal: body.StopSignal || undefined,
    stopTimeout: body.StopTimeout ?? undefined,
    autoRemove: host.AutoRemove ?? undefined,
    restart: restartOf(host),
    healthcheck: healthcheckOf(body),
    isolation: isolationOf(host),
    hypervisor: hypervisorOf(hypervisor),
    cold: coldOf(cold),
    kernel: kernelOf(kernel),
    ...devicesOf(host),
    ...sharingOf(host),
    memory: host.Memory,
    nanoCpus: nanoCpusOf(host),
    cpuShares: host.CpuShares || undefined,
    cgroupLimits: cgroupLimitsOf(host),
    readOnly: host.ReadonlyRootfs ?? undefined,
    capAdd: host.CapAdd ?? undefined,
    capDrop: host.CapDrop ?? undefined,
    ulimits: host.Ulimits?.map(({ Name, Soft, Hard }) => ({ name: Name, soft: Soft, hard: Hard })),
    shmSize: host.ShmSize || undefined,
    tmpfs: host.Tmpfs ?? undefined,
    ...mountPart(body),
    sysctls: host.Sysctls ?? undefined,
    ...securityOf(host),
    pidsLimit: host.PidsLimit ?? undefined,
    log: logOf(host),
    ...networkPart(body),
    ...ratesOf(host),
    consoleSize: host.ConsoleSize?.length === 2 ? (host.ConsoleSize as [number, number]) : undefined,
  })
}

export type Loose<T> = { [K in keyof T]: T[K] | undefined }

/** Leaves out what is undefined: absent and undefined are the same to a client. */
function defined(request: Loose<CreateRequest>): CreateRequest {
  return Object.fromEntries(
    Object.entries(request).filter(([, value]) => value !== undefined),
  ) as unknown as CreateRequest
}

function healthcheckOf({ Healthcheck: check }: CreateBody): CreateRequest['healthcheck'] {
  if (!check) return undefined
  const { Test, ...numbers } = check
  return { ...numbers, ...(Test && { Test: [...Test] }) }
}

function list(value: string | readonly string[] | null | undefined): readonly string[] | undefined {
  return typeof value === 'string' ? [value] : (value ?? undefined)
}

export function isolationOf({ Isolation, Runtime }: HostConfig): IsolationName | undefined {
  const wanted = Isolation && Isolation !== 'default' ? Isolation : Runtime
  if (!wanted) return undefined
  const isolation = Object.hasOwn(ISOLATIONS, wanted) ? ISOLATIONS[wanted] : undefined
  if (isolation) return isolation
  throw new CoracleError(
    'INVALID_ARGUMENT',
    `unknown isolation: ${wanted.slice(0, 64)}: it is microvm or process`,
  )
}

function coldOf(value: string | undefined): boolean | undefined {
  if (value === undefined) return undefined
  if (value === 'true' || value === 'false') return value === 'true'
  throw new CoracleError('INVALID_ARGUMENT', `${COLD_ANNOTATION} is true or false`)
}

function hypervisorOf(name: string | undefined): HypervisorName | 'auto' | undefined {
  if (name === undefined || name === 'auto' || name === 'kvm' || name === 'qemu') return name
  throw new CoracleError(
    'INVALID_ARGUMENT',
    `unknown hypervisor: ${name.slice(0, 64)}: it is auto, kvm or qemu`,
  )
}

function kernelOf(name: string | undefined): GuestKernelName | undefined {
  if (name === undefined || name === 'cloud' || name === 'generic') return name
  throw new CoracleError('INVALID_ARGUMENT', `unknown kernel: ${name.slice(0, 64)}: it is cloud or generic`)
}

/**
 * `Devices` has ours as PathOnHost, just as `--device` of our own command line; Docker's own sends one that is named
 * `coracle.dev/sriov=ADAPTER` or `coracle.dev/pci=ADDRESS` as a request to its driver `cdi`.
 */
function devicesOf({
  Devices,
  DeviceRequests,
}: HostConfig): Pick<Loose<CreateRequest>, 'devices' | 'deviceFiles'> {
  const named: string[] = []
  const files: SandboxDeviceFile[] = []
  for (const { PathOnHost = '', PathInContainer = '', CgroupPermissions = '' } of Devices ?? []) {
    if (PathOnHost.startsWith('/')) files.push(deviceFile(PathOnHost, PathInContainer, CgroupPermissions))
    else named.push(PathOnHost)
  }
  for (const request of DeviceRequests ?? []) {
    const { Driver, DeviceIDs } = request as { Driver?: unknown; DeviceIDs?: unknown }
    const ids = Driver === 'cdi' && Array.isArray(DeviceIDs) ? DeviceIDs : []
    if (ids.length === 0 || !ids.every((id) => typeof id === 'string' && id.startsWith(CDI_VENDOR)))
      throw new CoracleError(
        'NOT_IMPLEMENTED',
        `requests for devices other than ${CDI_VENDOR}… are not built yet`,
      )
    refuseFields('DeviceRequest', request)
    named.push(...(ids as string[]).map((id) => id.slice(CDI_VENDOR.length)))
  }
  return {
    devices: named.length > 0 ? named.map(parseDevice) : undefined,
    deviceFiles: files.length > 0 ? files : undefined,
  }
}

/** Limits of a cgroup; 0 and empty are not given. */
export function cgroupLimitsOf(host: HostConfig): CgroupLimits | undefined {
  const swappiness = host.MemorySwappiness ?? -1
  const limits = {
    ...(host.MemoryReservation && { memoryReservation: host.MemoryReservation }),
    ...(host.MemorySwap && { memorySwap: host.MemorySwap }),
    ...(swappiness !== -1 && { memorySwappiness: swappiness }),
    ...(host.OomKillDisable && { oomKillDisable: true }),
    ...(host.BlkioWeight && { blkioWeight: host.BlkioWeight }),
    ...(host.CpusetCpus && { cpusetCpus: host.CpusetCpus }),
    ...(host.CpusetMems && { cpusetMems: host.CpusetMems }),
  }
  return Object.keys(limits).length > 0 ? limits : undefined
}

/** Processors by either of Docker's ways to name them. @throws CoracleError INVALID_ARGUMENT */
export function nanoCpusOf({
  NanoCpus,
  CpuQuota,
  CpuPeriod,
}: Pick<HostConfig, 'NanoCpus' | 'CpuQuota' | 'CpuPeriod'>): number | undefined {
  const refuse = (message: string): never => {
    throw new CoracleError('INVALID_ARGUMENT', message)
  }
  for (const [name, value] of [
    ['CPU Period', CpuPeriod],
    ['CPU Quota', CpuQuota],
  ] as const)
    if (NanoCpus && value) refuse(`Conflicting options: Nano CPUs and ${name} cannot both be set`)
  if (CpuPeriod && (CpuPeriod < 1000 || CpuPeriod > 1_000_000))
    refuse('CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)')
  if (CpuQuota && CpuQuota > 0 && CpuQuota < 1000)
    refuse('CPU cfs quota can not be less than 1ms (i.e. 1000)')
  if (NanoCpus || !CpuQuota || CpuQuota < 0) return NanoCpus
  return Math.round((CpuQuota / (CpuPeriod || 100_000)) * 1e9)
}

/** The default is nothing said. */
function logOf({ LogConfig }: HostConfig): CreateRequest['log'] {
  const { Type: driver = '', Config } = LogConfig ?? {}
  const options = Config ?? {}
  const isDefault = ['', 'json-file'].includes(driver) && Object.keys(options).length === 0
  return isDefault ? undefined : { driver, options }
}

const RESTART_POLICIES = ['no', 'always', 'unless-stopped', 'on-failure'] as const

/** Docker's rules of a restart policy. @throws CoracleError INVALID_ARGUMENT */
export function restartOf({
  RestartPolicy: policy,
  AutoRemove,
}: Pick<HostConfig, 'RestartPolicy' | 'AutoRemove'>): RestartPolicy | undefined {
  if (!policy?.Name || policy.Name === 'no') return undefined
  const name = RESTART_POLICIES.find((each) => each === policy.Name)
  const maximumRetryCount = policy.MaximumRetryCount ?? 0
  if (!name)
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `invalid restart policy: unknown policy '${policy.Name.slice(0, 64)}'; use one of ${RESTART_POLICIES.join(', ')}`,
    )
  if (maximumRetryCount < 0 || (maximumRetryCount > 0 && name !== 'on-failure'))
    throw new CoracleError(
      'INVALID_ARGUMENT',
      "invalid restart policy: a maximum retry count goes with 'on-failure' alone, and is not negative",
    )
  if (AutoRemove)
    throw new CoracleError('INVALID_ARGUMENT', "can't create 'AutoRemove' container with restart policy")
  return { name, maximumRetryCount }
}

/** Docker's security options: a colon in place of the equals sign is the older form. */
function securityOf({ SecurityOpt }: HostConfig): Pick<Loose<CreateRequest>, 'noNewPrivileges' | 'seccomp'> {
  let noNewPrivileges: boolean | undefined
  let seccomp: string | undefined
  for (const option of SecurityOpt ?? []) {
    const [, name, value] = /^([a-z-]+)(?:[:=]([^]*))?$/.exec(option) ?? []
    if (name === 'no-new-privileges' && /^(true|false)?$/.test(value ?? ''))
      noNewPrivileges = value !== 'false'
    else if (name === 'seccomp' && value) seccomp = value
    // There is neither AppArmor nor SELinux here: without is how every container runs.
    else if (option === 'apparmor=unconfined' || option === 'label=disable') continue
    else throw new CoracleError('NOT_IMPLEMENTED', `security option ${option.slice(0, 64)} is not built yet`)
  }
  return { noNewPrivileges, seccomp }
}
