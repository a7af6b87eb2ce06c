import { CoracleError } from '../errors.js'
import type { Sandbox } from '../isolation/sandbox.js'
import type { Events } from './events.js'
import type { ContainerRecord } from './record.js'
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

/** Makes containers stand still and go on. */
export class Pauses {
  readonly #host: PausesHost

  constructor(host: PausesHost) {
    this.#host = host
  }

  /**
   * @param how makes it stand still, all or nothing
   * @throws CoracleError NOT_RUNNING, CONFLICT where it is paused, NO_SUCH_CONTAINER, NOT_IMPLEMENTED
   */
  async pause(id: string, how = (sandbox: Sandbox): Promise<void> => sandbox.pause()): Promise<void> {
    const sandbox = await this.#host.running(id)
    using _lock = await this.#host.store.lock(id)
    const record = this.#read(id)
    if (isPaused(record)) throw new CoracleError('CONFLICT', `Container ${id} is already paused`)
    // Said first: who finds it so after a crash in between unpauses what runs, which does no harm.
    this.#write(record, true)
    try {
      await how(sandbox)
    } catch (error) {
      this.#write(record, false)
      throw error
    }
    this.#host.events.container('pause', record)
  }

  /** @throws CoracleError NOT_RUNNING, CONFLICT where it is not paused, NO_SUCH_CONTAINER */
  async unpause(id: string): Promise<void> {
    const sandbox = await this.#host.running(id)
    if (!(await this.wake(id, sandbox))) throw new CoracleError('CONFLICT', `Container ${id} is not paused`)
  }

  /** Lets it go on if it is paused. @returns whether it was */
  async wake(id: string, sandbox: Sandbox): Promise<boolean> {
    using _lock = await this.#host.store.lock(id)
    const record = this.#read(id)
    if (!isPaused(record)) return false
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

  #write(record: ContainerRecord, paused: boolean): void {
    if (record.state.status === 'running') this.#host.write({ ...record, state: { ...record.state, paused } })
  }
}
