import { containerPath } from '../client.js'
import { eachOf, type CommandHelp } from '../command.js'

const help = {
  usage: 'start CONTAINER...',
  summary: 'Starts containers in the background.',
  options: (yargs) => yargs,
  examples: [['start job', 'start a container that was created or has ended']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export const run = eachOf(help, async (client, name) => {
  await client.json('POST', containerPath(name, 'start'))
  return name
})
