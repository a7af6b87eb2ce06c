import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { confirm } from '../confirm.js'
import { filterOption, filterQuery } from '../filter.js'
import { showSize } from '../size.js'

const help = {
  usage: 'volume prune [OPTIONS]',
  summary: 'Removes the volumes that nobody named and no container has, with all that is in them.',
  options: (yargs) =>
    yargs
      .option('all', { alias: 'a', type: 'boolean', describe: 'Those with names too' })
      .option('force', { alias: 'f', type: 'boolean', describe: 'Do not ask' })
      .option('filter', filterOption('label=KEY[=VALUE], label!=KEY[=VALUE]')),
  examples: [['volume prune -af', 'all that no container has, without a question']],
  words: [0, 0],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const what = options.all ? 'all volumes' : 'the volumes that nobody named'
  if (!options.force && !(await confirm(`This removes ${what} that no container has.`))) return 1
  const filters = [...listOf(options.filter), ...(options.all ? ['all=true'] : [])]
  return withClient(invocation, async (client) => {
    const { VolumesDeleted, SpaceReclaimed } = await client.json<{
      VolumesDeleted: string[] | null
      SpaceReclaimed: number
    }>('POST', '/volumes/prune', { query: { filters: filterQuery(filters) } })
    for (const name of VolumesDeleted ?? []) process.stdout.write(`${name}\n`)
    process.stdout.write(`Freed: ${showSize(SpaceReclaimed)}\n`)
    return 0
  })
}
