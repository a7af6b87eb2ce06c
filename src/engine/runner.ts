import { EventEmitter, once } from 'node:events'
import { mkdirSync, rmSync, watch, type FSWatcher } from 'node:fs'
import type { Duplex } from 'node:stream'
import { CoracleError } from '../errors.js'
import type { AttachOptions, Sandbox, SandboxExit, SandboxSpec } from '../isolation/sandbox.js'
import type { SandboxDriver } from './driver.js'
import type { Events } from './events.js'
import { nextSpec } from './going-on.js'
import { Pauses, isPaused, moveOf, refusePaused } from './pauses.js'
import type { ContainerRecord, ContainerState, MoveMark, WaitResult } from './record.js'
import { ContainerStore, noSuchContainer } from './store.js'

const SIGKILL = 9
/** After SIGKILL the workload is given this long before the sandbox is taken down around it. */
const KILL_GRACE = 10_000

/** When a wait is over: at the next end of a run, as soon as it does not run, or when the container is gone. */
export type WaitCondition = 'next-exit' | 'not-running' | 'removed'

export interface StartOptions {
  readonly signal?: AbortSignal | undefined
  readonly automatic?: boolean
  /** It begins paused, until it is known what became of this move. */
  readonly arrived?: MoveMark
}

interface Live {
  readonly sandbox: Sandbox
  readonly exit: Promise<SandboxExit>
}

interface Pending {
  readonly options: AttachOptions
  readonly connect: (stream: Promise<Duplex>) => void
  readonly fail: (reason: unknown) => void
}

/** Whom a runner tells. */
export interface RunnerHost {
  readonly events: Events
  /** A run ended, and the record says so; the container is still there. */
  ended(record: ContainerRecord): void
  /** Makes what a run needs beside its sandbox, and says how the sandbox gets at it. */
  prepare(record: ContainerRecord): Promise<SandboxSpec>
  /** The sandbox of what was prepared has a monitor. */
  launched(record: ContainerRecord, pid: number): Promise<void>
  /** The run is over: what was prepared goes. Idempotent. */
  release(record: ContainerRecord): Promise<void>
  /** The container is removed. */
  forget(record: ContainerRecord): Promise<void>
  /** The container is gone, and its volumes that nobody named are to go too. */
  removed(record: ContainerRecord): Promise<void>
}

interface RunnerEvents {
  /** A run ended; its record may be gone already. */
  exit: [id: string, result: WaitResult]
  /** The record changed or went. */
  change: [id: string]
}

/**
 * The sandboxes behind the records: starts them, follows them to their end, and puts records right whose sandbox
 * ended while nobody looked. Several processes do this over the same records at once; each change is made under the
 * container's lock and on the record as it is then.
 */
export class Runner {
  readonly #store: ContainerStore
  readonly #driver: SandboxDriver
  readonly #host: RunnerHost
  readonly #live = new Map<string, Live>()
  readonly #pending = new Map<string, Set<Pending>>()
  readonly #events = new EventEmitter<RunnerEvents>()
  readonly pauses: Pauses

  constructor(store: ContainerStore, driver: SandboxDriver, host: RunnerHost) {
    this.#store = store
    this.#driver = driver
    this.#host = host
    this.#events.setMaxListeners(0)
    this.pauses = new Pauses({
      store,
      events: host.events,
      running: (id) => this.running(id),
      write: (record) => this.#write(record),
    })
  }

