import type { ContainerRecord, RestartPolicy } from './record.js'

/** Docker's: the first pause in ms, doubled each time, at most; a run of this length counts as a success. */
const FIRST_PAUSE = 100
const LONGEST_PAUSE = 60_000
const LONG_RUN = 10_000

/** Whether a container whose run ended is to be started again. @param atStart the engine starts, and it did not run */
export function wantsRestart(record: ContainerRecord, atStart = false): boolean {
  const { state, request, manuallyStopped = false, restartCount = 0 } = record
  if (state.status !== 'exited') return false
  const { name, maximumRetryCount }: RestartPolicy = request.restart ?? { name: 'no', maximumRetryCount: 0 }
  switch (name) {
    case 'always':
      // Docker starts it with the daemon even where a user had stopped it.
      return atStart || !manuallyStopped
    case 'unless-stopped':
      return !manuallyStopped
    case 'on-failure':
      return (
        !manuallyStopped &&
        state.exitCode !== 0 &&
        (maximumRetryCount === 0 || restartCount < maximumRetryCount)
      )
    case 'no':
      return false
  }
}

/**
 * Starts ended containers again by their restart policy, each after a pause that grows. Only a process that stays, the
 * daemon, has one of these.
 */
export class Restarts {
  readonly #start: (id: string) => Promise<void>
  readonly #pauses = new Map<string, number>()
  readonly #timers = new Map<string, NodeJS.Timeout>()

  /** @param start starts the container and counts the restart; what it throws ends the matter */
  constructor(start: (id: string) => Promise<void>) {
    this.#start = start
  }

  /** Whether it waits to be started again. */
  isPending(id: string): boolean {
    return this.#timers.has(id)
  }

  /** A run ended, or with `atStart` the engine found it ended. */
  consider(record: ContainerRecord, atStart = false): void {
    const { id, state } = record
    if (this.#timers.has(id)) return
    if (state.status !== 'exited' || !wantsRestart(record, atStart)) {
      this.#pauses.delete(id)
      return
    }
    const ran = Date.parse(state.finishedAt) - Date.parse(state.startedAt)
    const last = ran > LONG_RUN ? undefined : this.#pauses.get(id)
    const pause = last === undefined ? FIRST_PAUSE : Math.min(last * 2, LONGEST_PAUSE)
    this.#pauses.set(id, pause)
    const timer = setTimeout(() => {
      this.#timers.delete(id)
      // Why it could not start is in its record.
      this.#start(id).catch(() => undefined)
    }, pause)
    this.#timers.set(id, timer)
  }

  /** It was stopped, removed or started by hand. @returns whether it waited */
  cancel(id: string): boolean {
    const timer = this.#timers.get(id)
    clearTimeout(timer)
    this.#timers.delete(id)
    this.#pauses.delete(id)
    return timer !== undefined
  }

  [Symbol.dispose](): void {
    for (const id of [...this.#timers.keys()]) this.cancel(id)
  }
}
