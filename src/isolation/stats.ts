import { readFileSync } from 'node:fs'
import type { QueueMetrics } from '../vmm/metrics/device-metrics.js'

/** What went over one interface. */
export interface NetworkCounters {
  readonly rxBytes: number
  readonly rxPackets: number
  readonly rxErrors: number
  readonly rxDropped: number
  readonly txBytes: number
  readonly txPackets: number
  readonly txErrors: number
  readonly txDropped: number
}

/** What was read from and written to one block device. */
export interface BlockCounters {
  readonly major: number
  readonly minor: number
  readonly readBytes: number
  readonly writeBytes: number
  readonly reads: number
  readonly writes: number
}

/** What a container uses, by its own cgroup: in its guest, or on the host. Times are nanoseconds. */
export interface Usage {
  readonly cpu: {
    readonly total: number
    readonly user: number
    readonly system: number
    readonly periods: number
    readonly throttledPeriods: number
    readonly throttledTime: number
  }
  readonly memory: {
    /** Bytes, the page cache included. */
    readonly usage: number
    /** The kernel's own names and figures (memory.stat). */
    readonly detail: Readonly<Record<string, number>>
    /** Of a guest: bytes that its kernel could give to programs without swapping (MemAvailable). */
    readonly available?: number
  }
  /** `limit` is 0 where there is none. */
  readonly pids: { readonly current: number; readonly limit: number }
  readonly block: readonly BlockCounters[]
  readonly networks: Readonly<Record<string, NetworkCounters>>
}

/** What a virtual machine costs its host, beside what the container in it knows of. */
export interface MachineUsage {
  /** Processor time of the whole machine, in nanoseconds. */
  readonly cpu: number
  /**
   * Bytes of its processes that are theirs alone. Of a clone these hold the pages of guest memory that it has written,
   * since it maps its template's memory privately; else no guest memory is among them.
   */
  readonly overhead: number
  /** Bytes of the guest's memory that the host has given it so far. */
  readonly guestMemory: number
  /** Returns to user space by KVM's reason; only of our own VMM. */
  readonly exits?: Readonly<Record<string, number>>
  /** What went through the queues of its devices so far; only of our own VMM. */
  readonly queues?: readonly QueueUsage[]
}

/** One queue of a device, by the device's name and the queue's number. */
export interface QueueUsage extends QueueMetrics {
  readonly device: string
  readonly queue: number
}

/** The answer to `stats`. */
export interface SandboxStats extends Usage {
  /** Bytes that the container can have at most. */
  readonly memoryLimit: number
  /** Processor time of the whole host so far, and its processors: what a share is measured by. */
  readonly host: { readonly cpu: number; readonly cpus: number }
  readonly machine?: MachineUsage
}

/** A clock tick of proc(5) (USER_HZ), in nanoseconds. */
export const TICK = 10_000_000
const MICROSECOND = 1000

/** Lines of `name number`, as many of the kernel's files have them. Anything else is passed over. */
export function keyed(text = ''): Record<string, number> {
  const found: Record<string, number> = {}
  for (const [, name, value] of text.matchAll(/^([a-z_]{1,40}) (\d{1,20})$/gm)) found[name!] = Number(value)
  return found
}

const whole = (text = ''): number => (/^\d{1,20}\s*$/.test(text) ? Number(text) : 0)

/**
 * Reads the files of a cgroup v2 and /proc/net/dev (proc_net(5)). The text may come from a guest: whatever it is, this
 * gives numbers.
 * @param files by their name in the cgroup; `dev` is that of the interfaces, `meminfo` a guest's own
 */
export function parseUsage(files: ReadonlyMap<string, string>): Usage {
  const cpu = keyed(files.get('cpu.stat'))
  const available = /^MemAvailable: +(\d{1,12}) kB$/m.exec(files.get('meminfo') ?? '')?.[1]
  return {
    cpu: {
      total: (cpu['usage_usec'] ?? 0) * MICROSECOND,
      user: (cpu['user_usec'] ?? 0) * MICROSECOND,
      system: (cpu['system_usec'] ?? 0) * MICROSECOND,
      periods: cpu['nr_periods'] ?? 0,
      throttledPeriods: cpu['nr_throttled'] ?? 0,
      throttledTime: (cpu['throttled_usec'] ?? 0) * MICROSECOND,
    },
    memory: {
      usage: whole(files.get('memory.current')),
      detail: keyed(files.get('memory.stat')),
      ...(available !== undefined && { available: Number(available) * 1024 }),
    },
    pids: { current: whole(files.get('pids.current')), limit: whole(files.get('pids.max')) },
    block: parseIoStat(files.get('io.stat')),
    networks: parseInterfaces(files.get('dev')),
  }
}

/** A guest's interfaces and disks are few: more of them are not believed. */
const MOST = 64

function parseIoStat(text = ''): BlockCounters[] {
  return [...text.matchAll(/^(\d{1,4}):(\d{1,7})(.*)$/gm)].slice(0, MOST).map(([, major, minor, rest]) => {
    const value = (name: string): number => Number(new RegExp(`\\b${name}=(\\d{1,20})`).exec(rest!)?.[1] ?? 0)
    return {
      major: Number(major),
      minor: Number(minor),
      readBytes: value('rbytes'),
      writeBytes: value('wbytes'),
      reads: value('rios'),
      writes: value('wios'),
    }
  })
}

/** Loopback is left out, as Docker does. */
export function parseInterfaces(text = ''): Record<string, NetworkCounters> {
  const found: [string, NetworkCounters][] = []
  for (const [, name, rest] of text.matchAll(/^ *([^\s:]{1,15}):((?: +\d{1,20}){16}) *$/gm)) {
    const [rxBytes, rxPackets, rxErrors, rxDropped, , , , , txBytes, txPackets, txErrors, txDropped] = rest!
      .trim()
      .split(/ +/)
      .map(Number) as [number, number, number, number, ...number[]]
    if (name === 'lo' || found.length === MOST) continue
    found.push([
      name!,
      {
        ...{ rxBytes, rxPackets, rxErrors, rxDropped },
        ...{ txBytes: txBytes!, txPackets: txPackets!, txErrors: txErrors!, txDropped: txDropped! },
      },
    ])
  }
  return Object.fromEntries(found)
}

/** Cuts what the agent answers into files: each begins with a line `=NAME`. */
export function splitFiles(text: string): Map<string, string> {
  const parts = text.split(/^=([a-z.]{1,40})\n/m)
  const files = new Map<string, string>()
  for (let i = 1; i + 1 < parts.length; i += 2) files.set(parts[i]!, parts[i + 1]!)
  return files
}

/** The host's processor time, as every process has it in /proc/stat. */
export function hostCpu(): SandboxStats['host'] {
  const stat = readFileSync('/proc/stat', 'latin1')
  // user nice system idle iowait irq softirq steal; guest time is in user already.
  const times = /^cpu +(.*)$/m.exec(stat)?.[1]?.split(' ').slice(0, 8).map(Number) ?? []
  return {
    cpu: times.reduce((sum, ticks) => sum + ticks, 0) * TICK,
    cpus: [...stat.matchAll(/^cpu\d+ /gm)].length,
  }
}

/** Memory of a process: what is its alone, and what it shares, of which a guest's memory is nearly all. */
export function processMemory(pid: number | 'self'): { own: number; shared: number } {
  const status = readFileSync(`/proc/${pid}/status`, 'latin1')
  const kib = (name: string): number =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(status)?.[1] ?? 0)
  return { own: kib('RssAnon') * 1024, shared: kib('RssShmem') * 1024 }
}
