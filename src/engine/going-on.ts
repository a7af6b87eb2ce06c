import { CoracleError } from '../errors.js'
import type { SandboxSpec } from '../isolation/sandbox.js'
import { type Host, chooseHypervisor } from './host.js'
import type { ContainerRecord, CreateRequest } from './record.js'

/** Settings that a container which goes on from a snapshot has from there: its process runs. */
const SETTLED = {
  command: 'a command',
  entrypoint: '--entrypoint',
  env: '--env',
  init: '--init',
  workingDirectory: '--workdir',
  user: '--user',
  memory: '--memory',
  nanoCpus: '--cpus',
  kernel: '--kernel',
  cold: '--cold',
  devices: '--device',
  capAdd: '--cap-add',
  capDrop: '--cap-drop',
  readOnly: '--read-only',
  tmpfs: '--tmpfs',
  binds: '--volume',
  mounts: '--mount',
  volumes: '--volume',
  volumesFrom: '--volumes-from',
  seccomp: '--security-opt seccomp',
  noNewPrivileges: '--security-opt no-new-privileges',
  sysctls: '--sysctl',
  ulimits: '--ulimit',
  shmSize: '--shm-size',
  pidsLimit: '--pids-limit',
  log: '--log-driver',
  privileged: '--privileged',
  groupAdd: '--group-add',
  hostNamespaces: '--pid, --ipc or --uts',
  pidContainer: '--pid',
  ipcContainer: '--ipc',
  ipcShareable: '--ipc',
  deviceRules: '--device-cgroup-rule',
  cgroupNamespace: '--cgroupns',
  cgroupParent: '--cgroup-parent',
  noSharedMemory: '--ipc',
  oomScoreAdj: '--oom-score-adj',
  deviceFiles: '--device',
  maskedPaths: '--security-opt systempaths',
  readonlyPaths: '--security-opt systempaths',
  diskSize: '--storage-opt',
  cgroupLimits: 'a limit of a cgroup',
} satisfies Partial<Record<keyof CreateRequest, string>>

/** What a container can be saved by, and go on by. @throws CoracleError INVALID_ARGUMENT, SNAPSHOT_UNSUPPORTED */
export function checkSavable({ name, spec, mounts }: ContainerRecord): void {
  if (spec.isolation !== 'microvm' || spec.hypervisor !== 'kvm')
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `container ${name} runs on ${spec.isolation === 'microvm' ? spec.hypervisor : `isolation ${spec.isolation}`}: snapshots are of microVMs on kvm (--isolation microvm --hypervisor kvm)`,
    )
  if (mounts?.some(({ type }) => type !== 'tmpfs'))
    throw new CoracleError(
      'SNAPSHOT_UNSUPPORTED',
      `container ${name} has volumes or folders of the host mounted, which a snapshot does not hold: run it without them`,
    )
  if (spec.devices?.length)
    throw new CoracleError(
      'SNAPSHOT_UNSUPPORTED',
      `container ${name} has a device of the host, whose state nobody can save: run it without --device`,
    )
}

/**
 * What a request to go on from a snapshot comes to.
 * @param asked what a client says beside the snapshot's name
 * @throws CoracleError INVALID_ARGUMENT for what cannot be changed any more, KVM_UNAVAILABLE
 */
export function requestFrom(saved: ContainerRecord, asked: CreateRequest, host: Host): CreateRequest {
  for (const [key, option] of Object.entries(SETTLED)) {
    const value = asked[key as keyof typeof SETTLED]
    if (value === undefined || value === false || value === 0) continue
    if (typeof value === 'object' && Object.keys(value).length === 0) continue
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `${option} cannot be chosen with --from: the process of the snapshot goes on as it was started`,
    )
  }
  if (asked.tty === true && saved.spec.tty !== true)
    throw new CoracleError('INVALID_ARGUMENT', 'the container of the snapshot has no terminal: leave out -t')
  const { isolation = 'microvm', hypervisor = 'auto' } = asked
  const choice = isolation === 'microvm' ? chooseHypervisor(hypervisor, host) : undefined
  if (choice?.hypervisor !== 'kvm')
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `a snapshot goes on on kvm alone, and this would be ${choice ? `qemu (${choice.reason})` : `isolation ${isolation}`}`,
    )
  const { endpoints, ...rest } = saved.request
  const kept = omit(rest, ['name', 'owner', 'hostname', 'autoRemove', 'restart', 'ports'])
  const network = isUnsaid(asked)
    ? {
        ...(kept.networkMode === undefined ? {} : { networkMode: kept.networkMode }),
        // Addresses of its own: those of the saved one may be in use.
        ...(endpoints
          ? { endpoints: Object.fromEntries(Object.keys(endpoints).map((each) => [each, {}])) }
          : {}),
      }
    : { networkMode: asked.networkMode!, endpoints: asked.endpoints ?? {} }
  return {
    ...kept,
    ...pick(asked, [
      'name',
      'owner',
      'hostname',
      'autoRemove',
      'restart',
      'ports',
      'publishAll',
      'stopSignal',
      'stopTimeout',
    ]),
    ...pick(asked, ['networkRates', 'deviceRates', 'dns', 'dnsSearch', 'dnsOptions', 'extraHosts']),
    ...network,
    labels: { ...kept.labels, ...asked.labels },
    from: asked.from!,
  }
}

const isUnsaid = ({ networkMode = '', endpoints = {} }: CreateRequest): boolean =>
  (networkMode === '' || networkMode === 'default') && Object.keys(endpoints).length === 0

function pick<K extends keyof CreateRequest>(
  from: CreateRequest,
  keys: readonly K[],
): Pick<CreateRequest, K> {
  return Object.fromEntries(
    keys.flatMap((key) => (from[key] === undefined ? [] : [[key, from[key]]])),
  ) as Pick<CreateRequest, K>
}

function omit<T extends object, K extends keyof T>(from: T, keys: readonly K[]): Omit<T, K> {
  const kept: Partial<T> = { ...from }
  for (const key of keys) Reflect.deleteProperty(kept, key)
  return kept as Omit<T, K>
}

/** The specification of a container that goes on from `folder`. */
export function specFrom(
  saved: SandboxSpec,
  folder: string,
  own: Pick<SandboxSpec, 'id' | 'hostname' | 'stateDirectory' | 'runDirectory' | 'stdinOnce'>,
): SandboxSpec {
  const kept = omit(saved, ['cold', 'network'])
  const { process } = kept.bundle
  const env = process.env.map((each) => (each.startsWith('HOSTNAME=') ? `HOSTNAME=${own.hostname}` : each))
  const bundle = { ...kept.bundle, hostname: own.hostname, process: { ...process, env } }
  return { ...kept, ...own, bundle, from: folder }
}

/** The specification of a container's next run: only the first one goes on from a snapshot. */
export function nextSpec({ spec, exits }: Pick<ContainerRecord, 'spec' | 'exits'>): SandboxSpec {
  if (exits === 0) return spec
  return omit(spec, ['from'])
}
