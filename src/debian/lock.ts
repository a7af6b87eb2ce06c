import { mkdirSync } from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'

/**
 * Runs `work` while no other process (nor another call in this one) runs under the same lock file. The lock ends with
 * the process that holds it, however it ends. @param path made where it is missing, left behind empty
 */
export async function withFileLock<T>(path: string, work: () => Promise<T>): Promise<T> {
  // Loaded late: most callers find their files in place and never lock.
  const { Fd, O_CREAT, O_RDWR, LOCK_EX, LOCK_NB } = await import('@coracle/sys')
  mkdirSync(dirname(path), { recursive: true })
  using fd = Fd.open(path, O_CREAT | O_RDWR, 0o644)
  // flock(2) tells nobody when it is released; whoever holds it downloads, so a tenth of a second is nothing.
  while (!fd.lock(LOCK_EX | LOCK_NB)) await delay(100)
  return await work()
}
