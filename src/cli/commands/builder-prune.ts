import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { confirm } from '../confirm.js'
import { showSize } from '../size.js'

const help = {
  usage: 'builder prune [OPTIONS]',
  summary:
    'Removes what builds keep for the next one: their steps, and the caches of RUN --mount=type=cache.',
  options: (yargs) => yargs.option('force', { alias: 'f', type: 'boolean', describe: 'Do not ask' }),
  examples: [['builder prune -f', 'without a question']],
  words: [0, 0],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  if (!options.force && !(await confirm('This removes all that builds keep and none uses now.'))) return 1
  return withClient(invocation, async (client) => {
    const pruned = await client.json<{ CachesDeleted: string[]; SpaceReclaimed: number }>(
      'POST',
      '/build/prune',
    )
    for (const id of pruned.CachesDeleted) process.stdout.write(`${id}\n`)
    process.stdout.write(`Freed: ${showSize(pruned.SpaceReclaimed)}\n`)
    return 0
  })
}
