import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { filterOption, filterQuery } from '../filter.js'
import { showTime } from '../time.js'
import { FORMAT, labelFields, listing } from '../listing.js'

const help = {
  usage: 'network ls [OPTIONS]',
  summary: 'Lists networks.',
  options: (yargs) =>
    yargs
      .option('quiet', { alias: 'q', type: 'boolean', describe: 'Only ids' })
      .option('no-trunc', { type: 'boolean', describe: 'Show ids in full' })
      .option('filter', {
        alias: 'f',
        ...filterOption('name=, id=, driver=, label=, type=custom|builtin, dangling=true'),
      })
      .option('format', FORMAT),
  examples: [['network ls --filter type=custom', 'those that users made']],
  words: [0, 0],
} satisfies CommandHelp<unknown>

const COLUMNS = {
  ID: 'NETWORK ID',
  Name: 'NAME',
  Driver: 'DRIVER',
  Subnets: 'SUBNETS',
  Scope: undefined,
  IPv4: undefined,
  IPv6: undefined,
  Internal: undefined,
  Labels: undefined,
  CreatedAt: undefined,
}

interface Summary {
  readonly Id: string
  readonly Name: string
  readonly Driver: string
  readonly Scope: string
  readonly EnableIPv4?: boolean
  readonly EnableIPv6: boolean
  readonly Internal: boolean
  readonly Labels: Readonly<Record<string, string>> | null
  readonly Created: string
  readonly IPAM: { readonly Config: readonly { readonly Subnet: string }[] | null }
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, async (client) => {
    const all = await client.json<Summary[]>('GET', '/networks', {
      query: { filters: filterQuery(listOf(options.filter)) },
    })
    const id = ({ Id }: Summary): string => (options['no-trunc'] ? Id : Id.slice(0, 12))
    const rows = all.map((each) => ({
      ID: id(each),
      Name: each.Name,
      Driver: each.Driver,
      Subnets: (each.IPAM.Config ?? []).map(({ Subnet }) => Subnet).join(', '),
      Scope: each.Scope,
      IPv4: String(each.EnableIPv4 ?? true),
      IPv6: String(each.EnableIPv6),
      Internal: String(each.Internal),
      ...labelFields(each.Labels),
      CreatedAt: showTime(Date.parse(each.Created) / 1000),
    }))
    process.stdout.write(
      options.quiet ? all.map((each) => `${id(each)}\n`).join('') : listing(COLUMNS, rows, options.format),
    )
    return 0
  })
}
