import { libc } from './libc.js'
import { check } from './error.js'
import { Fd } from './fd.js'

const O_CLOEXEC = 0o2000000
const WNOHANG = 1

/** A pipe(2): its reading end, its writing end. Both block; neither is inherited unless it is named to `spawn`. */
export function pipe(): [Fd, Fd] {
  const pair = new Int32Array(2)
  check(libc.pipe(pair, O_CLOEXEC), 'pipe2')
  return [new Fd(pair[0]!), new Fd(pair[1]!)]
}

/** How a process ended: its status, or the signal that killed it. */
export type ProcessEnd = { status: number } | { signal: number }

/**
 * Takes the status of a child that this process did not start through Node: an orphan that came to it as a
 * subreaper or as the first process of a PID namespace (waitpid(2), WNOHANG).
 * @returns undefined while it runs
 * @throws SysError ECHILD where it is no child, or was waited for
 */
export function waitForChild(pid: number): ProcessEnd | undefined {
  const status = new Int32Array(1)
  if (check(libc.waitpid(pid, status, WNOHANG), 'waitpid') === 0) return undefined
  const signal = status[0]! & 0x7f
  return signal === 0 ? { status: (status[0]! >> 8) & 0xff } : { signal }
}

/** asm-generic/resource.h */
export const RLIMIT_MEMLOCK = 8

/** Sets a resource limit of a process, soft and hard alike (prlimit(2)). @throws SysError */
export function setLimit(pid: number, resource: number, limit: number): void {
  const value = BigInt(limit)
  check(libc.prlimit(pid, resource, new BigUint64Array([value, value]), null), 'prlimit')
}
