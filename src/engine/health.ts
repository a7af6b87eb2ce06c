import type { Duplex } from 'node:stream'
import { finished } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Sandbox } from '../isolation/sandbox.js'
import type { EngineEvent, Events } from './events.js'
import type { ExecRequest } from './execs.js'
import { FrameParser } from './frames.js'
import type { HealthCheck } from './health-check.js'
import { isPaused } from './pauses.js'
import type { ContainerRecord } from './record.js'

/** Docker's: results that are kept, and bytes of output of each. */
const MAX_RESULTS = 5
const MAX_OUTPUT = 4096
const SHELL = ['/bin/sh', '-c']
const SIGKILL = 9
/** The longest that a timer of Node's takes. */
const LONGEST_TIMER = 2 ** 31 - 1

/** How one check ended. */
export interface HealthResult {
  /** RFC 3339. */
  readonly start: string
  readonly end: string
  /** 0 is healthy; −1 where it did not end in time or could not start. */
  readonly exitCode: number
  readonly output: string
}

/** What is known of a container's health. */
export interface Health {
  readonly status: 'starting' | 'healthy' | 'unhealthy'
  /** Failures since the last success. */
  readonly failingStreak: number
  /** The latest, oldest first. */
  readonly results: readonly HealthResult[]
}

/** What {@link HealthChecks} stand on. */
export interface HealthHost {
  readonly events: Events
  read(id: string): ContainerRecord | undefined
  /** @throws CoracleError NOT_RUNNING, NO_SUCH_CONTAINER */
  running(id: string): Promise<Sandbox>
  /** Makes a command known to the container. @returns its id */
  createExec(id: string, request: ExecRequest): Promise<string>
}

/**
 * Finds out at intervals whether containers do their work, and tells when that changes. Only a process that stays, the
 * daemon, has one of these; it follows the engine's own events. What is known is kept in memory: a daemon that starts
 * finds out anew, as Docker's does.
 */
export class HealthChecks {
  readonly #host: HealthHost
  readonly #known = new Map<string, Health>()
  readonly #loops = new Map<string, AbortController>()
  readonly #listening: Disposable

  constructor(host: HealthHost) {
    this.#host = host
    this.#listening = host.events.on((event) => this.#take(event))
  }

  /** @returns undefined where nothing checks it */
  of(id: string): Health | undefined {
    return this.#known.get(id)
  }

  /** Checks a container from now on, if it runs and says how. */
  begin(record: ContainerRecord): void {
    const { id, state, healthCheck } = record
    if (!healthCheck || state.status !== 'running' || isPaused(record) || this.#loops.has(id)) return
    const ending = new AbortController()
    this.#loops.set(id, ending)
    if (!this.#known.has(id)) this.#known.set(id, { status: 'starting', failingStreak: 0, results: [] })
    // What ends it is the end of the container, which others tell of.
    void this.#loop(id, healthCheck, Date.parse(state.startedAt), ending.signal).catch(() => undefined)
  }

  [Symbol.dispose](): void {
    this.#listening[Symbol.dispose]()
    for (const id of [...this.#loops.keys()]) this.#end(id)
  }

  #take({ type, action, id }: EngineEvent): void {
    if (type !== 'container') return
    const record = action === 'start' || action === 'unpause' ? this.#host.read(id) : undefined
    const health = this.#known.get(id)
    switch (action) {
      case 'start':
        this.#end(id)
        this.#known.delete(id)
        if (record) this.begin(record)
        break
      case 'unpause':
        if (record) this.begin(record)
        break
      case 'pause':
        this.#end(id)
        break
      case 'die':
        this.#end(id)
        if (health) this.#known.set(id, { ...health, status: 'unhealthy' })
        break
      case 'destroy':
        this.#end(id)
        this.#known.delete(id)
        break
    }
  }

  #end(id: string): void {
    this.#loops.get(id)?.abort()
    this.#loops.delete(id)
  }

  async #loop(id: string, check: HealthCheck, startedAt: number, signal: AbortSignal): Promise<void> {
    for (;;) {
      const starting =
        this.#known.get(id)?.status === 'starting' && Date.now() - startedAt < check.startPeriod
      const pause = starting ? check.startInterval : check.interval
      await sleep(Math.min(pause, LONGEST_TIMER), undefined, { signal })
      const result = await this.#probe(id, check)
      if (signal.aborted) return
      this.#note(id, check, startedAt, result)
    }
  }

  #note(id: string, check: HealthCheck, startedAt: number, result: HealthResult): void {
    const { status, failingStreak, results: before } = this.#known.get(id)!
    const results = [...before, result].slice(-MAX_RESULTS)
    const excused = status === 'starting' && Date.parse(result.start) - startedAt < check.startPeriod
    const streak = result.exitCode === 0 ? 0 : failingStreak + (excused ? 0 : 1)
    const now = result.exitCode === 0 ? 'healthy' : streak >= check.retries ? 'unhealthy' : status
    this.#known.set(id, { status: now, failingStreak: streak, results })
    const record = now === status ? undefined : this.#host.read(id)
    if (record) this.#host.events.container(`health_status: ${now}`, record)
  }

  async #probe(id: string, { test: [kind, ...words], timeout }: HealthCheck): Promise<HealthResult> {
    const start = new Date().toISOString()
    const done = (exitCode: number, output: string): HealthResult => ({
      ...{ start, end: new Date().toISOString() },
      ...{ exitCode, output },
    })
    let stream: Duplex | undefined
    let timer: NodeJS.Timeout | undefined
    try {
      const attach = { stdin: false, stdout: true, stderr: true }
      const command = kind === 'CMD-SHELL' ? [...SHELL, ...words] : words
      const exec = await this.#host.createExec(id, { command, tty: false, attach })
      const sandbox = await this.#host.running(id)
      const late = new Promise<undefined>((resolve) => {
        timer = setTimeout(() => resolve(undefined), Math.min(timeout, LONGEST_TIMER))
      })
      const output = new Output()
      const ended = sandbox.startExec(exec, attach).then(async (started) => {
        stream = started
        started.on('error', () => undefined).on('data', (chunk: Buffer) => output.push(chunk))
        const state = await sandbox.waitExec(exec)
        // What it left running may hold its output open.
        const over = finished(started, { writable: false }).catch(() => undefined)
        if (!started.readableEnded) await Promise.race([over, late])
        return state
      })
      ended.catch(() => undefined)
      const state = await Promise.race([ended, late])
      if (state) return done(state.status === 'ended' ? state.exitCode : -1, output.text)
      await sandbox.killExec(exec, SIGKILL).catch(() => undefined)
      return done(-1, `Health check exceeded timeout (${timeout / 1000}s): ${output.text}`)
    } catch (error) {
      return done(-1, (error as Error).message)
    } finally {
      clearTimeout(timer)
      stream?.destroy()
    }
  }
}

/** The first {@link MAX_OUTPUT} bytes of a command's frames. */
class Output {
  readonly #parser = new FrameParser()
  readonly #pieces: Buffer[] = []
  #room = MAX_OUTPUT
  #cut = false

  push(chunk: Buffer): void {
    this.#parser.push(chunk, (_, payload) => {
      const kept = payload.subarray(0, this.#room)
      this.#cut ||= kept.length < payload.length
      this.#room -= kept.length
      if (kept.length > 0) this.#pieces.push(Buffer.from(kept))
    })
  }

  get text(): string {
    return Buffer.concat(this.#pieces).toString() + (this.#cut ? '...' : '')
  }
}
