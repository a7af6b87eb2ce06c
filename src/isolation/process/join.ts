import { readFileSync } from 'node:fs'
import { CoracleError } from '../../errors.js'
import type { SandboxSpec } from '../sandbox.js'
import { cgroupProcesses } from './cgroup.js'

/**
 * The PID namespace of a container that runs with process isolation, for another to join: its path.
 * @throws CoracleError CONFLICT where it does not run, or shares the host's
 */
export function pidNamespaceOf({ id }: SandboxSpec): string {
  const refuse = (why: string): never => {
    throw new CoracleError('CONFLICT', `cannot join the processes of container ${id.slice(0, 12)}: ${why}`)
  }
  // What a container makes itself lies deeper than its own.
  const [outer] = cgroupProcesses(id)
    .map((pid) => ({ pid, levels: levelsOf(pid) }))
    .filter(({ levels }) => levels > 0)
    .sort((a, b) => a.levels - b.levels)
  if (!outer) return refuse('it does not run')
  return outer.levels > 1 ? `/proc/${outer.pid}/ns/pid` : refuse("they are among the host's")
}

/** In how many PID namespaces a process has a number (proc_pid_status(5), NSpid); 0 where it is gone. */
function levelsOf(pid: number): number {
  try {
    const [, numbers = ''] = /^NSpid:(.*)$/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1')) ?? []
    return numbers.trim().split(/\s+/).length
  } catch {
    return 0
  }
}
