import type { Readable, Writable } from 'node:stream'
import type { SnapshotSink } from '../../vmm/machine.js'
import type { WorkloadArchive } from '../archive.js'
import type { ProcessList } from '../processes.js'
import type { SandboxStats } from '../stats.js'
import type { LetGo } from '../stillness.js'
import type { ExecSpec, SandboxInterface, SandboxLimits } from '../sandbox.js'

/** The workload's side of its streams. */
export interface WorkloadStreams {
  /** Absent where the process reads /dev/null. */
  readonly stdin?: Writable
  /** With a terminal: what the terminal shows. */
  readonly stdout: Readable
  /** Absent with a terminal. */
  readonly stderr?: Readable
}

/** How a workload ended. */
export interface WorkloadEnd {
  /** 0–255, or 128+n for signal n. */
  readonly exitCode: number
  readonly oomKilled?: boolean
  /** Set where what carried the workload failed: one line for the user. */
  readonly error?: string
}

/** A further process in the container. */
export interface ExecProcess {
  readonly streams: WorkloadStreams
  /** As the host counts, 0 where it has no number there. */
  readonly pid: number
  /** Resolves when it ended, or what carried it did. Never rejects. */
  readonly ended: Promise<WorkloadEnd>
  kill(signal: number): Promise<void>
  resize(width: number, height: number): Promise<void>
  /** Gives back its streams, at the end. Idempotent. */
  release(): void
}

/**
 * What runs the container's process for a monitor: crun here, or a guest. Methods are called in this order:
 * `prepare` once, `start` once, then `kill` and `resize` at will, `release` at last and from any state.
 */
export interface Workload {
  /**
   * What can be done before the start. Runs in the background while clients attach.
   */
  prepare(): Promise<void>
  /**
   * @param still it is paused from the start on; only what goes on from a snapshot can be
   * @throws CoracleError where it could not be started: COMMAND_NOT_FOUND, COMMAND_NOT_EXECUTABLE, …
   */
  start(still: boolean): Promise<WorkloadStreams>
  /** Resolves when the started process ended, or what carried it failed. Never rejects. */
  readonly ended: Promise<WorkloadEnd>
  kill(signal: number): Promise<void>
  resize(width: number, height: number): Promise<void>
  /**
   * Makes all of the started container stand still; signals sent meanwhile meet it after {@link Workload.resume}.
   * @throws CoracleError NOT_IMPLEMENTED, SANDBOX_FAILED
   */
  pause(): Promise<void>
  /** Idempotent. */
  resume(): Promise<void>
  /**
   * As {@link Workload.pause}, but its files can be read meanwhile, and any number may want it at once.
   * @throws CoracleError NOT_IMPLEMENTED, SANDBOX_FAILED, GUEST_FAILED
   */
  hold(): Promise<LetGo>
  /**
   * Changes limits of the started container. The host's cgroup of a guest is not the guest's to change (update.ts): of
   * these it does what the guest has a part in.
   * @throws CoracleError CONFLICT
   */
  update(limits: SandboxLimits): Promise<void>
  /** Absent where the interfaces are not in its hands. @see Sandbox.setInterfaces */
  setInterfaces?(interfaces: readonly SandboxInterface[]): Promise<void>
  /** What the started container uses. @throws CoracleError */
  stats(): Promise<SandboxStats>
  /** What runs in the started container; absent where the host can see that for itself. @throws CoracleError */
  processes?(): Promise<ProcessList>
  /** What its machine is made of. @throws CoracleError INVALID_ARGUMENT where it has none, NOT_IMPLEMENTED, NOT_RUNNING */
  machine(): Promise<object>
  /** Runs a further process in the started container. @throws CoracleError as {@link Workload.start} */
  exec(spec: ExecSpec): Promise<ExecProcess>
  /**
   * Saves what was started, machine and all, and lets it go on; absent where there is no machine.
   * @param stay it is paused from there on, and has done nothing since it was saved
   * @throws CoracleError
   */
  save?(sink: SnapshotSink, stay: boolean): Promise<void>
  /** Its files, from {@link prepare} on. */
  readonly archive: WorkloadArchive
  /** Kills what still runs and gives everything back. Idempotent. */
  release(): Promise<void>
}
