import type { Socket } from 'node:net'
import { CoracleError } from '../../errors.js'
import { MAX_RUNNING } from '../exec.js'
import type { AttachOptions, ExecSpec, ExecState } from '../sandbox.js'
import { Streams } from './streams.js'
import type { ExecProcess, Workload } from './workload.js'

/** Those that have not started or have ended are kept so far; then the oldest is forgotten. */
const MAX_KEPT = 256
/** How long clients may take to read the rest once the container has ended, in ms. */
const PATIENCE = 5_000

interface Exec {
  readonly spec: ExecSpec
  state: ExecState
  process?: ExecProcess
  /** Resolves when it has ended and its clients have its output. */
  done?: Promise<void>
  readonly waiters: ((state: ExecState) => void)[]
}

/** The further processes of a container: what `exec` adds to it. They have no log, and end with the container. */
export class Execs {
  readonly #workload: Promise<Workload>
  readonly #all = new Map<string, Exec>()

  constructor(workload: Promise<Workload>) {
    this.#workload = workload
  }

  /** @throws CoracleError CONFLICT */
  create(spec: ExecSpec): void {
    if (this.#all.has(spec.id)) throw new CoracleError('CONFLICT', `exec ${spec.id} is there already`)
    if (this.#all.size >= MAX_KEPT)
      for (const [id, { state }] of this.#all)
        if (state.status !== 'running') {
          this.#all.delete(id)
          break
        }
    this.#all.set(spec.id, { spec, state: { status: 'created', spec }, waiters: [] })
  }

  /** @throws CoracleError NO_SUCH_EXEC */
  state(id: string): ExecState {
    return this.#get(id).state
  }

  /** Resolves when it has ended. */
  wait(id: string): Promise<ExecState> {
    const exec = this.#get(id)
    if (exec.state.status === 'ended') return Promise.resolve(exec.state)
    return new Promise((resolve) => exec.waiters.push(resolve))
  }

  /**
   * @param options the client's streams; undefined where it wants none
   * @returns what joins its connection, to be called at once: nothing of the output is read before
   * @throws CoracleError CONFLICT, NO_SUCH_EXEC, and why it could not start
   */
  async start(id: string, options: AttachOptions | undefined): Promise<(socket: Socket) => void> {
    const exec = this.#get(id)
    if (exec.state.status !== 'created')
      throw new CoracleError('CONFLICT', `exec ${id.slice(0, 12)} was started already`)
    const running = [...this.#all.values()].filter(({ state }) => state.status === 'running').length
    if (running >= MAX_RUNNING)
      throw new CoracleError('CONFLICT', `a container runs at most ${MAX_RUNNING} commands beside its own`)
    const spec = { ...exec.spec, openStdin: exec.spec.openStdin && options?.stdin === true }
    exec.state = { status: 'running', spec, pid: 0 }
    let process: ExecProcess
    try {
      process = await (await this.#workload).exec(spec)
    } catch (error) {
      const exit = error instanceof CoracleError ? error.exit : 0
      this.#end(exec, exit === 127 ? 127 : 126)
      throw error
    }
    exec.process = process
    exec.state = { status: 'running', spec, pid: process.pid }
    const streams = new Streams(undefined, { stdinOnce: true, tty: spec.tty })
    let tellJoined!: () => void
    const joined = new Promise<void>((resolve) => (tellJoined = resolve))
    // What ends at once has ended before anybody could join it.
    const ended = Promise.all([process.ended, joined]).then(([{ exitCode }]) => {
      this.#end(exec, exitCode)
      return streams.finish()
    })
    exec.done = ended.finally(() => process.release())
    exec.done.catch(() => undefined)
    return (socket) => {
      if (options) streams.attach(socket, options)
      streams.start(process.streams)
      tellJoined()
    }
  }

  /** @throws CoracleError NO_SUCH_EXEC, NOT_RUNNING */
  async kill(id: string, signal: number): Promise<void> {
    await this.#running(id).kill(signal)
  }

  /** @throws CoracleError NO_SUCH_EXEC, NOT_RUNNING */
  async resize(id: string, width: number, height: number): Promise<void> {
    await this.#running(id).resize(width, height)
  }

  /** Resolves when the clients of all know the end; after the container's own, so that none runs any more. */
  async finish(): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    const late = new Promise((resolve) => (timer = setTimeout(resolve, PATIENCE)))
    await Promise.race([Promise.allSettled([...this.#all.values()].map(({ done }) => done)), late])
    clearTimeout(timer)
  }

  #get(id: string): Exec {
    const exec = this.#all.get(id)
    if (exec) return exec
    throw new CoracleError('NO_SUCH_EXEC', `No such exec instance: ${id.slice(0, 64)}`)
  }

  #running(id: string): ExecProcess {
    const { process, state } = this.#get(id)
    if (process && state.status === 'running') return process
    throw new CoracleError('NOT_RUNNING', `exec ${id.slice(0, 12)} is not running`)
  }

  #end(exec: Exec, exitCode: number): void {
    const pid = exec.state.status === 'running' ? exec.state.pid : 0
    exec.state = { status: 'ended', spec: exec.spec, pid, exitCode }
    for (const tell of exec.waiters.splice(0)) tell(exec.state)
  }
}
