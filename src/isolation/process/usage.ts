import { existsSync, readFileSync } from 'node:fs'
import { totalmem } from 'node:os'
import { join } from 'node:path'
import { type BlockCounters, TICK, type Usage, keyed, parseInterfaces, parseUsage } from '../stats.js'
import { type CgroupMember, cgroupFolders, isUnified } from './cgroup.js'

/** What a sandbox's cgroup says of it, with cgroup v1 or v2. @param pid a process of it, for the interfaces */
export function cgroupUsage(it: CgroupMember, pid: number): Usage & { readonly memoryLimit: number } {
  const folders = cgroupFolders(it)
  const read = (name: string): string | undefined => {
    for (const folder of folders)
      if (existsSync(join(folder, name))) return quietly(() => readFileSync(join(folder, name), 'latin1'))
    return undefined
  }
  const dev = quietly(() => readFileSync(`/proc/${pid}/net/dev`, 'latin1')) ?? ''
  const limit = Number(read(isUnified() ? 'memory.max' : 'memory.limit_in_bytes'))
  const memoryLimit = Math.min(limit > 0 ? limit : Infinity, totalmem())
  if (!isUnified()) return { ...usageV1(read, dev), memoryLimit }
  const names = ['cpu.stat', 'memory.current', 'memory.stat', 'pids.current', 'pids.max', 'io.stat']
  const files = new Map(names.map((name) => [name, read(name) ?? '']))
  return { ...parseUsage(files.set('dev', dev)), memoryLimit }
}

/** The same figures under the names and in the units of cgroup v1 (Documentation/admin-guide/cgroup-v1). */
function usageV1(read: (name: string) => string | undefined, dev: string): Usage {
  const number = (name: string): number => Number(read(name)) || 0
  const ticks = keyed(read('cpuacct.stat'))
  const throttling = keyed(read('cpu.stat'))
  return {
    cpu: {
      total: number('cpuacct.usage'),
      user: (ticks['user'] ?? 0) * TICK,
      system: (ticks['system'] ?? 0) * TICK,
      periods: throttling['nr_periods'] ?? 0,
      throttledPeriods: throttling['nr_throttled'] ?? 0,
      throttledTime: throttling['throttled_time'] ?? 0,
    },
    memory: { usage: number('memory.usage_in_bytes'), detail: keyed(read('memory.stat')) },
    pids: { current: number('pids.current'), limit: number('pids.max') },
    block: blockV1(
      read('blkio.throttle.io_service_bytes_recursive'),
      read('blkio.throttle.io_serviced_recursive'),
    ),
    networks: parseInterfaces(dev),
  }
}

/** Lines of `8:0 Read 4096`. */
function blockV1(bytes = '', operations = ''): BlockCounters[] {
  const devices = new Map<string, BlockCounters & Record<string, number>>()
  for (const [text, names] of [
    [bytes, { Read: 'readBytes', Write: 'writeBytes' }],
    [operations, { Read: 'reads', Write: 'writes' }],
  ] as const)
    for (const [, major, minor, name, value] of text.matchAll(/^(\d+):(\d+) (Read|Write) (\d+)$/gm)) {
      const key = `${major}:${minor}`
      const none = { readBytes: 0, writeBytes: 0, reads: 0, writes: 0 }
      const device = devices.get(key) ?? { major: Number(major), minor: Number(minor), ...none }
      devices.set(key, { ...device, [names[name as 'Read' | 'Write']]: Number(value) })
    }
  return [...devices.values()]
}

function quietly<T>(read: () => T): T | undefined {
  try {
    return read()
  } catch {
    // It has ended in the meantime.
    return undefined
  }
}
