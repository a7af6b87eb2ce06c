import type { ContainerRecord } from '../engine/record.js'
import type { SandboxStats } from '../isolation/stats.js'

/** What Docker gives for a time that was never. */
const NEVER = '0001-01-01T00:00:00Z'

/** Figures with the time at which they were taken. */
export interface Sample {
  readonly read: string
  readonly stats: SandboxStats
}

/**
 * Docker's answer to `GET /containers/{id}/stats`. Beside Docker's fields a microVM has `machine`: what the machine
 * costs its host, and what went through its devices' queues (see MachineUsage).
 * @param now undefined where the container does not run
 * @param before the sample before it: shares of the processor are of the time in between
 */
export function statsShape({ id, name }: ContainerRecord, now?: Sample, before?: Sample): object {
  const stats = now?.stats
  const block = (pick: 'bytes' | 'counts'): object[] | null =>
    stats && stats.block.length > 0
      ? stats.block.flatMap(({ major, minor, readBytes, writeBytes, reads, writes }) => [
          { major, minor, op: 'read', value: pick === 'bytes' ? readBytes : reads },
          { major, minor, op: 'write', value: pick === 'bytes' ? writeBytes : writes },
        ])
      : null
  const networks = Object.entries(stats?.networks ?? {}).map(([name, each]): [string, object] => [
    name,
    {
      rx_bytes: each.rxBytes,
      rx_packets: each.rxPackets,
      rx_errors: each.rxErrors,
      rx_dropped: each.rxDropped,
      tx_bytes: each.txBytes,
      tx_packets: each.txPackets,
      tx_errors: each.txErrors,
      tx_dropped: each.txDropped,
    },
  ])
  return {
    name: `/${name}`,
    id,
    read: now?.read ?? NEVER,
    preread: before?.read ?? NEVER,
    num_procs: 0,
    pids_stats: stats
      ? { current: stats.pids.current, ...(stats.pids.limit > 0 ? { limit: stats.pids.limit } : {}) }
      : {},
    blkio_stats: {
      io_service_bytes_recursive: block('bytes'),
      io_serviced_recursive: block('counts'),
      io_queue_recursive: null,
      io_service_time_recursive: null,
      io_wait_time_recursive: null,
      io_merged_recursive: null,
      io_time_recursive: null,
      sectors_recursive: null,
    },
    storage_stats: {},
    cpu_stats: cpuShape(stats),
    precpu_stats: cpuShape(before?.stats),
    memory_stats: stats
      ? { usage: stats.memory.usage, stats: stats.memory.detail, limit: stats.memoryLimit }
      : {},
    ...(networks.length > 0 ? { networks: Object.fromEntries(networks) } : {}),
    ...(stats?.machine ? { machine: stats.machine } : {}),
  }
}

function cpuShape(stats: SandboxStats | undefined): object {
  const none = { total: 0, user: 0, system: 0, periods: 0, throttledPeriods: 0, throttledTime: 0 }
  const { total, user, system, periods, throttledPeriods, throttledTime } = stats?.cpu ?? none
  return {
    cpu_usage: { total_usage: total, usage_in_usermode: user, usage_in_kernelmode: system },
    ...(stats ? { system_cpu_usage: stats.host.cpu, online_cpus: stats.host.cpus } : {}),
    throttling_data: { periods, throttled_periods: throttledPeriods, throttled_time: throttledTime },
  }
}
