import type { ImageHealthcheck } from '../image/image.js'
import type { ProcessIdentity } from '../isolation/liveness.js'
import type { EndpointRequest } from '../network/record.js'
import type { PortRequest } from '../network/ports.js'
import type { MountPoint, MountRequest } from './mounts.js'
import type { ContainerLink } from './links.js'
import type { LogRequest } from './log-bounds.js'
import type { CgroupLimits } from './cgroup-limits.js'
import type { DeviceRate, NetworkRates } from './rates.js'
import type { HealthCheck } from './health-check.js'
import type {
  GuestKernelName,
  HypervisorName,
  IsolationName,
  SandboxDevice,
  SandboxDeviceFile,
  SandboxSpec,
} from '../isolation/sandbox.js'

/** A resource limit of the workload, `--ulimit`. `-1` is no limit. */
export interface Ulimit {
  readonly name: string
  readonly soft: number
  readonly hard: number
}

/** When a container whose run ended is started again (`--restart`). */
export interface RestartPolicy {
  readonly name: 'no' | 'always' | 'unless-stopped' | 'on-failure'
  /** For on-failure: so often at most; 0 for no limit. */
  readonly maximumRetryCount: number
}

/** A namespace that can be the host's; the network's is a network mode. */
export type HostNamespace = 'pid' | 'ipc' | 'uts'

/** What a client asks for. Absent means the image's or the engine's default. Bounds are the engine's to check. */
export interface CreateRequest {
  readonly name?: string
  readonly image: string
  readonly command?: readonly string[]
  /** An empty list, or one empty string, takes the image's entrypoint away. */
  readonly entrypoint?: readonly string[]
  /** `NAME=value`; a bare `NAME` takes the image's variable away. */
  readonly env?: readonly string[]
  readonly workingDirectory?: string
  /** `user[:group]`, names or numbers. */
  readonly user?: string
  readonly hostname?: string
  readonly labels?: Readonly<Record<string, string>>
  readonly annotations?: Readonly<Record<string, string>>
  /** A process of ours is the first one: it runs the command, passes signals on and reaps. */
  readonly init?: boolean
  readonly tty?: boolean
  readonly openStdin?: boolean
  readonly stdinOnce?: boolean
  readonly stopSignal?: string
  /** Seconds. */
  readonly stopTimeout?: number
  readonly autoRemove?: boolean
  /** What it says over the image's. */
  readonly healthcheck?: ImageHealthcheck
  readonly restart?: RestartPolicy
  readonly isolation?: IsolationName
  readonly hypervisor?: HypervisorName | 'auto'
  /** A microVM boots, in place of starting from a template. */
  readonly cold?: boolean
  /** Of a microVM. */
  readonly kernel?: GuestKernelName
  /** The container is there for this process alone, and goes when that is gone: it takes a step of a build. */
  readonly owner?: ProcessIdentity
  /** The name of a snapshot: the container goes on from there, and `image` is empty or the snapshot's own. */
  readonly from?: string
  /** Devices of the host, for a microVM on kvm. */
  readonly devices?: readonly SandboxDevice[]
  /** Bytes; 0 or absent: the default. */
  readonly memory?: number
  /** Billionths of a CPU; 0 or absent: the default. */
  readonly nanoCpus?: number
  /** 2 to 262144; 0 or absent: 1024, as everybody. */
  readonly cpuShares?: number
  readonly cgroupLimits?: CgroupLimits
  readonly deviceRates?: readonly DeviceRate[]
  readonly networkRates?: NetworkRates
  readonly readOnly?: boolean
  readonly capAdd?: readonly string[]
  readonly capDrop?: readonly string[]
  readonly ulimits?: readonly Ulimit[]
  /** Bytes of /dev/shm. @default 64 MiB */
  readonly shmSize?: number
  /** Mount point to mount options. */
  readonly tmpfs?: Readonly<Record<string, string>>
  /** `[SOURCE:]DESTINATION[:OPTIONS]`, as `-v` has them. */
  readonly binds?: readonly string[]
  readonly mounts?: readonly MountRequest[]
  /** `CONTAINER[:ro|:rw]`: what that one has mounted. */
  readonly volumesFrom?: readonly string[]
  /** Places of volumes that nobody names, beside those that the image declares. */
  readonly volumes?: readonly string[]
  /** What the image declares is no volume: it is part of the image that is being built. */
  readonly ignoreVolumes?: boolean
  /** All capabilities, no seccomp profile, all of /proc and /sys to write; without a VM the host's devices too. */
  readonly privileged?: boolean
  /** Groups beside the user's own: names of the image's, or numbers. */
  readonly groupAdd?: readonly string[]
  /** Namespaces that are the host's. Its own cgroup namespace it has where that is said, or where the kernel's is v2. */
  readonly hostNamespaces?: readonly HostNamespace[]
  /** The container whose processes it is among: a reference, then an id. */
  readonly pidContainer?: string
  /** The container whose shared memory it has: a reference, then an id. */
  readonly ipcContainer?: string
  /** Others may have its shared memory. */
  readonly ipcShareable?: boolean
  readonly cgroupNamespace?: 'host' | 'private'
  /** The cgroup of the host that its own lies in, or its virtual machine's. */
  readonly cgroupParent?: string
  /** What a cgroup lets it do with devices, beside those of every container, as `c 1:3 rwm`. */
  readonly deviceRules?: readonly string[]
  /** There is no /dev/shm. */
  readonly noSharedMemory?: boolean
  /** −1000 to 1000. @default 0 */
  readonly oomScoreAdj?: number
  /** Device files of the host. */
  readonly deviceFiles?: readonly SandboxDeviceFile[]
  /** Absolute paths, in place of Docker's. */
  readonly maskedPaths?: readonly string[]
  readonly readonlyPaths?: readonly string[]
  /** Bytes of the writable layer at most. */
  readonly diskSize?: number
  readonly sysctls?: Readonly<Record<string, string>>
  readonly noNewPrivileges?: boolean
  /** `unconfined`, `builtin`, or the text of a profile. @default builtin */
  readonly seccomp?: string
  readonly pidsLimit?: number
  readonly log?: LogRequest
  /** `bridge` (the default), `none`, `host`, `container:REFERENCE`, or a network. */
  readonly networkMode?: string
  /** What it asks of networks, by their names or ids; that of `networkMode` need not be among them. */
  readonly endpoints?: Readonly<Record<string, EndpointRequest>>
  readonly ports?: readonly PortRequest[]
  /** Publishes each port that it or its image exposes. */
  readonly publishAll?: boolean
  /** `80/tcp` */
  readonly exposedPorts?: readonly string[]
  readonly domainname?: string
  /** Resolvers, in place of the host's. */
  readonly dns?: readonly string[]
  readonly dnsSearch?: readonly string[]
  readonly dnsOptions?: readonly string[]
  /** `NAME:ADDRESS` */
  readonly extraHosts?: readonly string[]
  /** Their addresses are looked up at each start. */
  readonly links?: readonly ContainerLink[]
  /** Rows and columns of the terminal at the start. */
  readonly consoleSize?: readonly [number, number]
}

