import { CoracleError } from '../errors.js'
import type { CgroupFiles, Sandbox } from '../isolation/sandbox.js'
import { type CgroupHost, type CgroupLimits, cgroupLimits } from './cgroup-limits.js'
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
  /** Only for process isolation. */
  readonly cgroupLimits?: CgroupLimits
  readonly restart?: RestartPolicy
}

/**
 * A container's record with other limits. The limits of a run are changed first, so that the record says what is.
 * @param sandbox of the run; undefined where it does not run
 * @returns also what cannot be done here, as warnings
 * @throws CoracleError MEMORY_SIZE, INVALID_ARGUMENT, CONFLICT, NOT_IMPLEMENTED, NOT_RUNNING
 */
export async function updateContainer(
  record: ContainerRecord,
  { memory, nanoCpus, cpuShares, pidsLimit, cgroupLimits: given, restart }: UpdateRequest,
  host: Host & CgroupHost,
  sandbox: Sandbox | undefined,
): Promise<{ record: ContainerRecord; warnings: string[] }> {
  const { spec } = record
  if (restart && restart.name !== 'no' && record.request.autoRemove)
    throw new CoracleError(
      'INVALID_ARGUMENT',
      'Restart policy cannot be updated because AutoRemove is enabled for the container',
    )
  const all = memory ?? record.request.memory ?? 0
  const further =
    given && cgroupLimits({ ...record.request.cgroupLimits, ...given }, all, spec.isolation, host)
  const kept = Object.entries(further?.kept ?? {}).filter(([key]) => key in (given ?? {}))
  const limits = {
    ...(memory !== undefined && { memory: memoryLimit(memory, spec.isolation, host) }),
    // cgroup v2 counts swap beside it.
    ...(given?.memorySwap !== undefined && spec.isolation === 'process' && { memory: all }),
    ...(kept.length > 0 && { cgroup: Object.fromEntries(kept) as CgroupFiles }),
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
    ...further?.resources,
    ...(pids !== undefined && { pids: { limit: pids || -1 } }),
  }
  const updated = {
    ...record,
    request: {
      ...record.request,
      ...(memory !== undefined && { memory }),
      ...(nanoCpus !== undefined && { nanoCpus }),
      ...(cpuShares !== undefined && { cpuShares }),
      ...(pidsLimit !== undefined && { pidsLimit }),
      ...(given && { cgroupLimits: { ...record.request.cgroupLimits, ...given } }),
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
  return { record: updated, warnings: further?.warnings ?? [] }
}
