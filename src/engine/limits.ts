import { CoracleError } from '../errors.js'
import type { IsolationName } from '../isolation/sandbox.js'
import type { Host } from './host.js'

const MiB = 1024 * 1024

/** A guest's kernel, agent and page tables leave too little for a workload below this. */
export const MINIMUM_GUEST_MEMORY = 128 * MiB
/** Docker's own minimum for a cgroup. */
export const MINIMUM_MEMORY = 6 * MiB
/** A microVM's memory where nothing was asked for. */
export const DEFAULT_GUEST_MEMORY = 512 * MiB
/** A microVM's vCPUs at most. */
export const MAXIMUM_VCPUS = 16

/**
 * Bytes of memory for a sandbox; 0 is no limit, and only for `process`.
 * @param asked bytes, 0 for the default
 * @throws CoracleError MEMORY_SIZE
 */
export function memoryLimit(asked: number, isolation: IsolationName, host: Host): number {
  const minimum = isolation === 'microvm' ? MINIMUM_GUEST_MEMORY : MINIMUM_MEMORY
  if (asked === 0) return isolation === 'microvm' ? Math.min(DEFAULT_GUEST_MEMORY, host.memory) : 0
  if (!Number.isSafeInteger(asked) || asked < minimum)
    throw new CoracleError(
      'MEMORY_SIZE',
      `memory of ${show(asked)} is too little: ${isolation === 'microvm' ? "a microVM's guest" : 'a container'} needs at least ${show(minimum)}`,
    )
  if (asked > host.memory)
    throw new CoracleError(
      'MEMORY_SIZE',
      `memory of ${show(asked)} is more than this host has (${show(host.memory)})`,
    )
  // A guest's memory is made of whole pages.
  return Math.ceil(asked / 4096) * 4096
}

/**
 * CPUs for a sandbox, may be a fraction; 0 is no limit, and only for `process`.
 * @param asked billionths of a CPU, 0 for the default
 * @throws CoracleError INVALID_ARGUMENT
 */
export function cpuLimit(asked: number, isolation: IsolationName, host: Host): number {
  if (asked === 0) return isolation === 'microvm' ? 1 : 0
  const cpus = asked / 1e9
  const most = isolation === 'microvm' ? Math.min(host.cpus, MAXIMUM_VCPUS) : host.cpus
  if (!(cpus >= 0.01 && cpus <= most))
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `range of CPUs is from 0.01 to ${most.toFixed(2)}, as there are only ${most} CPUs available`,
    )
  return cpus
}

/** @param asked 0 for the default, which is undefined @throws CoracleError INVALID_ARGUMENT */
export function cpuSharesOf(asked = 0): number | undefined {
  if (asked === 0) return undefined
  if (Number.isInteger(asked) && asked >= 2 && asked <= 262_144) return asked
  throw new CoracleError('INVALID_ARGUMENT', `shares of CPU time are from 2 to 262144, not ${asked}`)
}

function show(bytes: number): string {
  return bytes % MiB === 0 || bytes > 10 * MiB ? `${Math.round(bytes / MiB)} MiB` : `${bytes} bytes`
}
