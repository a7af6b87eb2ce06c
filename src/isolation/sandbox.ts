import type { Duplex, Readable } from 'node:stream'
import type { PathStat } from './archive.js'
import type { ProcessList } from './processes.js'
import type { SandboxStats } from './stats.js'

/** How a container is kept apart from the host and its neighbours. */
export type IsolationName = 'microvm' | 'process'

/** Who runs a microVM's processors. `auto` never reaches a sandbox: the engine has chosen by then. */
export type HypervisorName = 'kvm' | 'qemu'

/** A read-only file system image: EROFS, padded to a multiple of 2 MiB, never written again once in the store. */
export interface RootLayer {
  /** Digest of the uncompressed layer (OCI image-spec, DiffID), `sha256:…`. */
  readonly diffId: string
  readonly path: string
  /** Length of the file in bytes. */
  readonly size: number
}

/** One network interface of a container. What carries it on the host is made by whoever launches the sandbox. */
export interface SandboxInterface {
  /** As the container sees it, such as `eth0`: at most 15 bytes. */
  readonly name: string
  /** Six octets in hexadecimal: `02:42:ac:11:00:02`. */
  readonly mac: string
  /** In CIDR, such as `172.17.0.2/16` or `fd00::2/64`. */
  readonly addresses: readonly string[]
  /** Of the default routes, at most one of each family. */
  readonly gateways: readonly string[]
  /** Bytes of a packet without its Ethernet header. */
  readonly mtu: number
  /**
   * For a microVM: the name of a tap on the host that is up and a port of its bridge, with one queue (no
   * `multi_queue`); persistent, since it is opened by the sandbox and only then has a carrier.
   */
  readonly tap?: string
  /** For a guest of our own VMM: `/dev/vhost-net`, for the kernel to carry the frames. @default the VMM carries them */
  readonly vhost?: string
}

/** A file that the container finds at `path`, writable, in place of the image's: `/etc/hosts`, `/etc/resolv.conf`. */
export interface SandboxFile {
  readonly path: string
  readonly content: string
}

/** How a container is on networks. Whatever it says, the container has a loopback interface of its own. */
export interface SandboxNetwork {
  readonly interfaces: readonly SandboxInterface[]
  readonly files?: readonly SandboxFile[]
  /**
   * For process isolation: path of a network namespace, such as `/run/netns/NAME`, where loopback and the interfaces
   * are set up already. The container joins it and leaves it as it is. Absent: an empty one that goes with it.
   */
  readonly namespace?: string
}

/** A file or folder of the host that the container sees. */
export interface SandboxMount {
  /** Path on the host, absolute. Links in it are followed when the sandbox starts. */
  readonly source: string
  /** Path in the container, absolute and without `..`; it is made where it is missing. */
  readonly destination: string
  readonly readOnly: boolean
  /** What is mounted below the source is left out. @default false */
  readonly nonRecursive?: boolean
}

/** A device of the host that the container has for itself. */
export type SandboxDevice =
  /** A free virtual function of a network adapter; another one at each start. */
  | {
      readonly kind: 'sriov'
      /** The adapter, by its interface or its PCI address. */
      readonly adapter: string
      /** Six octets in hexadecimal. */
      readonly mac: string
      /** 1 to 4094, 0 for none. */
      readonly vlan: number
      /** As the container sees it. @default the next free of eth0, eth1, … */
      readonly name?: string
      /** In CIDR; none: the container sees to it itself. */
      readonly addresses: readonly string[]
      readonly gateways: readonly string[]
      /** Bytes of a packet without its Ethernet header. @default the driver's choice */
      readonly mtu?: number
    }
  /** A PCI function by its address on the host. */
  | { readonly kind: 'pci'; readonly address: string }

/** A device file of the host that the container sees, or all those in a folder. */
export interface SandboxDeviceFile {
  /** Path on the host. */
  readonly source: string
  /** Path in the container. */
  readonly destination: string
  /** Of `r`, `w` and `m` (mknod). */
  readonly access: string
}

/** Kernels that a guest can boot: kernels/catalogue.json. */
export type GuestKernelName = 'cloud' | 'generic'

