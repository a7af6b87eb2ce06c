import { TICK } from './stats.js'

/** A process of a container, as proc(5) tells of it. */
export interface ProcessInfo {
  /** As the host counts with process isolation, else as the container does. */
  readonly pid: number
  /** 0 where the parent is not one of the container's. */
  readonly parent: number
  /** Effective. */
  readonly uid: number
  /** At most 15 bytes. */
  readonly name: string
  /** Empty of a kernel's thread and of one that has ended. */
  readonly args: readonly string[]
  /** `R`, `S`, `Z`, … */
  readonly state: string
  readonly group: number
  readonly session: number
  /** 0 for none, else a device number of stat(2). */
  readonly tty: number
  /** Process group in the terminal's foreground, −1 for none. */
  readonly foreground: number
  /** Nanoseconds of processor time. */
  readonly time: number
  /** Milliseconds since 1970. */
  readonly started: number
  readonly priority: number
  readonly nice: number
  readonly threads: number
  /** Bytes. */
  readonly virtual: number
  readonly resident: number
}

/** The answer to `processes`. */
export interface ProcessList {
  readonly processes: readonly ProcessInfo[]
  /** Bytes of memory of the machine that they run on. */
  readonly memory: number
}

/** One process as whoever looks at /proc has it. */
export interface RawProcess {
  readonly pid: number
  readonly uid: number
  /** /proc/PID/stat */
  readonly stat: string
  /** /proc/PID/cmdline */
  readonly command: string
}

const PAGE = 4096

/** Text for people: what could drive a terminal is replaced. */
const plain = (text: string): string => text.replace(/\p{Cc}/gu, '?')

/**
 * Reads /proc/PID/stat and cmdline. They may come from a guest: what is no such file is left out.
 * @param sinceBoot nanoseconds
 */
export function parseProcesses(all: readonly RawProcess[], sinceBoot: number): ProcessInfo[] {
  const boot = Date.now() - sinceBoot / 1e6
  // What stat calls a process is its number in another namespace than the container's.
  const numbers = new Map<number, number>()
  const found: ProcessInfo[] = []
  for (const { pid, uid, stat, command } of all) {
    // The name may hold anything, parentheses and spaces too: the last parenthesis ends it.
    const [, outside, name, state, rest] =
      /^(\d{1,10}) \(([^]*)\) ([A-Za-z])((?: -?\d{1,20}){20,60})\s*$/.exec(stat) ?? []
    if (outside === undefined || name === undefined || state === undefined) continue
    const field = rest!.trim().split(' ').map(Number)
    // Numbered as in proc(5), whose field 4 is the first of these.
    const at = (number: number): number => field[number - 4] ?? 0
    numbers.set(Number(outside), pid)
    const words = command.split('\0')
    if (words.at(-1) === '') words.pop()
    found.push({
      pid,
      parent: at(4),
      uid,
      name: plain(name.slice(0, 64)),
      args: words.map(plain),
      state,
      group: at(5),
      session: at(6),
      tty: at(7),
      foreground: at(8),
      time: (at(14) + at(15)) * TICK,
      started: boot + (at(22) * TICK) / 1e6,
      priority: at(18),
      nice: at(19),
      threads: at(20),
      virtual: at(23),
      resident: at(24) * PAGE,
    })
  }
  const inside = (number: number): number => numbers.get(number) ?? 0
  return found
    .map((each) => ({
      ...each,
      parent: inside(each.parent),
      group: inside(each.group),
      session: inside(each.session),
      foreground: each.foreground > 0 ? inside(each.foreground) : each.foreground,
    }))
    .sort((one, other) => one.pid - other.pid)
}
