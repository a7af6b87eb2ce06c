import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { filterOption, filterQuery } from '../filter.js'
import { FORMAT, labelFields, listing, type Row } from '../listing.js'
import { showSize } from '../size.js'
import { ago, showTime } from '../time.js'

const help = {
  usage: 'ps [OPTIONS]',
  summary: 'Lists containers.',
  options: (yargs) =>
    yargs
      .option('all', { alias: 'a', type: 'boolean', describe: 'Those that do not run too' })
      .option('quiet', { alias: 'q', type: 'boolean', describe: 'Only ids' })
      .option('size', {
        alias: 's',
        type: 'boolean',
        describe: 'Show what they wrote, and all of their files',
      })
      .option('no-trunc', { type: 'boolean', describe: 'Show everything in full' })
      .option('last', {
        alias: 'n',
        type: 'string',
        requiresArg: true,
        describe: 'The newest N, whatever they do',
      })
      .option('latest', { alias: 'l', type: 'boolean', describe: 'The newest' })
      .option('filter', {
        alias: 'f',
        ...filterOption('name=, id=, label=, status=, health=, ancestor=, network=, …'),
      })
      .option('format', FORMAT),
  examples: [
    ['ps -aq', 'the ids of all'],
    ['ps -f health=unhealthy', 'those whose health check fails'],
    ["ps --filter label=app=web --format '{{.Names}}: {{.Status}}'", 'some of them, a line each'],
  ],
  words: [0, 0],
} satisfies CommandHelp<unknown>

/** One of the API's list of containers. */
export interface ContainerSummary {
  readonly Id: string
  readonly Names: readonly string[]
  readonly Image: string
  readonly Command: string
  readonly Created: number
  readonly Status: string
  readonly State: string
  readonly Labels: Readonly<Record<string, string>>
  readonly NetworkSettings: { readonly Networks: Readonly<Record<string, unknown>> }
  readonly Ports: readonly Port[]
  readonly Mounts?: readonly { readonly Type: string; readonly Name?: string; readonly Source?: string }[]
  /** Bytes, where they were asked for. */
  readonly SizeRw?: number
  readonly SizeRootFs?: number
}

const COLUMNS = {
  ID: 'CONTAINER ID',
  Image: 'IMAGE',
  Command: 'COMMAND',
  RunningFor: 'CREATED',
  Status: 'STATUS',
  Ports: 'PORTS',
  Names: 'NAMES',
  Size: undefined,
  State: undefined,
  Labels: undefined,
  Networks: undefined,
  CreatedAt: undefined,
  Mounts: undefined,
  LocalVolumes: undefined,
}

interface Port {
  readonly IP?: string
  readonly PrivatePort: number
  readonly PublicPort?: number
  readonly Type: string
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const size = options.size || /\.Size\b/.test(options.format ?? '')
  const columns = { ...COLUMNS, Size: options.size ? 'SIZE' : undefined }
  return withClient(invocation, async (client) => {
    const limit = options.latest ? '1' : options.last
    const all = await client.json<ContainerSummary[]>('GET', '/containers/json', {
      query: {
        all: options.all ? 1 : 0,
        size: size ? 1 : 0,
        limit,
        filters: filterQuery(listOf(options.filter)),
      },
    })
    const lines = containerLines(all, options['no-trunc'] ?? false)
    process.stdout.write(
      options.quiet ? lines.map(({ ID }) => `${ID}\n`).join('') : listing(columns, lines, options.format),
    )
    return 0
  })
}

/** The lines of containers, under Docker's names of their columns. @param whole nothing is cut */
export const containerLines = (
  containers: readonly ContainerSummary[],
  whole: boolean,
): Row<keyof typeof COLUMNS>[] => {
  const cut = (text: string, length: number): string =>
    whole || text.length <= length ? text : `${text.slice(0, length - 1)}…`
  return containers.map((each) => ({
    ID: whole ? each.Id : each.Id.slice(0, 12),
    Image: each.Image,
    Command: JSON.stringify(cut(each.Command, 20)),
    RunningFor: `${ago(each.Created)} ago`,
    Status: each.Status,
    Ports: each.Ports.map(portOf).join(', '),
    Names: each.Names.map((name) => name.replace(/^\//, '')).join(','),
    Size:
      each.SizeRw === undefined && each.SizeRootFs === undefined
        ? ''
        : `${showSize(each.SizeRw ?? 0)} (virtual ${showSize(each.SizeRootFs ?? 0)})`,
    State: each.State,
    ...labelFields(each.Labels),
    Networks: Object.keys(each.NetworkSettings.Networks).join(','),
    CreatedAt: showTime(each.Created),
    Mounts: (each.Mounts ?? []).map(({ Name, Source }) => cut(Name || (Source ?? ''), 15)).join(','),
    LocalVolumes: String((each.Mounts ?? []).filter(({ Type }) => Type === 'volume').length),
  }))
}

/** As Docker shows it: `0.0.0.0:8080->80/tcp`, or `80/tcp` where it is not published. */
function portOf({ IP = '', PrivatePort, PublicPort, Type }: Port): string {
  if (PublicPort === undefined) return `${PrivatePort}/${Type}`
  return `${IP.includes(':') ? `[${IP}]` : IP}:${PublicPort}->${PrivatePort}/${Type}`
}