/** How much of a container's output is kept. */
export interface LogBounds {
  /** So many files; when the newest is full the oldest one makes room. 0: nothing is kept. */
  readonly files: number
  /** Bytes a file, but for an entry that is larger by itself. @default no bound, and one file */
  readonly maxSize?: number
}

/** Everything that is decided before a sandbox starts. Written as JSON into its folder; it never changes after. */
export interface SandboxSpec {
  /** The container's 64-digit hexadecimal id. */
  readonly id: string
  readonly isolation: IsolationName
  /** Only for microvm. */
  readonly hypervisor?: HypervisorName
  /** Boot a microVM's guest, in place of starting it from a template. @default false */
  readonly cold?: boolean
  /** Only for microvm. @default `cloud`, or `generic` where a device has its driver there alone */
  readonly kernel?: GuestKernelName
  /**
   * Only for microvm on kvm: the folder of a snapshot ({@link Sandbox.snapshot}). The container goes on from there, in
   * place of starting its command: layers, bundle, memory and what else the guest was made with are those of the saved
   * one, networks and names are its own. Its writable layer is made anew.
   */
  readonly from?: string
  /** Only for microvm on kvm. They are taken from the host while the sandbox lives, and given back to their drivers. */
  readonly devices?: readonly SandboxDevice[]
  /** Only for process isolation. */
  readonly deviceFiles?: readonly SandboxDeviceFile[]
  /** Lowest layer first. Whiteouts are overlayfs's: character device 0/0, `trusted.overlay.opaque=y`. */
  readonly layers: readonly RootLayer[]
  /** OCI runtime-spec config.json. `root` and the paths of the root file system are the driver's to fill in. */
  readonly bundle: OciConfig
  /**
   * Only for process isolation: processes as the host counts, whose namespaces of these kinds are joined; with that of
   * IPC their /dev/shm.
   */
  readonly joins?: Readonly<Partial<Record<'pid' | 'ipc' | 'network', number>>>
  /** The first process is one of ours, which runs the bundle's as its child, passes signals on and reaps. @default false */
  readonly init?: boolean
  /** Allocate a terminal, and one stream in place of stdout and stderr. */
  readonly tty: boolean
  /** Keep stdin open: without it the process reads /dev/null. */
  readonly openStdin: boolean
  /** End stdin when the first attached client that wrote it goes (Docker's StdinOnce). */
  readonly stdinOnce: boolean
  /** The guest's memory, or the cgroup's limit with process isolation; bytes, 0 for no limit. */
  readonly memory: number
  /** CPUs, may be a fraction; 0 for no limit. A microVM has this many vCPUs, rounded up. */
  readonly cpus: number
  /** The cgroup of the host that its own lies in: `/a/b`. @default the root */
  readonly cgroupParent?: string
  /** Of CPU time, where it is scarce: 2 to 262144, everybody's is 1024. @default 1024 */
  readonly cpuShares?: number
  readonly hostname: string
  /** Those that others lie in first. @default none */
  readonly mounts?: readonly SandboxMount[]
  /** Absent: loopback alone. */
  readonly network?: SandboxNetwork
  /** Of a microVM's writable disk, a second each. */
  readonly diskRates?: {
    readonly readBps?: number
    readonly writeBps?: number
    readonly readIops?: number
    readonly writeIops?: number
  }
  /** Of each interface of a guest of our own VMM, in bytes a second. */
  readonly networkRates?: { readonly receiveBps?: number; readonly sendBps?: number }
  /** Bytes of the writable layer at most. */
  readonly diskSize: number
  /** What is kept of its output. @default all of it, in one file */
  readonly log?: LogBounds
  /** Persistent: the writable layer, the json-file log, the exit status. */
  readonly stateDirectory: string
  /** On a tmpfs, short enough for a socket's path: control socket, lock, process ids. Gone after a reboot. */
  readonly runDirectory: string
}

/** The part of OCI runtime-spec 1.2 config.json that we write. */
export interface OciConfig {
  ociVersion: string
  process: {
    terminal?: boolean
    consoleSize?: { height: number; width: number }
    user: { uid: number; gid: number; additionalGids?: number[]; umask?: number }
    args: string[]
    env: string[]
    cwd: string
    capabilities?: Record<'bounding' | 'effective' | 'permitted' | 'inheritable' | 'ambient', string[]>
    rlimits?: { type: string; hard: number; soft: number }[]
    noNewPrivileges?: boolean
    oomScoreAdj?: number
  }
  root?: { path: string; readonly?: boolean }
  hostname?: string
  mounts?: { destination: string; type?: string; source?: string; options?: string[] }[]
  linux?: Record<string, unknown>
  annotations?: Record<string, string>
}