  /**
   * The container as it truly is: a sandbox that lives is followed from here on, one that died is recorded as
   * exited, and what it held is released. Undefined where the container is gone or goes by this.
   */
  async settle(id: string): Promise<ContainerRecord | undefined> {
    const record = this.#store.read(id)
    if (record?.state.status === 'running') {
      if (this.#live.has(id)) return record
      const sandbox = await this.#driver.openSandbox(record.spec)
      if (sandbox) {
        this.#follow(record, sandbox)
        return record
      }
    } else if (record?.state.status !== 'starting') return record
    // Somebody else holding the lock is at work on it: its word is as good as ours would be.
    using lock = this.#store.tryLock(id)
    if (!lock) return this.#store.read(id)
    return await this.#settleLocked(id)
  }

  /**
   * Settles the containers that may have devices of the host: one that was killed keeps its own until somebody looks.
   * @param except one whose lock the caller holds
   */
  async settleHolders(except?: string): Promise<void> {
    for (const { id, spec } of this.#store.list())
      if (id !== except && spec.devices?.length) await this.settle(id)
  }

  /** Like {@link settle}, while the caller holds the container's lock. */
  async #settleLocked(id: string): Promise<ContainerRecord | undefined> {
    const record = this.#store.read(id)
    if (!record || (record.state.status !== 'running' && record.state.status !== 'starting')) return record
    const { spec, state } = record
    const sandbox = this.#live.get(id)?.sandbox ?? (await this.#driver.openSandbox(spec))
    if (sandbox && state.status === 'running') {
      this.#follow(record, sandbox)
      return record
    }
    await sandbox?.destroy()
    const exit = (await this.#driver.readExit(spec)) ?? {
      exitCode: 128 + SIGKILL,
      error:
        state.status === 'starting'
          ? 'the process that started the container was killed'
          : "the container's monitor process was killed",
      finishedAt: new Date().toISOString(),
    }
    await this.#driver.reap(spec)
    await this.#host.release(record)
    return this.#recordExit(record, exit)
  }

  /**
   * @throws CoracleError NOT_MODIFIED where it runs; what the sandbox threw where it could not start: the record
   * says so then, and a container with AutoRemove is gone
   * @param automatic by its restart policy: it counts, and a container that a user stopped meanwhile is left so
   */
  async start(id: string, { signal, automatic = false, arrived }: StartOptions = {}): Promise<void> {
    using _lock = await this.#store.lock(id, signal)
    const found = await this.#settleLocked(id)
    if (!found) throw noSuchContainer(id)
    const restartCount = automatic ? (found.restartCount ?? 0) + 1 : 0
    const record = { ...found, restartCount, manuallyStopped: false }
    if (isPaused(record))
      throw new CoracleError('CONFLICT', 'cannot start a paused container, try unpause instead')
    if (record.state.status === 'running')
      throw new CoracleError('NOT_MODIFIED', 'the container is already started')
    const { spec } = record
    const startedAt = new Date().toISOString()
    this.#write({ ...record, state: { status: 'starting', startedAt } })
    let sandbox
    try {
      mkdirSync(spec.stateDirectory, { recursive: true, mode: 0o700 })
      mkdirSync(spec.runDirectory, { recursive: true, mode: 0o700 })
      const prepared = await this.#host.prepare(record)
      if (prepared.devices?.length) await this.settleHolders(id)
      sandbox = await this.#driver.launchSandbox(prepared, signal)
      await this.#host.launched(record, sandbox.pid)
      await this.#connectPending(id, sandbox)
      await sandbox.start(signal, arrived !== undefined)
    } catch (error) {
      this.#failPending(id, error)
      await sandbox?.destroy().catch(() => undefined)
      await this.#driver.reap(spec)
      await this.#host.release(record)
      const failure = failureOf(error)
      const state: ContainerState =
        record.state.status === 'exited'
          ? { ...record.state, exitCode: failure.exitCode, error: failure.error }
          : { status: 'created', failure }
      this.#write({ ...record, state })
      if (record.request.autoRemove) await this.#remove(record, true)
      throw error
    }
    const state = { status: 'running', pid: sandbox.pid, startedAt } as const
    const running = { ...record, state: arrived ? { ...state, paused: true, move: arrived } : state }
    this.#write(running)
    this.#host.events.container('start', running)
    if (arrived) this.#host.events.container('pause', running)
    this.#follow(running, sandbox)
    // Who came while it started is joined late, rather than never.
    this.#connectPending(id, sandbox).catch(() => undefined)
  }

  /**
   * Joins the container's streams: now where it runs, else when it is started by this process.
   * @returns a promise within a promise: the outer one settles when the container is known to be there
   * @throws CoracleError NO_SUCH_CONTAINER
   */
  async attach(
    id: string,
    options: AttachOptions,
    signal: AbortSignal,
  ): Promise<{ stream: Promise<Duplex> }> {
    const record = await this.settle(id)
    if (!record) throw noSuchContainer(id)
    refusePaused(record, 'attach')
    const live = this.#live.get(id)
    if (live) return { stream: live.sandbox.attach(options) }
    const set = this.#pending.get(id) ?? new Set()
    this.#pending.set(id, set)
    const stream = new Promise<Duplex>((resolve, reject) => {
      const pending = { options, connect: resolve, fail: reject }
      set.add(pending)
      signal.addEventListener('abort', () => {
        set.delete(pending)
        reject(signal.reason as Error)
      })
    })
    stream.catch(() => undefined)
    return { stream }
  }

  async #connectPending(id: string, sandbox: Sandbox): Promise<void> {
    const streams = [...(this.#pending.get(id) ?? [])].map(({ options, connect }) => {
      const stream = sandbox.attach(options)
      connect(stream)
      return stream
    })
    this.#pending.delete(id)
    // Nothing of the output may be missed: the workload starts only when all are joined.
    await Promise.all(streams)
  }

