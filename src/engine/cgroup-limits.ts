import { CoracleError } from '../errors.js'
import { canWeighBlocks, isUnified } from '../isolation/process/cgroup.js'
import type { IsolationName } from '../isolation/sandbox.js'
import type { Host } from './host.js'

/** Limits that only a cgroup of the host can set, beside those of every sandbox. Absent is the kernel's default. */
export interface CgroupLimits {
  /** Bytes that it is pushed back to when memory is scarce. */
  readonly memoryReservation?: number
  /** Bytes of memory and swap together, −1 for no limit. */
  readonly memorySwap?: number
  /** 0 to 100. */
  readonly memorySwappiness?: number
  /** It waits for memory in place of being killed for the want of it. */
  readonly oomKillDisable?: boolean
  /** Such as `0-2,5`. */
  readonly cpusetCpus?: string
  readonly cpusetMems?: string
  /** Share of block devices, 10 to 1000. */
  readonly blkioWeight?: number
}

const OPTIONS: Readonly<Record<keyof CgroupLimits, string>> = {
  memoryReservation: '--memory-reservation',
  memorySwap: '--memory-swap',
  memorySwappiness: '--memory-swappiness',
  oomKillDisable: '--oom-kill-disable',
  cpusetCpus: '--cpuset-cpus',
  cpusetMems: '--cpuset-mems',
  blkioWeight: '--blkio-weight',
}

/** How cgroups of the host are, as far as such limits depend on it. */
export interface CgroupHost extends Pick<Host, 'cpus'> {
  /** cgroup v2, which knows neither swappiness nor a way without the OOM killer. */
  readonly unified: boolean
  /** Its kernel has weights of block devices. */
  readonly weighsBlocks: boolean
}

/**
 * OCI's `linux.resources` of such limits (runtime-spec, config-linux.md, Control groups), by Docker's rules.
 * @param memory the limit in bytes, 0 for none
 * @returns what is kept of them, and what cannot be done here as warnings, as Docker does: a limit is discarded, the container runs
 * @throws CoracleError INVALID_ARGUMENT
 */
export function cgroupLimits(
  limits: CgroupLimits,
  memory: number,
  isolation: IsolationName,
  host: CgroupHost,
): { readonly resources: object; readonly kept: CgroupLimits; readonly warnings: string[] } {
  check(limits, memory, host)
  const given = (Object.keys(OPTIONS) as (keyof CgroupLimits)[]).filter((key) => limits[key] !== undefined)
  // A guest has no swap: that its memory and swap are bounded is so in any case.
  const impossible =
    isolation === 'microvm'
      ? given.filter((key) => key !== 'memorySwap')
      : given.filter((key) =>
          key === 'blkioWeight'
            ? !host.weighsBlocks
            : host.unified && (key === 'memorySwappiness' || key === 'oomKillDisable'),
        )
  const why = (key: keyof CgroupLimits): string =>
    isolation === 'microvm'
      ? 'a microVM has memory, processors and a disk of its own'
      : key === 'blkioWeight'
        ? "this host's kernel has no weights of block devices"
        : 'cgroup v2 has no such limit'
  const warnings = impossible.map((key) => `${OPTIONS[key]} is discarded: ${why(key)}`)
  if (isolation === 'microvm') return { resources: {}, kept: {}, warnings }
  const kept = Object.fromEntries(
    Object.entries(limits).filter(([key]) => !impossible.some((each) => each === key)),
  ) as CgroupLimits
  const memoryPart = {
    ...(kept.memoryReservation !== undefined && { reservation: kept.memoryReservation }),
    ...(kept.memorySwap !== undefined && { swap: kept.memorySwap }),
    ...(kept.memorySwappiness !== undefined && { swappiness: kept.memorySwappiness }),
    ...(kept.oomKillDisable === true && { disableOOMKiller: true }),
  }
  const cpu = {
    ...(kept.cpusetCpus !== undefined && { cpus: kept.cpusetCpus }),
    ...(kept.cpusetMems !== undefined && { mems: kept.cpusetMems }),
  }
  return {
    resources: {
      ...(Object.keys(memoryPart).length > 0 && { memory: memoryPart }),
      ...(Object.keys(cpu).length > 0 && { cpu }),
      ...(kept.blkioWeight !== undefined && { blockIO: { weight: kept.blkioWeight } }),
    },
    kept,
    warnings,
  }
}

function check(limits: CgroupLimits, memory: number, { cpus }: CgroupHost): void {
  const { memoryReservation = 0, memorySwap = 0, memorySwappiness = 0, cpusetCpus, cpusetMems } = limits
  const refuse = (what: string): never => {
    throw new CoracleError('INVALID_ARGUMENT', what)
  }
  if (memoryReservation < 0 || (memory > 0 && memoryReservation > memory))
    refuse('Minimum memory limit can not be less than memory reservation limit, see usage')
  if (memorySwap > 0 && memory === 0)
    refuse('You should always set the Memory limit when using Memoryswap limit, see usage')
  if (memorySwap < -1 || (memorySwap > 0 && memorySwap < memory))
    refuse('Minimum memoryswap limit should be larger than memory limit, see usage')
  if (memorySwappiness < 0 || memorySwappiness > 100)
    refuse(`Invalid value: ${memorySwappiness}, valid memory swappiness range is 0-100`)
  const { blkioWeight = 10 } = limits
  if (blkioWeight < 10 || blkioWeight > 1000) refuse('Range of blkio weight is from 10 to 1000')
  const last = lastOf(cpusetCpus, 'cpus')
  if (last >= cpus)
    refuse(`Requested CPUs are not available - requested ${cpusetCpus}, available: 0-${cpus - 1}`)
  lastOf(cpusetMems, 'mems')
}

/** The highest number of a list such as `0-2,5` (cpuset(7), List format), −1 where there is none. */
function lastOf(list: string | undefined, what: string): number {
  if (list === undefined) return -1
  if (!/^\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?){0,255}$/.test(list))
    throw new CoracleError('INVALID_ARGUMENT', `Invalid value ${list.slice(0, 64)} for cpuset ${what}`)
  return Math.max(...list.split(/[,-]/).map(Number))
}

/** How this host's cgroups are. */
export const cgroupsOfHost = (): Omit<CgroupHost, 'cpus'> => ({
  unified: isUnified(),
  weighsBlocks: canWeighBlocks(),
})
