import { readFileSync } from 'node:fs'
import type { Argv } from 'yargs'
import { CoracleError } from '../errors.js'
import { listOf } from './command.js'
import { pairOf } from './pair.js'
import { parseSize } from './size.js'

const ONE = { type: 'string', requiresArg: true } as const
const LIST = { ...ONE, array: true } as const

/** The option of `run`, `create` and `update`. */
export const PIDS_LIMIT = { ...ONE, describe: 'Processes and threads at most, -1 for no limit' } as const

/** The option of `run`, `create` and `build`. @see ulimit */
export const ULIMIT = {
  ...LIST,
  describe: 'NAME=SOFT[:HARD], such as nofile=1024:2048; -1 for no limit',
} as const

/** The option of `run`, `create` and `update`. */
export const BLKIO_WEIGHT = {
  ...ONE,
  describe: 'Share of block devices where they are busy, 10 to 1000 (process isolation)',
} as const

/** The options that hold a container's processes to limits, and name its kernel's settings. */
export const limitOptions = <T>(yargs: Argv<T>) =>
  yargs
    .option('pids-limit', PIDS_LIMIT)
    .option('ulimit', ULIMIT)
    .option('sysctl', {
      ...LIST,
      describe: "NAME=VALUE of the kernel's settings, such as net.core.somaxconn=512",
    })
    .option('shm-size', { ...ONE, describe: 'Bytes of /dev/shm, such as 128m (default 64m)' })
    .option('cpu-period', { ...ONE, describe: 'Microseconds in which --cpu-quota counts (default 100000)' })
    .option('cpu-quota', { ...ONE, describe: 'Microseconds of CPU time in a period, in place of --cpus' })
    .option('memory-reservation', {
      ...ONE,
      describe: 'Memory that it keeps where the host is short of it (process isolation)',
    })
    .option('memory-swap', { ...ONE, describe: 'Memory and swap together, -1 for any (process isolation)' })
    .option('memory-swappiness', { ...ONE, describe: '0 to 100 (process isolation)' })
    .option('oom-kill-disable', {
      type: 'boolean',
      describe: 'Wait for memory, in place of an end (process isolation)',
    })
    .option('cpuset-cpus', {
      ...ONE,
      describe: 'Processors that it may use, such as 0-2,4 (process isolation)',
    })
    .option('blkio-weight', BLKIO_WEIGHT)
    .option('cpuset-mems', { ...ONE, describe: 'Memory nodes that it may use (process isolation)' })
    .option('stop-timeout', { ...ONE, describe: 'Seconds that it has to stop before SIGKILL (default 10)' })

type LimitOptions = ReturnType<typeof limitOptions<object>> extends Argv<infer T> ? T : never

/** Their parts of the body of ContainerCreate. @throws CoracleError USAGE */
export function limitBody(options: LimitOptions): {
  readonly HostConfig: object
  readonly StopTimeout?: number
} {
  const number = (name: keyof LimitOptions & string): number | undefined => {
    const text = options[name]
    return text === undefined ? undefined : wholeNumber(`--${name}`, text as string)
  }
  const some = (name: string, value: number | undefined): object =>
    value === undefined ? {} : { [name]: value }
  const bytes = (name: 'shm-size' | 'memory-reservation' | 'memory-swap'): number | undefined => {
    const text = options[name]
    return text === undefined ? undefined : text === '-1' ? -1 : parseSize(text, `--${name}`)
  }
  return {
    HostConfig: {
      ...some('PidsLimit', number('pids-limit')),
      Ulimits: listOf(options.ulimit).map(ulimit),
      Sysctls: Object.fromEntries(listOf(options.sysctl).map(pairOf)),
      ...some('ShmSize', bytes('shm-size')),
      ...some('MemoryReservation', bytes('memory-reservation')),
      ...some('MemorySwap', bytes('memory-swap')),
      ...some('MemorySwappiness', number('memory-swappiness')),
      ...(options['oom-kill-disable'] === true && { OomKillDisable: true }),
      ...some('BlkioWeight', number('blkio-weight')),
      CpusetCpus: options['cpuset-cpus'] ?? '',
      CpusetMems: options['cpuset-mems'] ?? '',
      ...some('CpuPeriod', number('cpu-period')),
      ...some('CpuQuota', number('cpu-quota')),
    },
    ...some('StopTimeout', number('stop-timeout')),
  }
}

/** @throws CoracleError USAGE */
function wholeNumber(option: string, text: string): number {
  if (/^-?\d{1,12}$/.test(text)) return Number(text)
  throw new CoracleError('USAGE', `${option} must be a whole number, not '${text}'`)
}

/** A limit as the API has it. @throws CoracleError USAGE */
export function ulimit(text: string): object {
  const [, Name, soft, hard] = /^([a-z]+)=(-1|\d{1,15})(?::(-1|\d{1,15}))?$/.exec(text) ?? []
  if (Name === undefined) throw new CoracleError('USAGE', `--ulimit is NAME=SOFT[:HARD], not '${text}'`)
  return { Name, Soft: Number(soft), Hard: Number(hard ?? soft) }
}

/** The lines of a file of variables or labels, without comments. @throws CoracleError USAGE */
export function linesOf(option: string, path: string): string[] {
  let text
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    throw new CoracleError(
      'USAGE',
      `${option}: cannot read ${path} (${(error as NodeJS.ErrnoException).code})`,
    )
  }
  return text.split(/\r?\n/).filter((line) => line.trim() !== '' && !line.startsWith('#'))
}
