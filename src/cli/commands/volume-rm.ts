import { volumePath } from '../client.js'
import { forEach, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'volume rm [OPTIONS] VOLUME...',
  summary: 'Removes volumes that no container has, with all that is in them.',
  options: (yargs) =>
    yargs.option('force', { alias: 'f', type: 'boolean', describe: 'One that is not there is no error' }),
  examples: [['volume rm data', 'by its name']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, (client) =>
    forEach(options._, async (name) => {
      await client.json('DELETE', volumePath(name), { query: { force: options.force ? 1 : 0 } })
      return name
    }),
  )
}