/** What can be changed of a container that runs; what is absent stays. */
export interface SandboxLimits {
  /** Bytes, 0 for no limit. */
  readonly memory?: number
  /** May be a fraction; 0 for no limit. */
  readonly cpus?: number
  /** @see SandboxSpec.cpuShares */
  readonly cpuShares?: number
  /** Processes and threads, 0 for no limit. */
  readonly pids?: number
  /** Only for process isolation: files of its cgroups, as {@link CgroupFiles} has them. */
  readonly cgroup?: CgroupFiles
}

/** Limits that only a cgroup of the host can set, of a sandbox that runs. */
export interface CgroupFiles {
  /** Bytes. */
  readonly memoryReservation?: number
  /** Bytes of memory and swap together, −1 for no limit. */
  readonly memorySwap?: number
  /** Such as `0-2,5`. */
  readonly cpusetCpus?: string
  readonly cpusetMems?: string
  /** 10 to 1000. */
  readonly blkioWeight?: number
}

/** How a sandbox ended. */
export interface SandboxExit {
  /** 0–255, or 128+n for signal n; 137 with `error` where the sandbox itself was killed. */
  readonly exitCode: number
  /** Set where the sandbox failed rather than the workload: one line for the user. */
  readonly error?: string
  readonly oomKilled?: boolean
  /** RFC 3339 with nanoseconds, as Docker prints it. */
  readonly finishedAt: string
}

/** Which streams an attachment carries. */
export interface AttachOptions {
  readonly stdin: boolean
  readonly stdout: boolean
  readonly stderr: boolean
}

/** A further process in a container, decided before it starts. What it does not say is the container's own. */
export interface ExecSpec {
  /** 64 hexadecimal digits. */
  readonly id: string
  readonly args: readonly string[]
  /** `NAME=value`, in place of the container's; `NAME` takes that away. */
  readonly env: readonly string[]
  readonly cwd?: string
  /** As it was written: `app`, `app:staff`, `1000`. */
  readonly user?: string
  /** In place of those that the container may have. */
  readonly capabilities?: readonly string[]
  readonly tty: boolean
  readonly openStdin: boolean
  /** What whoever attaches to its terminal leaves it with; kept for them alone. */
  readonly detachKeys?: string
  readonly consoleSize?: { readonly height: number; readonly width: number }
}

/** Where such a process is in its life. `pid` is the host's with process isolation, else 0. */
export type ExecState =
  | { readonly status: 'created'; readonly spec: ExecSpec }
  | { readonly status: 'running'; readonly spec: ExecSpec; readonly pid: number }
  | { readonly status: 'ended'; readonly spec: ExecSpec; readonly pid: number; readonly exitCode: number }

