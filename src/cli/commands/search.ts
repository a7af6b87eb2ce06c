import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { filterOption, filterQuery } from '../filter.js'
import { FORMAT, listing } from '../listing.js'

const help = {
  usage: 'search [OPTIONS] TERM',
  summary: 'Looks for images on Docker Hub, or on a registry that has a search.',
  options: (yargs) =>
    yargs
      .option('limit', { type: 'string', requiresArg: true, describe: 'Images at most, 1 to 100 (25)' })
      .option('filter', { alias: 'f', ...filterOption('is-official=true, stars=10') })
      .option('no-trunc', { type: 'boolean', describe: 'Show descriptions in full' })
      .option('format', FORMAT),
  examples: [['search -f is-official=true redis', "Docker's own"]],
  words: [1, 1],
} satisfies CommandHelp<unknown>

const COLUMNS = { Name: 'NAME', Description: 'DESCRIPTION', StarCount: 'STARS', IsOfficial: 'OFFICIAL' }
const WIDTH = 45

interface Found {
  readonly name: string
  readonly description: string
  readonly star_count: number
  readonly is_official: boolean
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const short = (text: string): string =>
    options['no-trunc'] || text.length <= WIDTH ? text : `${text.slice(0, WIDTH - 1)}…`
  return withClient(invocation, async (client) => {
    const found = await client.json<Found[]>('GET', '/images/search', {
      query: { term: options._[0], limit: options.limit, filters: filterQuery(listOf(options.filter)) },
    })
    const rows = found.map((each) => ({
      Name: each.name,
      Description: short(each.description),
      StarCount: String(each.star_count),
      IsOfficial: each.is_official ? '[OK]' : '',
    }))
    process.stdout.write(listing(COLUMNS, rows, options.format))
    return 0
  })
}
