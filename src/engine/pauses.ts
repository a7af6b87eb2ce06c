import { CoracleError } from '../errors.js'
import type { Sandbox } from '../isolation/sandbox.js'
import type { Events } from './events.js'
import type { ContainerRecord, MoveMark } from './record.js'
import { type ContainerStore, noSuchContainer } from './store.js'

/** What a {@link Pauses} stands on. */
export interface PausesHost {
  readonly store: Pick<ContainerStore, 'lock' | 'read'>
  readonly events: Events
  /** @throws CoracleError NOT_RUNNING, NO_SUCH_CONTAINER */
  running(id: string): Promise<Sandbox>
  /** Under the container's lock. */
  write(record: ContainerRecord): void
}

/** Whether it runs, and stands still. */
export const isPaused = ({ state }: ContainerRecord): boolean =>
  state.status === 'running' && state.paused === true

/** @throws CoracleError CONFLICT where it is paused: what asked would wait until somebody unpauses it */
export function refusePaused(record: ContainerRecord, what: string): void {
  if (isPaused(record))
    throw new CoracleError(
      'CONFLICT',
      `Container ${record.id} is paused, unpause the container before ${what}`,
    )
}

/** The move that a container stands still for. */
export const moveOf = ({ state }: ContainerRecord): MoveMark | undefined =>
  state.status === 'running' ? state.move : undefined

/** What makes a container stand still for a move. */
export interface Still {
  readonly move: MoveMark
  /** All or nothing. */
  readonly how: (sandbox: Sandbox) => Promise<void>
}

/** Makes containers stand still and go on. */
export class Pauses {
  readonly #host: PausesHost

  constructor(host: PausesHost) {
    this.#host = host
  }

  /**
   * @param still where it is for a move
   * @throws CoracleError NOT_RUNNING, CONFLICT where it is paused, NO_SUCH_CONTAINER, NOT_IMPLEMENTED
   */
  async pause(id: string, still?: Still): Promise<void> {
    const sandbox = await this.#host.running(id)
    using _lock = await this.#host.store.lock(id)
    const record = this.#read(id)
    if (isPaused(record)) throw new CoracleError('CONFLICT', `Container ${id} is already paused`)
    // Said first: who finds it so after a crash in between unpauses what runs, which does no harm.
    this.#write(record, true, still?.move)
    try {
      await (still ? still.how(sandbox) : sandbox.pause())
    } catch (error) {
      this.#write(record, false)
      throw error
    }
    this.#host.events.container('pause', record)
  }

  /** @throws CoracleError NOT_RUNNING, CONFLICT where it is not paused or leaves, NO_SUCH_CONTAINER */
  async unpause(id: string): Promise<void> {
    const sandbox = await this.#host.running(id)
    if (moveOf(this.#read(id))?.side === 'leaving')
      throw new CoracleError(
        'CONFLICT',
        `Container ${id} is on its way to another daemon: it goes on here by itself if it does not arrive`,
      )
    if (!(await this.wake(id, sandbox))) throw new CoracleError('CONFLICT', `Container ${id} is not paused`)
  }

  /**
   * Lets it go on if it is paused; a move that it stood still for is over then.
   * @param only of paused ones, looked at when nothing changes any more @returns whether it did
   */
  async wake(id: string, sandbox: Sandbox, only?: (record: ContainerRecord) => boolean): Promise<boolean> {
    using _lock = await this.#host.store.lock(id)
    const record = this.#read(id)
    if (!isPaused(record) || only?.(record) === false) return false
    await sandbox.resume()
    this.#write(record, false)
    this.#host.events.container('unpause', record)
    return true
  }

  #read(id: string): ContainerRecord {
    const record = this.#host.store.read(id)
    if (!record) throw noSuchContainer(id)
    return record
  }

  #write(record: ContainerRecord, paused: boolean, move?: MoveMark): void {
    if (record.state.status !== 'running') return
    const { move: _, ...state } = record.state
    this.#host.write({ ...record, state: { ...state, paused, ...(move && { move }) } })
  }
}
