import { imagePath } from '../client.js'
import { forEach, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'rmi [OPTIONS] IMAGE...',
  summary: 'Removes images: a name, and with the last name the image.',
  options: (yargs) =>
    yargs.option('force', { alias: 'f', type: 'boolean', describe: 'By its id though it has several names' }),
  examples: [['rmi debian:test', 'one name']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, (client) =>
    forEach(options._, async (name) => {
      const removals = await client.json<Record<string, string>[]>('DELETE', imagePath(name), {
        query: { force: options.force ? 1 : 0 },
      })
      return removals.flatMap((each) => Object.entries(each).map(([what, id]) => `${what}: ${id}`)).join('\n')
    }),
  )
}