  /** Ends the attachments that wait for a start which does not come: their clients would wait for ever. */
  #failPending(id: string, reason: unknown): void {
    for (const { fail } of this.#pending.get(id) ?? []) fail(reason)
    this.#pending.delete(id)
  }

  /**
   * Calls `work` with the container's sandbox: the one that runs, or one that is made ready for it, without networks,
   * never started, and gone afterwards. Nobody starts or removes the container meanwhile.
   * @throws CoracleError NO_SUCH_CONTAINER, what `work` throws
   */
  async borrow<T>(id: string, work: (sandbox: Sandbox) => Promise<T>): Promise<T> {
    if (this.#store.read(id)?.state.status === 'running') {
      const record = await this.settle(id)
      const live = this.#live.get(id)
      // Of what has left already, or is not here yet, nothing may change.
      if (record && moveOf(record)) refusePaused(record, 'its files are asked for')
      if (record?.state.status === 'running' && live) return work(live.sandbox)
    }
    using _lock = await this.#store.lock(id)
    const record = await this.#settleLocked(id)
    if (!record) throw noSuchContainer(id)
    if (record.state.status === 'running') return await work(this.#live.get(id)!.sandbox)
    const { network: _, ...spec } = nextSpec(record)
    if (spec.from !== undefined)
      throw new CoracleError(
        'CONFLICT',
        `container ${record.name} is yet to go on from a snapshot: start it first`,
      )
    mkdirSync(spec.stateDirectory, { recursive: true, mode: 0o700 })
    mkdirSync(spec.runDirectory, { recursive: true, mode: 0o700 })
    try {
      const sandbox = await this.#driver.launchSandbox(spec)
      try {
        return await work(sandbox)
      } finally {
        await sandbox.destroy().catch(() => undefined)
      }
    } finally {
      await this.#driver.reap(spec)
    }
  }

  /** @returns the running sandbox. @throws CoracleError NOT_RUNNING, NO_SUCH_CONTAINER */
  async running(id: string): Promise<Sandbox> {
    // A start that is under way ends first, by the lock.
    if (this.#store.read(id)?.state.status === 'starting') (await this.#store.lock(id))[Symbol.dispose]()
    const record = await this.settle(id)
    if (!record) throw noSuchContainer(id)
    const live = this.#live.get(id)
    if (live && record.state.status === 'running') return live.sandbox
    throw new CoracleError('NOT_RUNNING', `container ${id.slice(0, 12)} is not running`)
  }

  /**
   * Ends a run: `stopSignal`, after `timeout` seconds (−1: never) SIGKILL, at last the sandbox itself.
   * @throws CoracleError NOT_MODIFIED where it does not run
   */
  async stop(id: string, stopSignal: number, timeout: number): Promise<void> {
    let sandbox
    try {
      sandbox = await this.running(id)
    } catch (error) {
      if (error instanceof CoracleError && error.code === 'NOT_RUNNING')
        throw new CoracleError('NOT_MODIFIED', 'the container is already stopped')
      throw error
    }
    await this.noteStopped(id)
    const { exit } = this.#live.get(id) ?? { exit: sandbox.wait() }
    const { done } = await this.wait(id, 'not-running')
    await sandbox.kill(stopSignal).catch(() => undefined)
    await this.pauses.wake(id, sandbox).catch(() => undefined)
    if (stopSignal !== SIGKILL && !(await within(exit, timeout < 0 ? undefined : timeout * 1000)))
      await sandbox.kill(SIGKILL).catch(() => undefined)
    if (!(await within(exit, timeout < 0 ? undefined : KILL_GRACE))) await sandbox.destroy()
    await done
  }

  /** Remembers that a user wants this run to end: its restart policy is to leave it so. */
  async noteStopped(id: string): Promise<void> {
    await this.change(id, (record) => ({ ...record, manuallyStopped: true }))
  }

  /**
   * @param volumes those that nobody named go too
   * @throws CoracleError CONFLICT where it runs and `force` is not set, NO_SUCH_CONTAINER
   */
  async remove(id: string, force: boolean, volumes = false): Promise<void> {
    using _lock = await this.#store.lock(id)
    const record = await this.#settleLocked(id)
    if (!record) throw noSuchContainer(id)
    if (record.state.status === 'running') {
      if (!force)
        throw new CoracleError(
          'CONFLICT',
          `cannot remove container "${record.name}": ${
            isPaused(record)
              ? 'container is paused and must be unpaused first'
              : 'container is running: stop the container before removing or force remove'
          }`,
        )
      const live = this.#live.get(id)!
      await live.sandbox.destroy()
      const exit = await live.exit
      await this.#host.release(record)
      await this.#recordExit({ ...record, request: { ...record.request, autoRemove: false } }, exit)
    }
    await this.#driver.reap(record.spec)
    await this.#remove(record, volumes)
  }

  /**
   * Registers for a condition. The outer promise settles once nothing can be missed any more.
   * @throws CoracleError NO_SUCH_CONTAINER
   */
  async wait(
    id: string,
    condition: WaitCondition,
    signal?: AbortSignal,
  ): Promise<{ done: Promise<WaitResult> }> {
    const record = await this.settle(id)
    if (!record) throw noSuchContainer(id)
    const stop = new AbortController()
    const done = this.#await(record, condition, stop.signal, signal).finally(() => stop.abort())
    done.catch(() => undefined)
    return { done }
  }

  #await(
    first: ContainerRecord,
    condition: WaitCondition,
    stopped: AbortSignal,
    signal: AbortSignal | undefined,
  ): Promise<WaitResult> {
    const { id, exits } = first
    return new Promise((resolve, reject) => {
      let last: WaitResult = resultOf(first.state)
      const onExit = (exited: string, result: WaitResult): void => {
        if (exited !== id) return
        last = result
        if (condition !== 'removed') resolve(result)
      }
      const look = (changed: string): void => {
        if (changed !== id) return
        const record = this.#store.read(id)
        if (!record) {
          resolve(last)
          return
        }
        const over = record.state.status === 'exited' || record.state.status === 'created'
        if (over) last = resultOf(record.state)
        if (record.exits > exits && condition !== 'removed') resolve(last)
        else if (over && condition === 'not-running') resolve(last)
        // Started by another process: its end is ours to see too.
        else if (record.state.status === 'running' && !this.#live.has(id))
          this.settle(id).then(() => look(id), reject)
      }
      const onAbort = (): void => reject(signal!.reason as Error)
      let watcher: FSWatcher
      try {
        watcher = watch(this.#store.directory(id), () => look(id)).on('error', () => look(id))
      } catch {
        // It went between the look at it and this one.
        reject(noSuchContainer(id))
        return
      }
      this.#events.on('exit', onExit).on('change', look)
      signal?.addEventListener('abort', onAbort, { once: true })
      stopped.addEventListener('abort', () => {
        watcher.close()
        this.#events.off('exit', onExit).off('change', look)
        signal?.removeEventListener('abort', onAbort)
      })
      if (signal?.aborted) onAbort()
      look(id)
    })
  }

  #follow(record: ContainerRecord, sandbox: Sandbox): void {
    const { id } = record
    if (this.#live.has(id)) return
    const exit = sandbox.wait()
    const live = { sandbox, exit }
    this.#live.set(id, live)
    exit
      .catch((error: unknown): SandboxExit => ({
        exitCode: 128 + SIGKILL,
        error: `the sandbox was lost: ${(error as Error).message}`,
        finishedAt: new Date().toISOString(),
      }))
      .then((result) => this.#finish(record, live, result))
      // The next look at the record settles it.
      .catch(() => undefined)
  }

  async #finish(followed: ContainerRecord, live: Live, exit: SandboxExit): Promise<void> {
    const { id } = followed
    try {
      using _lock = await this.#store.lock(id)
      if (this.#live.get(id) === live) this.#live.delete(id)
      const record = this.#store.read(id)!
      const same = record.state.status === 'running' && record.exits === followed.exits
      if (same) {
        await this.#host.release(record)
        await this.#recordExit(record, exit)
      } else {
        this.#events.emit('exit', id, resultOfExit(exit))
        this.#host.ended(record)
      }
    } catch (error) {
      if (this.#live.get(id) === live) this.#live.delete(id)
      if (!(error instanceof CoracleError && error.code === 'NO_SUCH_CONTAINER')) throw error
      this.#events.emit('exit', id, resultOfExit(exit))
      this.#events.emit('change', id)
    }
  }

  /** Under the lock. @returns undefined where the container went with it */
  async #recordExit(record: ContainerRecord, exit: SandboxExit): Promise<ContainerRecord | undefined> {
    const { state } = record
    const startedAt = state.status === 'created' ? record.created : state.startedAt
    const { exitCode, error, finishedAt, oomKilled = false } = exit
    const exited: ContainerRecord = {
      ...record,
      exits: record.exits + 1,
      state: {
        status: 'exited',
        exitCode,
        ...(error === undefined ? {} : { error }),
        oomKilled,
        startedAt,
        finishedAt,
      },
    }
    this.#live.delete(record.id)
    this.#write(exited)
    if (oomKilled) this.#host.events.container('oom', exited)
    this.#host.events.container('die', exited, { exitCode: String(exitCode) })
    this.#events.emit('exit', record.id, resultOfExit(exit))
    if (!record.request.autoRemove) {
      this.#host.ended(exited)
      return exited
    }
    await this.#remove(record, true)
    return undefined
  }

  #write(record: ContainerRecord): void {
    this.#store.write(record)
    this.#events.emit('change', record.id)
  }

  async #remove(record: ContainerRecord, volumes: boolean): Promise<void> {
    const { id, spec } = record
    rmSync(spec.runDirectory, { recursive: true, force: true })
    await this.#host.forget(record)
    this.#store.remove(id)
    if (volumes) await this.#host.removed(record)
    this.#failPending(id, noSuchContainer(id))
    this.#host.events.container('destroy', record)
    this.#events.emit('change', id)
  }

  /** Changes a record under its lock. @throws CoracleError NO_SUCH_CONTAINER, and what `change` throws */
  async change(id: string, change: (record: ContainerRecord) => ContainerRecord): Promise<ContainerRecord> {
    using _lock = await this.#store.lock(id)
    const record = this.#store.read(id)
    if (!record) throw noSuchContainer(id)
    const changed = change(record)
    this.#write(changed)
    return changed
  }

  /** Resolves at the next change of any container, for tests. */
  async changed(): Promise<void> {
    await once(this.#events, 'change')
  }
}

function resultOf(state: ContainerState): WaitResult {
  if (state.status === 'exited') return resultOfExit(state)
  // Why a start failed is the answer to the start; here it would be said twice.
  return { exitCode: state.status === 'created' ? (state.failure?.exitCode ?? 0) : 0 }
}

function resultOfExit({ exitCode, error }: { exitCode: number; error?: string }): WaitResult {
  return { exitCode, ...(error === undefined ? {} : { error }) }
}

function failureOf(error: unknown): { exitCode: number; error: string } {
  if (error instanceof CoracleError) {
    const exitCode = error.exit >= 125 ? error.exit : 125
    return { exitCode, error: error.message }
  }
  return { exitCode: 125, error: (error as Error).message }
}

/** @returns whether it settled in time. @param milliseconds undefined: wait for ever */
async function within(promise: Promise<unknown>, milliseconds: number | undefined): Promise<boolean> {
  const settled = promise.then(
    () => true,
    () => true,
  )
  if (milliseconds === undefined) return settled
  let timer
  const late = new Promise<boolean>((resolve) => (timer = setTimeout(resolve, milliseconds, false)))
  const result = await Promise.race([settled, late])
  clearTimeout(timer)
  return result
}
