import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { filterOption, filterQuery } from '../filter.js'
import { FORMAT, labelFields, listing } from '../listing.js'

const help = {
  usage: 'volume ls [OPTIONS]',
  summary: 'Lists volumes.',
  options: (yargs) =>
    yargs
      .option('quiet', { alias: 'q', type: 'boolean', describe: 'Only names' })
      .option('filter', { alias: 'f', ...filterOption('name=, label=, driver=, dangling=true') })
      .option('format', FORMAT),
  examples: [['volume ls -f dangling=true', 'those that no container has']],
  words: [0, 0],
  refused: { cluster: 'there is no swarm: all volumes are local ones' },
} satisfies CommandHelp<unknown>

const COLUMNS = {
  Driver: 'DRIVER',
  Name: 'VOLUME NAME',
  Scope: undefined,
  Mountpoint: undefined,
  Labels: undefined,
  Links: undefined,
  Size: undefined,
}

interface Summary {
  readonly Name: string
  readonly Driver: string
  readonly Scope: string
  readonly Mountpoint: string
  readonly Labels: Readonly<Record<string, string>> | null
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, async (client) => {
    const { Volumes } = await client.json<{ Volumes: Summary[] }>('GET', '/volumes', {
      query: { filters: filterQuery(listOf(options.filter)) },
    })
    const rows = Volumes.map(({ Driver, Name, Scope, Mountpoint, Labels }) => ({
      ...{ Driver, Name, Scope, Mountpoint },
      ...labelFields(Labels),
      // Docker counts them for `system df -v` alone.
      ...{ Links: 'N/A', Size: 'N/A' },
    }))
    process.stdout.write(
      options.quiet
        ? Volumes.map(({ Name }) => `${Name}\n`).join('')
        : listing(COLUMNS, rows, options.format),
    )
    return 0
  })
}
