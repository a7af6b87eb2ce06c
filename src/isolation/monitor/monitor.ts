import type { Server, Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { CoracleError } from '../../errors.js'
import { log } from '../../log.js'
import type { SnapshotSink } from '../../vmm/machine.js'
import type { WorkloadArchive } from '../archive.js'
import { type LogFiles, timestamp } from '../files.js'
import type { ProcessList } from '../processes.js'
import type { SandboxState, SandboxStatus } from '../protocol.js'
import type { AttachOptions, SandboxExit, SandboxInterface, SandboxLimits, SandboxSpec } from '../sandbox.js'
import type { Controlled } from './control.js'
import { Execs } from './execs.js'
import { JsonLog } from './log.js'
import type { SandboxStats } from '../stats.js'
import { Streams } from './streams.js'
import type { Workload, WorkloadEnd } from './workload.js'

const SIGTERM = 15
const SIGKILL = 9
/** What `stop` gives a workload between SIGTERM and SIGKILL, in ms; Docker's. */
const GRACE = 10_000

/** What a monitor has of the host; a contained one has it by descriptors. */
export interface MonitorHost {
  readonly log: LogFiles
  /** Puts the exit status where it outlives the monitor, before anybody is told of it. */
  saveExit(exit: SandboxExit): void
  /** Called at the very end, where nothing is left that the run folder is needed for. */
  leave(): void
}

/** One container's owner: its streams, its log, its exit status, and the workload that runs it. */
export class Monitor implements Controlled {
  readonly #spec: SandboxSpec
  readonly #pid: number
  readonly #host: MonitorHost
  readonly #workload: Promise<Workload>
  readonly #log: JsonLog | undefined
  readonly #streams: Streams
  readonly #execs: Execs
  readonly #waiters: ((exit: SandboxExit) => void)[] = []
  readonly #prepared: Promise<unknown>
  #status: SandboxStatus = 'created'
  #exit: SandboxExit | undefined
  #server: Server | undefined
  #ending: Promise<void> | undefined
  /** Settles with the save that is under way. */
  #saving: Promise<void> | undefined

  /** @param pid this process's id as the host counts */
  constructor(spec: SandboxSpec, pid: number, workload: Promise<Workload>, host: MonitorHost) {
    this.#spec = spec
    this.#pid = pid
    this.#host = host
    this.#workload = workload
    this.#log = host.log.files.length > 0 ? new JsonLog(host.log) : undefined
    this.#streams = new Streams(this.#log, spec)
    this.#execs = new Execs(workload)
    // Kept as a value until `start` asks: a failure then is an answer, not an unhandled rejection.
    this.#prepared = workload
      .then((it) => it.prepare())
      .then(
        () => undefined,
        (error: unknown) => error ?? true,
      )
  }

  /** The control socket, closed at the end. */
  set server(server: Server) {
    this.#server = server
  }

  state(): SandboxState {
    return { status: this.#status, pid: this.#pid }
  }

  attach(socket: Socket, options: AttachOptions): void {
    this.#streams.attach(socket, options)
  }

  get execs(): Execs {
    if (this.#status !== 'running') throw new CoracleError('NOT_RUNNING', 'the container is not running')
    return this.#execs
  }

  async archive(): Promise<WorkloadArchive> {
    if (this.#status === 'ended') throw new CoracleError('NOT_RUNNING', 'the container is not running')
    const failure = await this.#prepared
    if (failure !== undefined) throw failure
    return (await this.#workload).archive
  }

  async read(path: string, flags: number, still: boolean): Promise<Duplex> {
    const archive = await this.archive()
    if (!still || this.#status !== 'running') return archive.read(path, flags)
    const letGo = await (await this.#workload).hold()
    try {
      const stream = await archive.read(path, flags)
      // Also where whoever reads is gone. What cannot go on any more has ended, or is about to.
      stream.once('close', () => void letGo().catch(() => undefined))
      return stream
    } catch (error) {
      await letGo().catch(() => undefined)
      throw error
    }
  }

  async start(still: boolean): Promise<void> {
    if (this.#status !== 'created') throw new CoracleError('NOT_MODIFIED', 'the container is started already')
    this.#status = 'starting'
    let workload: Workload
    try {
      const failure = await this.#prepared
      if (failure !== undefined) throw failure
      workload = await this.#workload
      const streams = await workload.start(still)
      this.#status = 'running'
      this.#streams.start(streams)
    } catch (error) {
      const exitCode = error instanceof CoracleError ? error.exit : 125
      void this.#end({ exitCode, error: (error as Error).message }, true)
      throw error
    }
    void workload.ended.then((end) => this.#end(end, false))
  }

  async kill(signal: number): Promise<void> {
    await (await this.#running()).kill(signal)
  }

  async resize(width: number, height: number): Promise<void> {
    if (!this.#spec.tty) throw new CoracleError('INVALID_ARGUMENT', 'the container has no terminal')
    await (await this.#workload).resize(width, height)
  }

  async pause(): Promise<void> {
    if (this.#saving) throw new CoracleError('CONFLICT', 'the container is being saved')
    await (await this.#running()).pause()
  }

  async resume(): Promise<void> {
    const workload = await this.#running()
    // Whoever asked for a save that leaves it paused may be gone, and another one have it go on.
    await this.#saving?.catch(() => undefined)
    await workload.resume()
  }

  async update(limits: SandboxLimits): Promise<void> {
    await (await this.#running()).update(limits)
  }

  async setInterfaces(interfaces: readonly SandboxInterface[]): Promise<void> {
    const workload = await this.#running()
    if (!workload.setInterfaces)
      throw new CoracleError('INVALID_ARGUMENT', "this container's interfaces are in its network namespace")
    if (this.#saving) throw new CoracleError('CONFLICT', 'the container is being saved')
    await workload.setInterfaces(interfaces)
  }

  async stats(): Promise<SandboxStats> {
    return (await this.#running()).stats()
  }

  async processes(): Promise<ProcessList> {
    const workload = await this.#running()
    if (!workload.processes)
      throw new CoracleError('INVALID_ARGUMENT', "the container's processes are the host's own")
    return workload.processes()
  }

  async machine(): Promise<object> {
    return (await this.#running()).machine()
  }

  async save(sink: SnapshotSink, stay: boolean): Promise<void> {
    const workload = await this.#running()
    if (!workload.save)
      throw new CoracleError(
        'SNAPSHOT_UNSUPPORTED',
        'only a microVM on kvm can be saved: this container has none',
      )
    if (this.#saving) throw new CoracleError('CONFLICT', 'the container is being saved already')
    this.#saving = workload.save(sink, stay)
    try {
      await this.#saving
    } finally {
      this.#saving = undefined
    }
  }

  wait(): Promise<SandboxExit> {
    if (this.#exit) return Promise.resolve(this.#exit)
    return new Promise((resolve) => this.#waiters.push(resolve))
  }

  async destroy(): Promise<void> {
    this.#streams.abandon()
    await this.#end({ exitCode: 128 + SIGKILL }, true)
  }

  /** Asks the workload to end, then makes it. */
  async stop(): Promise<void> {
    if (this.#status !== 'running') return this.destroy()
    const workload = await this.#workload
    setTimeout(() => void workload.kill(SIGKILL).catch(() => this.destroy()), GRACE).unref()
    await workload.kill(SIGTERM).catch(() => this.destroy())
    // One that is paused would not hear of it.
    await workload.resume().catch(() => undefined)
  }

  #running(): Promise<Workload> {
    if (this.#status !== 'running') throw new CoracleError('NOT_RUNNING', 'the container is not running')
    return this.#workload
  }

  #end(end: WorkloadEnd, kill: boolean): Promise<void> {
    this.#ending ??= this.#finish(end, kill)
    return this.#ending
  }

  /**
   * Output first, then the status on disk, then those who wait for it: none of them can see it the other way.
   * @param kill the workload still runs
   */
  async #finish(end: WorkloadEnd, kill: boolean): Promise<void> {
    this.#status = 'ended'
    const workload = await this.#workload.catch(() => undefined)
    if (kill) await release(workload)
    await this.#streams.finish()
    this.#log?.close()
    const exit: SandboxExit = { ...end, finishedAt: timestamp() }
    this.#host.saveExit(exit)
    this.#exit = exit
    for (const tell of this.#waiters) tell(exit)
    const clean = await release(workload)
    await this.#giveBackDevices()
    await this.#execs.finish()
    this.#server?.close()
    await this.#streams.part()
    // With something still mounted there the folder must stay: what removes it would go into the mount.
    if (clean) this.#host.leave()
    // By now nothing is owed to anybody; what keeps the loop alive are connections whose end tells that we end.
    process.exit(0)
  }

  /** Nobody may be there to do it for us: the engine that launched us may have gone. */
  async #giveBackDevices(): Promise<void> {
    if (!this.#spec.devices?.length) return
    const { releaseDevices } = await import('../../sriov/index.js')
    for (const line of await releaseDevices(this.#spec.runDirectory)) console.error(line)
  }
}

/** @returns whether all was given back */
async function release(workload: Workload | undefined): Promise<boolean> {
  try {
    await workload?.release()
    return true
  } catch (error) {
    log.error('release-failed', { message: (error as Error).message, stack: (error as Error).stack })
    return false
  }
}
