import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { confirm } from '../confirm.js'
import { filterOption, filterQuery } from '../filter.js'

const help = {
  usage: 'container prune [OPTIONS]',
  summary: 'Removes all containers that do not run.',
  options: (yargs) =>
    yargs
      .option('force', { alias: 'f', type: 'boolean', describe: 'Do not ask' })
      .option('filter', filterOption('until=24h, label=KEY[=VALUE], label!=KEY[=VALUE]')),
  examples: [['container prune -f --filter until=24h', 'those made before yesterday']],
  words: [0, 0],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  if (!options.force && !(await confirm('This removes all containers that do not run.'))) return 1
  return withClient(invocation, async (client) => {
    const { ContainersDeleted: ids } = await client.json<{ ContainersDeleted: string[] | null }>(
      'POST',
      '/containers/prune',
      { query: { filters: filterQuery(listOf(options.filter)) } },
    )
    for (const id of ids ?? []) process.stdout.write(`${id}\n`)
    return 0
  })
}
