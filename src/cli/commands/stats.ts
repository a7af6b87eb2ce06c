import { setTimeout as sleep } from 'node:timers/promises'
import { CoracleError } from '../../errors.js'
import { containerPath, type Client } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { showBinarySize, showSize } from '../size.js'
import { FORMAT, listing } from '../listing.js'

const help = {
  usage: 'stats [OPTIONS] [CONTAINER...]',
  summary: 'Shows what containers use, every second, until Ctrl-C; without names, those that run.',
  options: (yargs) =>
    yargs
      .option('all', { alias: 'a', type: 'boolean', describe: 'Those that do not run too' })
      .option('no-stream', { type: 'boolean', describe: 'Once, and no more' })
      .option('no-trunc', { type: 'boolean', describe: 'Show ids in full' })
      .option('format', {
        ...FORMAT,
        describe: `${FORMAT.describe}; json has requests, bytes, depth and latencies of a microVM’s queues, too`,
      }),
  examples: [
    ['stats', 'a table that is kept up to date'],
    ['stats --no-stream --format json web', 'the figures of one container, for a program'],
    ["stats --format '{{.Name}}: {{.CPUPerc}}'", 'a line each, every second'],
  ],
  words: [0, Infinity],
} satisfies CommandHelp<unknown>

const PERIOD = 1000
/** Home, and clear what is below. */
const REDRAW = '\x1b[H\x1b[J'
const NONE = '--'

interface Cpu {
  readonly cpu_usage: { readonly total_usage: number }
  readonly system_cpu_usage?: number
  readonly online_cpus?: number
}

interface Block {
  readonly op: string
  readonly value: number
}

/** The part of Docker's answer that is shown, and our own. */
interface Stats {
  readonly id: string
  readonly name: string
  readonly cpu_stats: Cpu
  readonly precpu_stats: Cpu
  readonly memory_stats: {
    readonly usage?: number
    readonly limit?: number
    readonly stats?: Readonly<Record<string, number>>
  }
  readonly pids_stats: { readonly current?: number }
  readonly blkio_stats: { readonly io_service_bytes_recursive: readonly Block[] | null }
  readonly networks?: Readonly<Record<string, { readonly rx_bytes: number; readonly tx_bytes: number }>>
  readonly machine?: { readonly overhead: number; readonly queues?: readonly object[] }
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const { _: names, format } = options
  const whole = options['no-trunc'] === true || format === 'json'
  const again = options['no-stream'] !== true && (format === undefined || format.startsWith('table'))
  return withClient(invocation, async (client) => {
    let before = new Map<string, Stats>()
    for (let round = 0; ; round++) {
      const wanted = names.length > 0 ? names : await list(client, options.all === true)
      // The first figures need a second to tell the share of a processor: later ones have those before them.
      const query = { stream: 0, 'one-shot': round > 0 ? 1 : 0 }
      const found = await Promise.all(wanted.map((name) => statsOf(client, name, query, names.length > 0)))
      const shown = found.filter((each) => each !== undefined)
      const rows = shown.map((each) => row(each, before.get(each.id)?.cpu_stats ?? each.precpu_stats))
      const lines = rows.map((each) => ({ ...each, ID: whole ? each.ID : each.ID.slice(0, 12) }))
      const text = listing(COLUMNS, lines, format)
      process.stdout.write(again && process.stdout.isTTY ? `${REDRAW}${text}` : text)
      if (options['no-stream']) return 0
      before = new Map(shown.map((each) => [each.id, each]))
      await sleep(PERIOD)
    }
  })
}

async function list(client: Client, all: boolean): Promise<string[]> {
  const query = { all: all ? 1 : 0 }
  return (await client.json<{ Id: string }[]>('GET', '/containers/json', { query })).map(({ Id }) => Id)
}

/** @param named the user asked for it: then it must be there */
async function statsOf(
  client: Client,
  name: string,
  query: Record<string, number>,
  named: boolean,
): Promise<Stats | undefined> {
  try {
    return await client.json<Stats>('GET', containerPath(name, 'stats'), { query })
  } catch (error) {
    if (!named && error instanceof CoracleError && error.status === 404) return undefined
    throw error
  }
}

const COLUMNS = {
  ID: 'CONTAINER ID',
  Name: 'NAME',
  CPUPerc: 'CPU %',
  MemUsage: 'MEM USAGE / LIMIT',
  MemPerc: 'MEM %',
  NetIO: 'NET I/O',
  BlockIO: 'BLOCK I/O',
  PIDs: 'PIDS',
  Overhead: 'VM OVERHEAD',
  Container: undefined,
}

/** One line, under the names that Docker gives its columns; for programs a microVM's queues too. */
type Line = Record<keyof typeof COLUMNS, string> & { readonly Queues?: readonly object[] }

function row(stats: Stats, before: Cpu): Line {
  const { id, name, cpu_stats: cpu, memory_stats: memory } = stats
  const { usage, limit = 0 } = memory
  // What the cache could give back at once does not count (Docker's own rule).
  const cache = memory.stats?.['total_inactive_file'] ?? memory.stats?.['inactive_file'] ?? 0
  const used = usage === undefined ? undefined : Math.max(0, usage - Math.min(cache, usage))
  const block = stats.blkio_stats.io_service_bytes_recursive ?? []
  const moved = (op: string): number =>
    block.reduce((sum, each) => sum + (each.op === op ? each.value : 0), 0)
  const networks = Object.values(stats.networks ?? {})
  const sum = (values: readonly number[]): number => values.reduce((all, each) => all + each, 0)
  return {
    ID: id,
    Container: id.slice(0, 12),
    Name: name.replace(/^\//, ''),
    CPUPerc: used === undefined ? NONE : percent(shareOf(cpu, before)),
    MemUsage: used === undefined ? NONE : `${showBinarySize(used)} / ${showBinarySize(limit)}`,
    MemPerc: used === undefined ? NONE : percent(limit > 0 ? used / limit : 0),
    NetIO:
      used === undefined
        ? NONE
        : `${showSize(sum(networks.map((each) => each.rx_bytes)))} / ${showSize(sum(networks.map((each) => each.tx_bytes)))}`,
    BlockIO: used === undefined ? NONE : `${showSize(moved('read'))} / ${showSize(moved('write'))}`,
    PIDs: used === undefined ? NONE : String(stats.pids_stats.current ?? 0),
    Overhead: stats.machine ? showBinarySize(stats.machine.overhead) : NONE,
    ...(stats.machine?.queues && { Queues: stats.machine.queues }),
  }
}

/** The share of one processor, so that two busy ones are 2. */
function shareOf(now: Cpu, before: Cpu): number {
  const used = now.cpu_usage.total_usage - before.cpu_usage.total_usage
  const passed = (now.system_cpu_usage ?? 0) - (before.system_cpu_usage ?? 0)
  return used > 0 && passed > 0 ? (used / passed) * (now.online_cpus ?? 1) : 0
}

const percent = (share: number): string => `${(share * 100).toFixed(2)}%`
