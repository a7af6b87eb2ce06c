import { networkPath } from '../client.js'
import { eachOf, type CommandHelp } from '../command.js'

const help = {
  usage: 'network rm NETWORK...',
  summary: 'Removes networks that no running container is on.',
  options: (yargs) => yargs,
  examples: [['network rm back', 'by its name']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export const run = eachOf(help, async (client, name) => {
  await client.json('DELETE', networkPath(name))
  return name
})
