import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { CoracleError } from '../errors.js'
import type { Image } from '../image/image.js'
import type { ProcessList } from '../isolation/processes.js'
import type { SandboxStats } from '../isolation/stats.js'
import { logFiles } from '../isolation/files.js'
import { isAlive } from '../isolation/liveness.js'
import type { AttachOptions, ExecState } from '../isolation/sandbox.js'
import { writtenBytes } from '../isolation/written.js'
import { VolumeStore } from '../volume/store.js'
import { Archives } from './archives.js'
import { BuildCache } from './build/cache.js'
import { Builds } from './builds.js'
import { commitContainer, type CommitOptions } from './commit.js'
import { Adapters } from './adapters.js'
import { cgroupsOfHost } from './cgroup-limits.js'
import { capabilitySet } from './capabilities.js'
import { type Created, Creation } from './creation.js'
import type { SandboxDriver } from './driver.js'
import { Events, type EngineEvent, type EventOptions } from './events.js'
import { type EngineImages, type EngineRegistry, Images } from './images.js'
import { Networks } from './networks.js'
import { Execs, type ExecRequest, type StartedExec } from './execs.js'
import { type Health, HealthChecks } from './health.js'
import type { Host } from './host.js'
import { readLog, type LogEntry, type LogOptions } from './logs.js'
import { joinsOf } from './joins.js'
import { checkName } from './name.js'
import { Networking, type ContainerNetworks, type Place } from './networking.js'
import { Moves } from './moves.js'
import { refusePaused } from './pauses.js'
import type { ContainerRecord, CreateRequest, WaitResult } from './record.js'
import { Restarts } from './restarts.js'
import { Runner, type WaitCondition } from './runner.js'
import { signalNumber } from './signal.js'
import { type CopyUp, Volumes } from './volumes.js'
import { Saves } from './saves.js'
import { Snapshots } from './snapshots.js'
import { ContainerStore, noSuchContainer } from './store.js'
import { type UpdateRequest, updateContainer } from './update.js'

const SIGKILL = 9

/** What an engine stands on. */
export interface EngineInit {
  readonly images: EngineImages
  readonly registry: EngineRegistry
  readonly driver: SandboxDriver
  readonly networks: ContainerNetworks
  /** Looked at anew for each container. */
  readonly host: () => Host
  /** Folder of what lasts; containers are kept in `containers` in it. */
  readonly state: string
  /** Folder on a tmpfs of what ends with a boot. */
  readonly run: string
  /** @default the real one */
  readonly copyUp?: CopyUp
}

/**
 * Containers and images as a domain: no HTTP here, no terminal. Any number of engines, in one process or several,
 * may stand on the same folders; there is nothing in an engine that is not in the folders or in its sandboxes.
 * A reference to a container is its name, its id or the start of one.
 */
export class Engine {
  readonly #init: EngineInit
  readonly #store: ContainerStore
  readonly #runner: Runner
  readonly #execs: Execs
  readonly #networking: Networking
  /** The images of this host, and those of registries. */
  readonly images: Images
  /** Builds of images, and their caches. */
  readonly builds: Builds
  /** The networks of this host. */
  readonly networks: Networks
  /** The volumes of this host. */
  readonly volumes: Volumes
  /** Containers that come from other daemons, or go there. */
  readonly moves: Moves
  /** Containers that are saved, and copies that go on from there. */
  readonly saves: Saves
  readonly #events = new Events()
  readonly #snapshots: Snapshots
  readonly #creation: Creation
  /** Only in a process that stays. @see reconcile */
  #restarts: Restarts | undefined
  #health: HealthChecks | undefined

