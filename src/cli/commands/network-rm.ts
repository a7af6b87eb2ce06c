import { CoracleError } from '../../errors.js'
import { networkPath } from '../client.js'
import { eachOf, type CommandHelp } from '../command.js'

const help = {
  usage: 'network rm [OPTIONS] NETWORK...',
  summary: 'Removes networks that no running container is on.',
  options: (yargs) =>
    yargs.option('force', { alias: 'f', type: 'boolean', describe: 'None of that name is no error' }),
  examples: [['network rm back', 'by its name']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export const run = eachOf(help, async (client, name, { force }) => {
  await client.json('DELETE', networkPath(name)).catch((error: unknown) => {
    if (!(force && error instanceof CoracleError && error.status === 404)) throw error
  })
  return name
})
