import { posix } from 'node:path'
import { CoracleError } from '../errors.js'

const MAX_LENGTH = 1024
/** What every cgroup has in it, such as cgroup.procs and memory.max. */
const FILES =
  /^(tasks|notify_on_release|release_agent|(cgroup|cpu|cpuacct|cpuset|memory|io|blkio|pids|freezer|devices|hugetlb|net_cls|net_prio|perf_event|rdma|misc)\..*)$/

/**
 * The cgroup that a container's own is to lie in, as a path below every hierarchy.
 * @throws CoracleError INVALID_ARGUMENT for what is none, or leads elsewhere; without root, which has no cgroups to give
 */
export function cgroupParentOf(text: string): string {
  const path = posix.normalize(`/${text}`).replace(/\/$/, '')
  const names = text.split('/').filter((name) => name !== '')
  const refuse = (why: string): never => {
    throw new CoracleError('INVALID_ARGUMENT', `--cgroup-parent ${text.slice(0, 64)}: ${why}`)
  }
  if (
    names.length === 0 ||
    text.length > MAX_LENGTH ||
    !names.every((name) => /^[\w@:+-][\w.@:+-]{0,254}$/.test(name))
  )
    return refuse('it is a path of names, such as /a/b')
  if (names.some((name) => name.startsWith('coracle-'))) return refuse('that is a container of its own')
  if (names.some((name) => FILES.test(name))) return refuse("a name is one of the kernel's own files")
  if (process.getuid?.() !== 0) return refuse('cgroups need root')
  return path
}
