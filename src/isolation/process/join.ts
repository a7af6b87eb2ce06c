import { readFileSync } from 'node:fs'
import { CoracleError } from '../../errors.js'
import type { SandboxSpec } from '../sandbox.js'
import { cgroupProcesses } from './cgroup.js'

/**
 * The first process of a container that runs with process isolation, as the host counts, for another to join its
 * namespaces.
 * @param what of it is joined, for the message
 * @throws CoracleError CONFLICT where there is none
 */
export function processToJoin(spec: SandboxSpec, what: string): number {
  const refuse = (why: string): never => {
    throw new CoracleError('CONFLICT', `cannot join ${what} of container ${spec.id.slice(0, 12)}: ${why}`)
  }
  if (spec.isolation !== 'process') return refuse('it is a microVM, with a kernel of its own')
  // It stays as long as the container does: what it nests lies deeper, and what it starts has a higher number.
  const [first] = cgroupProcesses(spec)
    .map((pid) => ({ pid, ...numbersOf(pid) }))
    .filter(({ levels }) => levels > 0)
    .sort((a, b) => a.levels - b.levels || a.inner - b.inner)
  return first?.pid ?? refuse('it does not run')
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
