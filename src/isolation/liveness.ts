import { fstatSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Fd, LOCK_EX, LOCK_NB, O_CREAT, O_RDWR } from '@coracle/sys'
import { dirname } from 'node:path'

/** A process that cannot be taken for another: ids come round again, start times do not. */
export interface ProcessIdentity {
  readonly pid: number
  /** Clock ticks from boot to its start (proc(5), /proc/PID/stat field 22). */
  readonly startTime: string
}

/** @returns undefined where there is no such process, or only its status is left to be waited for */
export function identify(pid: number | 'self'): ProcessIdentity | undefined {
  let stat: string
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
  } catch {
    return undefined
  }
  // The name is in parentheses and may hold anything, so fields count from the last one.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  if (fields[0] === 'Z' || fields[0] === 'X') return undefined
  return { pid: Number.parseInt(stat, 10), startTime: fields[19]! }
}

export function isAlive({ pid, startTime }: ProcessIdentity): boolean {
  return identify(pid)?.startTime === startTime
}

/** A monitor, and the `unshare` that made its namespaces and waits for it. */
export function monitorProcesses(pid: number): ProcessIdentity[] {
  const found: ProcessIdentity[] = []
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'latin1')
    const parent = identify(Number(/^PPid:\t(\d+)$/m.exec(status)![1]))
    if (parent && readFileSync(`/proc/${parent.pid}/comm`, 'latin1') === 'unshare\n') found.push(parent)
  } catch {
    // It ended in the meantime.
  }
  const monitor = identify(pid)
  return monitor ? [monitor, ...found] : found
}

/** Resolves when none of them lives; gives up after `patience` ms. */
export async function gone(processes: readonly ProcessIdentity[], patience = 10_000): Promise<void> {
  const deadline = Date.now() + patience
  for (let pause = 1; processes.some(isAlive) && Date.now() < deadline; pause = Math.min(pause * 2, 20))
    await sleep(pause)
}

/**
 * Takes the lock at `path`, whose holder is the sandbox's owner: its monitor, or whoever cleans up after it.
 * The kernel gives it back when the holder ends, however it ends.
 * @param create make the file and its folder where they are not there
 * @param access O_RDONLY for a lock that is handed to somebody who must not sign it
 * @returns the held lock, or undefined where another holds it or there is nothing to lock
 */
export function takeLock(path: string, create: boolean, access = O_RDWR): Fd | undefined {
  for (;;) {
    if (create) mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
    let fd: Fd
    try {
      fd = Fd.open(path, access | (create ? O_CREAT : 0))
    } catch (error) {
      if ((error as { code?: string }).code !== 'ENOENT') throw error
      if (create) continue
      return undefined
    }
    if (!fd.lock(LOCK_EX | LOCK_NB)) {
      fd.close()
      return undefined
    }
    // The last holder may have removed the file between our open and our lock: then it locks nothing.
    if (sameFile(fd.number, path)) return fd
    fd.close()
  }
}

function sameFile(fd: number, path: string): boolean {
  try {
    const [mine, theirs] = [fstatSync(fd), statSync(path)]
    return mine.ino === theirs.ino && mine.dev === theirs.dev
  } catch {
    return false
  }
}

/** Writes who holds the lock at `path` into it. */
export function signLock(path: string, owner: ProcessIdentity): void {
  writeFileSync(path, JSON.stringify(owner))
}

/** Who last signed the lock at `path`. */
export function readOwner(path: string): ProcessIdentity | undefined {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as ProcessIdentity
  } catch {
    return undefined
  }
}
