import { CoracleError } from '../errors.js'
import type { Sandbox } from '../isolation/sandbox.js'
import type { Host } from './host.js'
import { cpuLimit, cpuSharesOf, memoryLimit } from './limits.js'
import { refusePaused } from './pauses.js'
import type { ContainerRecord, RestartPolicy } from './record.js'

/** What can be changed of a container, running or not. Absent: it stays. */
export interface UpdateRequest {
  /** Bytes. */
  readonly memory?: number
  /** Billionths of a CPU. */
  readonly nanoCpus?: number
  readonly cpuShares?: number
  /** Processes and threads, negative for no limit. */
  readonly pidsLimit?: number
  readonly restart?: RestartPolicy
}

/**
 * A container's record with other limits. The limits of a run are changed first, so that the record says what is.
 * @param sandbox of the run; undefined where it does not run
 * @throws CoracleError MEMORY_SIZE, INVALID_ARGUMENT, CONFLICT, NOT_IMPLEMENTED, NOT_RUNNING
 */
export async function updateContainer(
  record: ContainerRecord,
  { memory, nanoCpus, cpuShares, pidsLimit, restart }: UpdateRequest,
  host: Host,
  sandbox: Sandbox | undefined,
): Promise<ContainerRecord> {
  const { spec } = record
  if (restart && restart.name !== 'no' && record.request.autoRemove)
    throw new CoracleError(
      'INVALID_ARGUMENT',
      'Restart policy cannot be updated because AutoRemove is enabled for the container',
    )
  const limits = {
    ...(memory !== undefined && { memory: memoryLimit(memory, spec.isolation, host) }),
    ...(nanoCpus !== undefined && { cpus: cpuLimit(nanoCpus, spec.isolation, host) }),
    ...(cpuShares !== undefined && { cpuShares: cpuSharesOf(cpuShares)! }),
    ...(pidsLimit !== undefined && { pids: Math.max(0, pidsLimit) }),
  }
  if (Object.keys(limits).length > 0) {
    // Its guest could not answer.
    if (spec.isolation === 'microvm') refusePaused(record, 'update')
    await sandbox?.update(limits)
  }
  const linux = (spec.bundle.linux ?? {}) as { resources?: object }
  const { memory: bytes, cpus, cpuShares: shares, pids } = limits
  const resources = {
    ...linux.resources,
    ...(pids !== undefined && { pids: { limit: pids || -1 } }),
  }
  return {
    ...record,
    request: {
      ...record.request,
      ...(memory !== undefined && { memory }),
      ...(nanoCpus !== undefined && { nanoCpus }),
      ...(cpuShares !== undefined && { cpuShares }),
      ...(pidsLimit !== undefined && { pidsLimit }),
      ...(restart && { restart }),
    },
    spec: {
      ...spec,
      ...(bytes !== undefined && { memory: bytes }),
      ...(cpus !== undefined && { cpus }),
      ...(shares !== undefined && { cpuShares: shares }),
      bundle: { ...spec.bundle, linux: { ...linux, resources } },
    },
  }
}