  private constructor(init: EngineInit) {
    this.#init = init
    this.#store = new ContainerStore(join(init.state, 'containers'))
    this.#snapshots = new Snapshots(join(init.state, 'snapshots'))
    const networking = (this.#networking = new Networking(init.networks))
    const shared = {
      images: init.images,
      registry: init.registry,
      buildCache: new BuildCache(init.state),
      events: this.#events,
    }
    this.images = new Images({ ...shared, containers: this.#store, snapshots: this.#snapshots })
    this.builds = new Builds({
      ...shared,
      known: this.images,
      engine: this,
      state: init.state,
      run: init.run,
      lock: () => this.#store.lockAll(),
    })
    this.networks = new Networks({
      networks: init.networks,
      networking,
      containers: this.#store,
      events: this.#events,
      settle: (reference) => this.inspect(reference),
      running: (id) => this.#runner.running(id),
    })
    const store = new VolumeStore(join(init.state, 'volumes'))
    const volumes = (this.volumes = new Volumes(store, this.#store, this.#events, init.copyUp))
    this.#runner = new Runner(this.#store, init.driver, {
      events: this.#events,
      ended: (record) => this.#restarts?.consider(record),
      prepare: async (record) => {
        volumes.prepare(record)
        const joins = joinsOf(record, (reference) => this.#store.find(reference))
        const spec = await networking.prepare(record, this.#exposedBy(record), (id) => this.#store.read(id))
        return joins || spec.joins ? { ...spec, joins: { ...spec.joins, ...joins } } : spec
      },
      launched: (record, pid) => networking.launched(record, pid),
      release: async (record) => {
        await networking.release(record)
        volumes.release(record)
      },
      forget: (record) => networking.forget(record),
      removed: (record) => volumes.forget(record),
    })
    this.moves = new Moves({
      given: join(init.state, 'moves.json'),
      snapshots: this.#snapshots,
      containers: this.#store,
      images: this.images,
      pauses: this.#runner.pauses,
      inspect: (reference) => this.inspect(reference),
      running: (id) => this.#runner.running(id),
      create: (request) => this.create(request),
      start: (id, arrived) => this.#runner.start(id, { arrived }),
      change: (id, change) => this.#runner.change(id, change),
      remove: (id) => this.#runner.remove(id, true),
    })
    this.#creation = new Creation({
      images: init.images,
      containers: this.#store,
      snapshots: this.#snapshots,
      volumes,
      networking,
      events: this.#events,
      run: init.run,
      host: init.host,
      remove: (id) => this.#runner.remove(id, false, true),
      stays: () => ({ restarts: this.#restarts !== undefined, health: this.#health !== undefined }),
    })
    this.saves = new Saves({
      snapshots: this.#snapshots,
      containers: this.#store,
      images: init.images,
      events: this.#events,
      inspect: (reference) => this.inspect(reference),
      running: (id) => this.#runner.running(id),
      create: (asked) => this.create(asked),
      start: (id) => this.#runner.start(id),
      remove: (id) => this.#runner.remove(id, true),
    })
    this.#execs = new Execs({
      running: (id) => this.#runner.running(id),
      ids: () => this.#store.list().map(({ id }) => id),
    })
  }

  /** Opens the state folder and clears away what crashed processes left half done. */
  static async open(init: EngineInit): Promise<Engine> {
    const engine = new Engine(init)
    mkdirSync(init.run, { recursive: true, mode: 0o700 })
    await engine.#sweep()
    for (const { id, request } of engine.#store.list())
      if (request.owner && !isAlive(request.owner))
        // Another may be at it too.
        await engine.remove(id, true, true).catch(() => undefined)
    await engine.moves.settle()
    return engine
  }

  async #sweep(): Promise<void> {
    using _lock = await this.#store.lockAll()
    this.#store.sweep()
    this.#snapshots.sweep()
    this.builds.sweep()
    await this.volumes.open()
    await this.#init.networks.forgetOthers(new Set(this.#store.list().map(({ id }) => id)))
  }

  /**
   * Puts every record right, follows every container that runs, and from then on starts those again whose restart
   * policy says so, and carries out health checks. For a daemon, which stays.
   */
  async reconcile(): Promise<void> {
    const restarts = new Restarts((id) => this.#runner.start(id, { automatic: true }))
    const health = new HealthChecks({
      events: this.#events,
      read: (id) => this.#store.read(id),
      running: (id) => this.#runner.running(id),
      createExec: (id, request) => this.#execs.create(id, request),
    })
    for (const record of await this.list()) {
      restarts.consider(record, true)
      health.begin(record)
    }
    this.#restarts = restarts
    this.#health = health
  }

  /** Ends what {@link reconcile} began; containers go on. */
  close(): void {
    this.#restarts?.[Symbol.dispose]()
    this.#restarts = undefined
    this.#health?.[Symbol.dispose]()
    this.#health = undefined
  }

  /** @see Events.read */
  events(options: EventOptions): AsyncGenerator<EngineEvent> {
    return this.#events.read(options)
  }

  /** Whether the container waits to be started again by its restart policy. */
  isRestarting(id: string): boolean {
    return this.#restarts?.isPending(id) ?? false
  }

  /** What is known of a container's health; undefined where nothing checks it. */
  health(id: string): Health | undefined {
    return this.#health?.of(id)
  }

  /** The host's adapters with SR-IOV. */
  get adapters(): Adapters {
    return new Adapters(async () => {
      await this.#runner.settleHolders()
      return this.#store.list()
    })
  }

  get host(): Host {
    return this.#init.host()
  }

  /** @see Creation.create */
  create(asked: CreateRequest): Promise<Created> {
    return this.#creation.create(asked)
  }

  /** The ports that the container's image exposes, as `80/tcp`. */
  #exposedBy({ imageId }: ContainerRecord): string[] {
    try {
      return Object.keys(this.#init.images.get(imageId).config.ExposedPorts ?? {})
    } catch {
      // It lost its last name, and runs on.
      return []
    }
  }

  /** @throws CoracleError NOT_MODIFIED, NO_SUCH_CONTAINER, and those of a start that failed */
  async start(reference: string, signal?: AbortSignal): Promise<void> {
    const id = this.#store.resolve(reference)
    this.#restarts?.cancel(id)
    // Of a container whose creator was killed over it.
    await this.volumes.populate(id)
    await this.#runner.start(id, { signal })
  }

  /** @see Runner.attach */
  async attach(
    reference: string,
    options: AttachOptions,
    signal: AbortSignal,
  ): Promise<{ record: ContainerRecord; stream: Promise<Duplex> }> {
    const id = this.#store.resolve(reference)
    const record = this.#store.read(id)
    if (!record) throw noSuchContainer(reference)
    const { stream } = await this.#runner.attach(
      id,
      { ...options, stdin: options.stdin && record.spec.openStdin },
      signal,
    )
    this.#events.container('attach', record)
    return { record, stream }
  }

  /** The outer promise settles once nothing can be missed. */
  async wait(
    reference: string,
    condition: WaitCondition,
    signal?: AbortSignal,
  ): Promise<{ done: Promise<WaitResult> }> {
    return this.#runner.wait(this.#store.resolve(reference), condition, signal)
  }

  /** @param signal a name or number; empty for KILL */
  async kill(reference: string, signal: string): Promise<void> {
    const number = signalNumber(signal || 'KILL')
    const record = this.#store.find(reference)
    const sandbox = await this.#runner.running(record.id)
    if (number === SIGKILL || number === record.stopSignal) await this.#runner.noteStopped(record.id)
    await sandbox.kill(number)
    if (number === SIGKILL || number === record.stopSignal)
      await this.#runner.pauses.wake(record.id, sandbox).catch(() => undefined)
    this.#events.container('kill', record, { signal: String(number) })
  }

  /** @see Pauses.pause */
  async pause(reference: string): Promise<void> {
    await this.#runner.pauses.pause(this.#store.resolve(reference))
  }

  /** @see Pauses.unpause */
  async unpause(reference: string): Promise<void> {
    await this.#runner.pauses.unpause(this.#store.resolve(reference))
  }

  /** @param timeout seconds until SIGKILL, −1 for never */
  async stop(reference: string, options: { timeout?: number; signal?: string } = {}): Promise<void> {
    const record = this.#store.find(reference)
    const signal = options.signal ? signalNumber(options.signal) : record.stopSignal
    if (this.#restarts?.cancel(record.id)) return this.#runner.noteStopped(record.id)
    await this.#runner.stop(record.id, signal, options.timeout ?? record.stopTimeout)
    this.#events.container('stop', record)
  }

  async restart(reference: string, options: { timeout?: number; signal?: string } = {}): Promise<void> {
    const record = this.#store.find(reference)
    const { id, request } = record
    if (request.autoRemove)
      throw new CoracleError('CONFLICT', 'a container that removes itself at its end cannot be restarted')
    try {
      await this.stop(id, options)
    } catch (error) {
      if (!(error instanceof CoracleError && error.code === 'NOT_MODIFIED')) throw error
    }
    await this.#runner.start(id)
    this.#events.container('restart', record)
  }

  /** @see updateContainer */
  async update(reference: string, request: UpdateRequest): Promise<string[]> {
    const { id, state } = await this.inspect(reference)
    const sandbox = state.status === 'running' ? await this.#runner.running(id) : undefined
    using _lock = await this.#store.lock(id)
    const host = { ...this.host, ...cgroupsOfHost() }
    const { record, warnings } = await updateContainer(this.#store.find(id), request, host, sandbox)
    this.#store.write(record)
    this.#events.container('update', record)
    return warnings
  }

  /** @throws CoracleError INVALID_ARGUMENT, CONFLICT where the name is taken, NO_SUCH_CONTAINER */
  async rename(reference: string, name: string): Promise<void> {
    const wanted = name.replace(/^\//, '')
    checkName(wanted)
    using _lock = await this.#store.lockAll()
    const { id, name: old } = this.#store.find(reference)
    if (old === wanted)
      throw new CoracleError(
        'INVALID_ARGUMENT',
        'Renaming a container with the same name as its current name',
      )
    this.#store.freeName(wanted)
    const record = await this.#runner.change(id, (record) => ({ ...record, name: wanted }))
    this.#events.container('rename', record, { oldName: `/${old}` })
  }

  /** Removes the containers that do not run and pass `wanted`. @returns their ids, and the bytes that they took */
  async prune(wanted: (record: ContainerRecord) => boolean): Promise<{ ids: string[]; bytes: number }> {
    const ids = []
    let bytes = 0
    for (const record of await this.list()) {
      const { status } = record.state
      if ((status !== 'exited' && status !== 'created') || !wanted(record) || this.isRestarting(record.id))
        continue
      const size = writtenBytes(record.spec)
      try {
        await this.#runner.remove(record.id, false)
        ids.push(record.id)
        bytes += size
      } catch (error) {
        // Started or removed by somebody since.
        if (!(error instanceof CoracleError)) throw error
      }
    }
    return { ids, bytes }
  }

  /** @param volumes those that nobody named go too */
  async remove(reference: string, force = false, volumes = false): Promise<void> {
    const id = this.#store.resolve(reference)
    this.#restarts?.cancel(id)
    await this.#runner.remove(id, force, volumes)
  }

  /**
   * Makes an image of what a container changed. A running one goes on as soon as its files are read, or nobody reads
   * them any more; without `pause` it may change meanwhile, and the image is as after a power cut.
   * @throws CoracleError NO_SUCH_CONTAINER, INVALID_ARGUMENT
   */
  async commit(reference: string, options: CommitOptions): Promise<Image> {
    const record = this.#store.find(reference)
    const image = await commitContainer(
      { images: this.#init.images, archives: this.archives },
      record,
      options,
    )
    this.#events.container('commit', record, { imageID: image.id, imageRef: options.name ?? '' })
    return image
  }

  /** The containers' files. */
  get archives(): Archives {
    return new Archives((reference, work) => this.#runner.borrow(this.#store.resolve(reference), work))
  }

  /** @throws CoracleError INVALID_ARGUMENT where the container has no terminal, NOT_RUNNING */
  async resize(reference: string, width: number, height: number): Promise<void> {
    const { id, spec } = this.#store.find(reference)
    const sandbox = await this.#runner.running(id)
    if (spec.tty) await sandbox.resize(width, height)
  }

  /** @returns the exec's id. @throws CoracleError NO_SUCH_CONTAINER, NOT_RUNNING, INVALID_ARGUMENT */
  async createExec(reference: string, request: ExecRequest): Promise<string> {
    const record = this.#store.find(reference)
    refusePaused(record, 'exec')
    const id = await this.#execs.create(
      record.id,
      request,
      request.privileged === true ? capabilitySet(['ALL'], [], record.spec.isolation) : undefined,
    )
    this.#events.container(`exec_create: ${request.command.join(' ')}`, record, { execID: id })
    return id
  }

  /** @see Execs.start */
  async startExec(id: string, attach: AttachOptions | undefined): Promise<StartedExec> {
    const started = await this.#execs.start(id, attach)
    const { container } = await this.#execs.inspect(id)
    const record = this.#store.read(container)
    if (record) this.#events.container(`exec_start: ${started.spec.args.join(' ')}`, record, { execID: id })
    return started
  }

  /** @throws CoracleError NO_SUCH_EXEC, NOT_RUNNING */
  resizeExec(id: string, width: number, height: number): Promise<void> {
    return this.#execs.resize(id, width, height)
  }

  /** @throws CoracleError NO_SUCH_EXEC */
  inspectExec(id: string): Promise<{ container: string; state: ExecState }> {
    return this.#execs.inspect(id)
  }

  async logs(
    reference: string,
    options: LogOptions,
    signal?: AbortSignal,
  ): Promise<{ record: ContainerRecord; entries: AsyncGenerator<LogEntry> }> {
    const record = await this.inspect(reference)
    const fresh = record.state.status === 'created'
    const ended = options.follow
      ? (await this.#runner.wait(record.id, fresh ? 'next-exit' : 'not-running', signal)).done
      : Promise.resolve()
    const files = logFiles(record.spec)
    if (files.files.length === 0)
      throw new CoracleError('NOT_IMPLEMENTED', 'configured logging driver does not support reading')
    if (options.follow) mkdirSync(record.spec.stateDirectory, { recursive: true, mode: 0o700 })
    return { record, entries: readLog(files, options, ended, signal) }
  }

  /** What the container uses; `stats` is undefined where it does not run. @throws CoracleError NO_SUCH_CONTAINER */
  async stats(reference: string): Promise<{ record: ContainerRecord; stats: SandboxStats | undefined }> {
    const record = await this.inspect(reference)
    if (record.state.status !== 'running') return { record, stats: undefined }
    try {
      return { record, stats: await (await this.#runner.running(record.id)).stats() }
    } catch (error) {
      // It has ended in the meantime.
      if (error instanceof CoracleError && error.code === 'NOT_RUNNING') return { record, stats: undefined }
      throw error
    }
  }

  /** What runs in the container. @throws CoracleError NO_SUCH_CONTAINER, NOT_RUNNING, CONFLICT where its guest is paused */
  async processes(reference: string): Promise<ProcessList> {
    const record = await this.inspect(reference)
    if (record.spec.isolation === 'microvm') refusePaused(record, 'its processes are listed')
    return (await this.#runner.running(record.id)).processes()
  }

  /**
   * What the container's virtual machine is made of, as plain data.
   * @throws CoracleError NO_SUCH_CONTAINER, NOT_RUNNING, INVALID_ARGUMENT where it has none, NOT_IMPLEMENTED
   */
  async machine(reference: string): Promise<object> {
    return (await this.#runner.running(this.#store.resolve(reference))).machine()
  }

  /** The container's record, put right. @throws CoracleError NO_SUCH_CONTAINER */
  async inspect(reference: string): Promise<ContainerRecord> {
    const record = await this.#runner.settle(this.#store.resolve(reference))
    if (!record) throw noSuchContainer(reference)
    return record
  }

  /** All containers, put right, the newest first. */
  async list(): Promise<ContainerRecord[]> {
    const records = await Promise.all(this.#store.list().map(({ id }) => this.#runner.settle(id)))
    return records.filter((record) => record !== undefined)
  }

  /** Where the container is on networks. */
  place(record: ContainerRecord): Place {
    return this.#networking.place(record, this.#exposedBy(record))
  }
}
