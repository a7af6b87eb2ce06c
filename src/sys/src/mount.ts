import { libc } from './libc.js'
import { check } from './error.js'
import { Fd, O_RDONLY } from './fd.js'

export const MS_RDONLY = 1
export const MS_NOSUID = 2
export const MS_NODEV = 4
export const MS_NOEXEC = 8
export const MS_REMOUNT = 32
export const MS_BIND = 4096
export const MS_REC = 16384
export const MS_PRIVATE = 1 << 18
export const MNT_DETACH = 2
export const CLONE_NEWNS = 0x00020000
export const CLONE_NEWNET = 0x40000000
const CLONE_FS = 0x200
const SYS_OPEN_TREE = 428
const SYS_MOVE_MOUNT = 429
const MOVE_MOUNT_F_EMPTY_PATH = 4
const AT_FDCWD = -100
const OPEN_TREE_CLONE = 1
const RENAME_EXCHANGE = 2
const OPEN_TREE_CLOEXEC = 0o2000000

/** mount(2). @param flags `MS_*` @throws {@link SysError} */
export function mount(source: string, target: string, type: string, flags = 0, data = ''): void {
  check(libc.mount(source, target, type, flags, data), 'mount', `${source} on ${target}`)
}

/**
 * A folder as a mount of its own that hangs nowhere (open_tree(2), Linux 5.2). Who is given the descriptor can use the
 * folder and what is below it by paths under `/proc/self/fd/N`, and `..` does not lead out of it.
 * @throws {@link SysError}
 */
export function detachedFolder(path: string): Fd {
  const flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
  return new Fd(check(libc.openTree(SYS_OPEN_TREE, AT_FDCWD, path, flags), 'open_tree', path))
}

/**
 * Puts what is at `path` of another mount namespace at `target` of the calling thread's, without what is mounted below
 * it. The thread shares its working directory with no other from then on, and that is the root.
 * @param namespace such as `/proc/1/ns/mnt`; links in `path` lead to what they mean there
 * @throws {@link SysError}
 */
export function mountFrom(namespace: string, path: string, target: string): void {
  using home = Fd.open('/proc/thread-self/ns/mnt', O_RDONLY)
  using there = Fd.open(namespace, O_RDONLY)
  unshare(CLONE_FS)
  check(libc.setns(there.number, CLONE_NEWNS), 'setns', namespace)
  let folder
  try {
    folder = detachedFolder(path)
  } finally {
    check(libc.setns(home.number, CLONE_NEWNS), 'setns')
  }
  using mounted = folder
  const flags = MOVE_MOUNT_F_EMPTY_PATH
  check(libc.moveMount(SYS_MOVE_MOUNT, mounted.number, '', AT_FDCWD, target, flags), 'move_mount', target)
}

/**
 * Two files of one folder's file system swap their names (renameat2(2), RENAME_EXCHANGE).
 * @throws {@link SysError} EINVAL where the file system cannot
 */
export function exchange(one: string, other: string): void {
  check(libc.renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE), 'renameat2', `${one}, ${other}`)
}

/** umount2(2). @param flags `MNT_*` @throws {@link SysError} */
export function unmount(target: string, flags = 0): void {
  check(libc.umount(target, flags), 'umount', target)
}

/**
 * unshare(2) of the calling thread alone: only of use before other threads matter, or in a process that `exec`s.
 * @param flags `CLONE_NEW*`
 */
export function unshare(flags: number): void {
  check(libc.unshare(flags), 'unshare')
}
