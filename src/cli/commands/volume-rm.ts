import { volumePath } from '../client.js'
import { eachOf, type CommandHelp } from '../command.js'

const help = {
  usage: 'volume rm [OPTIONS] VOLUME...',
  summary: 'Removes volumes that no container has, with all that is in them.',
  options: (yargs) =>
    yargs.option('force', { alias: 'f', type: 'boolean', describe: 'One that is not there is no error' }),
  examples: [['volume rm data', 'by its name']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export const run = eachOf(help, async (client, name, { force }) => {
  await client.json('DELETE', volumePath(name), { query: { force: force ? 1 : 0 } })
  return name
})
