import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { confirm } from '../confirm.js'
import { filterOption, filterQuery } from '../filter.js'

const help = {
  usage: 'network prune [OPTIONS]',
  summary: 'Removes all networks that no container is on.',
  options: (yargs) =>
    yargs
      .option('force', { alias: 'f', type: 'boolean', describe: 'Do not ask' })
      .option('filter', filterOption('until=24h, label=KEY[=VALUE], label!=KEY[=VALUE]')),
  examples: [['network prune -f --filter until=24h', 'those made before yesterday']],
  words: [0, 0],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  if (!options.force && !(await confirm('This removes all networks that no container is on.'))) return 1
  return withClient(invocation, async (client) => {
    const { NetworksDeleted: names } = await client.json<{ NetworksDeleted: string[] | null }>(
      'POST',
      '/networks/prune',
      { query: { filters: filterQuery(listOf(options.filter)) } },
    )
    for (const name of names ?? []) process.stdout.write(`${name}\n`)
    return 0
  })
}