/** How a run ended. */
export interface ExitState {
  readonly exitCode: number
  /** Set where the sandbox failed, rather than the workload. */
  readonly error?: string
  readonly oomKilled: boolean
  /** RFC 3339. */
  readonly startedAt: string
  readonly finishedAt: string
}

/**
 * Where a container is in its life. `starting` is written before a sandbox is launched, and only under the
 * container's lock: who finds it with the lock free knows that the starter died.
 */
export type ContainerState =
  | {
      readonly status: 'created'
      /** Why the last attempt to start it failed. */
      readonly failure?: { readonly exitCode: number; readonly error: string }
    }
  | { readonly status: 'starting'; readonly startedAt: string }
  | {
      readonly status: 'running'
      readonly pid: number
      readonly startedAt: string
      /** Its processes, or its machine, stand still. @default false */
      readonly paused?: boolean
      /** Why it stands still, where it is between two daemons. */
      readonly move?: MoveMark
    }
  | ({ readonly status: 'exited' } & ExitState)

/** On a container that stands still because it moves from one daemon to another. */
export interface MoveMark {
  /** 32 hexadecimal digits, the same on both sides. */
  readonly id: string
  /** Whether it goes from here, or came here and waits for the word that it is gone there. */
  readonly side: 'leaving' | 'arrived'
  /** Its id where it comes from. */
  readonly container: string
  /** Of one that leaves: who sends it. */
  readonly sender?: ProcessIdentity
}

/** All that is kept of a container: one JSON file, replaced as a whole. */
export interface ContainerRecord {
  readonly version: 1
  readonly id: string
  readonly name: string
  /** RFC 3339. */
  readonly created: string
  readonly imageId: string
  readonly request: CreateRequest
  /** The signal number and the seconds that `stop` uses. */
  readonly stopSignal: number
  readonly stopTimeout: number
  readonly spec: SandboxSpec
  readonly state: ContainerState
  /** Absent: nothing says whether it does its work. */
  readonly healthCheck?: HealthCheck
  /** Runs that ended. */
  readonly exits: number
  /** Starts by the restart policy since the last one by hand. @default 0 */
  readonly restartCount?: number
  /** The last run was ended by a user: most policies leave it so. @default false */
  readonly manuallyStopped?: boolean
  /** What is mounted into it beside what every container has. @default none */
  readonly mounts?: readonly MountPoint[]
}

/** What waiting for a container yields. */
export interface WaitResult {
  readonly exitCode: number
  readonly error?: string
}
