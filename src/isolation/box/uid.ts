import { mkdirSync } from 'node:fs'
import { Fd, LOCK_EX, LOCK_NB, O_CREAT, O_RDONLY } from '@coracle/sys'
import { CoracleError } from '../../errors.js'

/** Of the whole host, whatever the run folder: uids are the host's. */
const FOLDER = '/run/coracle-uids'
/** Below the last signed id; systemd, useradd and subuid(5) give out none of these. */
const FIRST = 0x7000_0000
const COUNT = 0x1_0000

/** A user and group of the host that nobody else has while `lock` is open, here or where it was handed over. */
export interface HostUser {
  readonly id: number
  /** Opened for reading alone, so that who holds it can write nothing. */
  readonly lock: Fd
}

/**
 * Gives out the lowest id that is free, by a lock on its file: the kernel takes it back when the last process that
 * holds it has ended, however that was.
 * @throws CoracleError SANDBOX_FAILED where all are taken
 */
export function allocateUser(): HostUser {
  mkdirSync(FOLDER, { recursive: true, mode: 0o700 })
  for (let id = FIRST; id < FIRST + COUNT; id++) {
    const lock = Fd.open(`${FOLDER}/${id}`, O_RDONLY | O_CREAT)
    if (lock.lock(LOCK_EX | LOCK_NB)) return { id, lock }
    lock.close()
  }
  throw new CoracleError(
    'SANDBOX_FAILED',
    `${COUNT} microVMs run already: there is no user id left for one more`,
  )
}
