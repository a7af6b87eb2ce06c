import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { confirm } from '../confirm.js'
import { filterOption, filterQuery } from '../filter.js'
import { showSize } from '../size.js'

const help = {
  usage: 'image prune [OPTIONS]',
  summary: 'Removes images that have no name, or all that no container needs.',
  options: (yargs) =>
    yargs
      .option('all', { alias: 'a', type: 'boolean', describe: 'All that no container needs' })
      .option('force', { alias: 'f', type: 'boolean', describe: 'Do not ask' })
      .option('filter', filterOption('until=24h, label=KEY[=VALUE], label!=KEY[=VALUE]')),
  examples: [['image prune -af', 'without a question']],
  words: [0, 0],
} satisfies CommandHelp<unknown>

interface Pruned {
  readonly ImagesDeleted: readonly { readonly Deleted?: string; readonly Untagged?: string }[] | null
  readonly SpaceReclaimed: number
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const which = options.all ? 'all images that no container needs' : 'all images without a name'
  if (!options.force && !(await confirm(`This removes ${which}.`))) return 1
  const filters = [...listOf(options.filter), ...(options.all ? ['dangling=false'] : [])]
  return withClient(invocation, async (client) => {
    const pruned = await client.json<Pruned>('POST', '/images/prune', {
      query: { filters: filterQuery(filters) },
    })
    for (const { Deleted, Untagged } of pruned.ImagesDeleted ?? [])
      process.stdout.write(Deleted === undefined ? `untagged: ${Untagged}\n` : `deleted: ${Deleted}\n`)
    process.stdout.write(`Freed: ${showSize(pruned.SpaceReclaimed)}\n`)
    return 0
  })
}
