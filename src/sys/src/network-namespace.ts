import { closeSync, openSync, rmSync } from 'node:fs'
import { libc } from './libc.js'
import { SysError, check } from './error.js'
import { Fd, O_RDONLY } from './fd.js'
import { MNT_DETACH, MS_BIND, mount, unmount } from './mount.js'

const CLONE_NEWNET = 0x40000000
/** The calling thread's, which may not be the process's. */
const OWN = '/proc/thread-self/ns/net'

/**
 * Does something while the calling thread is in another network namespace. Sockets that are opened in it stay there;
 * /proc/sys/net is that namespace's.
 * @param action synchronous: whatever else this thread does later is done at home
 * @throws {@link SysError}
 */
export function inNetworkNamespace<T>(namespace: Fd, action: () => T): T {
  using home = Fd.open(OWN, O_RDONLY)
  check(libc.setns(namespace.number, CLONE_NEWNET), 'setns')
  try {
    return action()
  } finally {
    check(libc.setns(home.number, CLONE_NEWNET), 'setns')
  }
}

/**
 * Makes a network namespace that lasts until {@link removeNetworkNamespace}: a mount at `path`, which must not be
 * there yet. @throws {@link SysError}
 */
export function createNetworkNamespace(path: string): void {
  closeSync(openSync(path, 'wx', 0o600))
  using home = Fd.open(OWN, O_RDONLY)
  try {
    check(libc.unshare(CLONE_NEWNET), 'unshare')
    try {
      mount(OWN, path, '', MS_BIND)
    } finally {
      check(libc.setns(home.number, CLONE_NEWNET), 'setns')
    }
  } catch (error) {
    rmSync(path, { force: true })
    throw error
  }
}

/** Lets go of the namespace at `path`: it ends when nobody is in it. One that is gone already is no error. */
export function removeNetworkNamespace(path: string): void {
  try {
    unmount(path, MNT_DETACH)
  } catch (error) {
    // EINVAL: a file on which nothing is mounted.
    if (!(error instanceof SysError && (error.code === 'EINVAL' || error.code === 'ENOENT'))) throw error
  }
  // Where it was mounted in other mount namespaces too, this takes it away there.
  rmSync(path, { force: true })
}
