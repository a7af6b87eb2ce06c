import { setTimeout as delay } from 'node:timers/promises'
import { Fd, LOCK_EX, LOCK_NB, O_CREAT, O_RDWR } from '@coracle/sys'
import { CoracleError } from '../errors.js'

/** A start may take as long as a guest takes to boot under emulation; who waits for its end is patient. */
const LOCK_TIMEOUT = 120_000

/**
 * Holds everybody else off who asks for the lock at `path`, until disposed or until this process ends.
 * Polls with growing pauses: a blocking flock(2) would stop the whole process.
 * @param what it guards, for the error
 * @throws CoracleError CONFLICT after two minutes; SysError ENOENT where its folder is not there
 */
export async function waitForLock(path: string, what: string, signal?: AbortSignal): Promise<Disposable> {
  const fd = Fd.open(path, O_RDWR | O_CREAT)
  try {
    const deadline = Date.now() + LOCK_TIMEOUT
    for (let pause = 1; !fd.lock(LOCK_EX | LOCK_NB); pause = Math.min(pause * 2, 64)) {
      if (Date.now() > deadline)
        throw new CoracleError('CONFLICT', `${what} is being changed by another process for too long`)
      await delay(pause, undefined, signal ? { signal } : {})
    }
    return fd
  } catch (error) {
    fd.close()
    throw error
  }
}
