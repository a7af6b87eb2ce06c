import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { filterOption, filterQuery } from '../filter.js'
import { table } from '../table.js'

const help = {
  usage: 'volume ls [OPTIONS]',
  summary: 'Lists volumes.',
  options: (yargs) =>
    yargs
      .option('quiet', { alias: 'q', type: 'boolean', describe: 'Only names' })
      .option('filter', { alias: 'f', ...filterOption('name=, label=, driver=, dangling=true') }),
  examples: [['volume ls -f dangling=true', 'those that no container has']],
  words: [0, 0],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, async (client) => {
    const { Volumes } = await client.json<{ Volumes: { Name: string; Driver: string }[] }>(
      'GET',
      '/volumes',
      {
        query: { filters: filterQuery(listOf(options.filter)) },
      },
    )
    const rows = Volumes.map(({ Driver, Name }) => [Driver, Name])
    process.stdout.write(
      options.quiet
        ? Volumes.map(({ Name }) => `${Name}\n`).join('')
        : table([['DRIVER', 'VOLUME NAME'], ...rows]),
    )
    return 0
  })
}
