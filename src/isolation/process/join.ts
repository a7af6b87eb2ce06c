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
  // Its first process stays as long as it does: what it nests lies deeper, and what it starts has a higher number.
  const [first] = cgroupProcesses(id)
    .map((pid) => ({ pid, ...numbersOf(pid) }))
    .filter(({ levels }) => levels > 0)
    .sort((a, b) => a.levels - b.levels || a.inner - b.inner)
  if (!first) return refuse('it does not run')
  return first.levels > 1 ? `/proc/${first.pid}/ns/pid` : refuse("they are among the host's")
}

/** In how many PID namespaces a process has a number (proc_pid_status(5), NSpid), 0 where it is gone; and the innermost. */
function numbersOf(pid: number): { levels: number; inner: number } {
  try {
    const [, text = ''] = /^NSpid:(.*)$/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1')) ?? []
    const numbers = text.trim().split(/\s+/).map(Number)
    return { levels: numbers.length, inner: numbers.at(-1)! }
  } catch {
    return { levels: 0, inner: 0 }
  }
}
