import { randomBytes } from 'node:crypto'
import { mkdirSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { FileLock } from './lock.js'

/**
 * A folder for files on their way into the store. Its owner holds the lock of the file `lock` in it, so the folder of
 * a process that died can be told from one in use, and is removed at the next opening.
 */
export class Staging implements Disposable {
  readonly folder: string
  readonly #lock: FileLock
  #next = 0

  /** The caller holds the store's lock: nobody sweeps between the folder's making and its locking. */
  constructor(parent: string) {
    this.folder = join(parent, randomBytes(8).toString('hex'))
    mkdirSync(this.folder, { mode: 0o700 })
    this.#lock = new FileLock(join(this.folder, 'lock'))
    this.#lock.take()
  }

  /** A path in the folder that was not given out before. */
  path(): string {
    return join(this.folder, String(this.#next++))
  }

  /** Removes the folder with all that was not moved out of it. */
  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true, force: true })
    this.#lock[Symbol.dispose]()
  }
}

/** Removes the folders whose owners are dead. The caller holds the store's lock. */
export function sweepStaging(parent: string): void {
  for (const name of readdirSync(parent)) {
    const folder = join(parent, name)
    using lock = new FileLock(join(folder, 'lock'))
    if (lock.tryTake()) rmSync(folder, { recursive: true, force: true })
  }
}
