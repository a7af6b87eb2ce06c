import { containerPath } from '../client.js'
import { forEach, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'rm [OPTIONS] CONTAINER...',
  summary: 'Removes containers, with what they wrote.',
  options: (yargs) =>
    yargs
      .option('force', { alias: 'f', type: 'boolean', describe: 'Kill what runs' })
      .option('volumes', { alias: 'v', type: 'boolean', describe: 'And their volumes that nobody named' }),
  examples: [
    ['rm -f web', 'whatever it is doing'],
    ['rm $(coracle ps -aq)', 'all that have ended'],
  ],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, (client) =>
    forEach(options._, async (name) => {
      const query = { force: options.force ? 1 : 0, v: options.volumes ? 1 : 0 }
      await client.json('DELETE', containerPath(name), { query })
      return name
    }),
  )
}
