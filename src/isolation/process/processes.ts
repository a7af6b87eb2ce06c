import { readFileSync } from 'node:fs'
import { totalmem } from 'node:os'
import { parseProcesses, type ProcessList, type RawProcess } from '../processes.js'
import { type CgroupMember, cgroupProcesses } from './cgroup.js'

/** More are not shown. */
const MOST = 1024

/** The processes in a sandbox's cgroups, by the host's own /proc. */
export function hostProcesses(it: CgroupMember): ProcessList {
  const sinceBoot = Number(readFileSync('/proc/uptime', 'latin1').split(' ', 1)[0]) * 1e9
  const all = cgroupProcesses(it)
    .slice(0, MOST)
    .map(read)
    .filter((each) => each !== undefined)
  return { processes: parseProcesses(all, sinceBoot), memory: totalmem() }
}

function read(pid: number): RawProcess | undefined {
  try {
    const of = (name: string): string => readFileSync(`/proc/${pid}/${name}`, 'utf8')
    const uid = /^Uid:\t\d+\t(\d+)/m.exec(of('status'))?.[1]
    return uid === undefined
      ? undefined
      : { pid, uid: Number(uid), stat: of('stat'), command: of('cmdline').slice(0, 4096) }
  } catch {
    // It has ended meanwhile.
    return undefined
  }
}