/** A sandbox that was launched: a monitor process of its own that outlives whoever launched it. */
export interface Sandbox {
  /** The monitor's process id, for `State.Pid`. */
  readonly pid: number
  /**
   * Starts the workload. Resolves when it runs. @throws SandboxError when it could not start (see exit codes 125–127)
   * @param still it is paused from the start on, and does nothing before {@link Sandbox.resume}: goes with
   *   {@link SandboxSpec.from} alone
   */
  start(signal?: AbortSignal, still?: boolean): Promise<void>
  /**
   * Joins the workload's streams. Reads yield Docker's frames (`[stream,0,0,0,length u32be]` + payload, stream 1
   * stdout or terminal, 2 stderr) from now on; writes are raw stdin; `end()` is stdin's EOF and output goes on.
   */
  attach(options: AttachOptions): Promise<Duplex>
  /** @param signal a number, such as 15 */
  kill(signal: number): Promise<void>
  /** Columns and rows of the terminal. */
  resize(width: number, height: number): Promise<void>
  /**
   * Makes the interfaces of a running microVM these: takes out what is not among them any more, and puts in what is new,
   * whose taps are there. Those of before must not have changed but in their gateways. Of process isolation they are in
   * the container's namespace, and no business of its sandbox.
   * @throws CoracleError NOT_RUNNING, CONFLICT where no more fit in, GUEST_FAILED where the guest does not find them:
   *   it has those of before then
   */
  setInterfaces(interfaces: readonly SandboxInterface[]): Promise<void>
  /**
   * Makes every process of the container stand still, or its virtual machine, until {@link Sandbox.resume}. A signal
   * sent meanwhile meets its process then.
   * @throws CoracleError NOT_RUNNING, NOT_IMPLEMENTED where the host cannot, SANDBOX_FAILED
   */
  pause(): Promise<void>
  /** Idempotent. @throws CoracleError NOT_RUNNING */
  resume(): Promise<void>
  /**
   * Changes limits, all or nothing. A guest gives memory up by its balloon, and gets back no more than it was started
   * with; its processors are as many as at the start, and what time they get is the host's to say.
   * @throws CoracleError NOT_RUNNING; MEMORY_SIZE, INVALID_ARGUMENT for more than it was started with; CONFLICT where
   * more is in use than it is to have
   */
  update(limits: SandboxLimits): Promise<void>
  /** What the container uses now, and since its start. @throws CoracleError NOT_RUNNING */
  stats(): Promise<SandboxStats>
  /** What runs in the container, by number: at most 1024. @throws CoracleError NOT_RUNNING */
  processes(): Promise<ProcessList>
  /**
   * What its machine is made of, as plain data (`MachineDescription` of our VMM).
   * @throws CoracleError INVALID_ARGUMENT where it has none, NOT_IMPLEMENTED where it does not tell, NOT_RUNNING
   */
  machine(): Promise<object>
  /**
   * Saves the running sandbox into an empty folder, on the disk when this resolves; it goes on as before, after it stood
   * still for as long as its memory takes to be written. {@link SandboxSpec.from} is how another one begins there.
   * @param stay it is paused from there on, and has done nothing since it was saved
   * @throws CoracleError NOT_RUNNING, SNAPSHOT_UNSUPPORTED, CONFLICT where it is being saved, SANDBOX_FAILED, HOST_TOOL
   */
  snapshot(folder: string, signal?: AbortSignal, stay?: boolean): Promise<void>
  /**
   * Makes a further process known to the sandbox, which runs; it is started by {@link Sandbox.startExec}.
   * @throws CoracleError NOT_RUNNING
   */
  createExec(spec: ExecSpec): Promise<void>
  /**
   * Starts it. The stream is as {@link Sandbox.attach} gives it, and has all of the output; it ends when that is
   * over, and the state tells of the end by then.
   * @param options undefined for no streams: then there is nothing to read
   * @throws CoracleError NO_SUCH_EXEC, CONFLICT where it was started before, and those of a start
   */
  startExec(id: string, options: AttachOptions | undefined): Promise<Duplex>
  /** @throws CoracleError NO_SUCH_EXEC, NOT_RUNNING, as those below */
  execState(id: string): Promise<ExecState>
  /** Resolves when it has ended. */
  waitExec(id: string): Promise<ExecState>
  killExec(id: string, signal: number): Promise<void>
  resizeExec(id: string, width: number, height: number): Promise<void>
  /** What a path in the container is; also before {@link Sandbox.start}. @throws CoracleError NO_SUCH_PATH */
  statPath(path: string): Promise<PathStat>
  /**
   * @see WorkloadArchive.read, with the flags of archive.ts; also before {@link Sandbox.start}
   * @param still its processes stand still from before the first file is read until the stream is closed, by whomever
   * @throws CoracleError NOT_IMPLEMENTED, SANDBOX_FAILED, GUEST_FAILED where they cannot be made to
   */
  readTree(path: string, flags: number, still?: boolean): Promise<Readable>
  /**
   * Unpacks a tar (ustar and pax alone) into a folder, and resolves when all of it is there.
   * @throws CoracleError INVALID_ARGUMENT with the reason
   */
  writeTree(path: string, flags: number, archive: Readable): Promise<void>
  /** Resolves when the workload and the monitor are gone, for whatever reason, and what they held is released. */
  wait(): Promise<SandboxExit>
  /** Kills all of it, releases what it held. Idempotent. */
  destroy(): Promise<void>
}
