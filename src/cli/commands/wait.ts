import { containerPath } from '../client.js'
import { eachOf, type CommandHelp } from '../command.js'

const help = {
  usage: 'wait CONTAINER...',
  summary: 'Waits until containers have ended, and prints their exit statuses.',
  options: (yargs) => yargs,
  examples: [['wait job', '0 where all went well']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export const run = eachOf(help, async (client, name) => {
  const { StatusCode } = await client.json<{ StatusCode: number }>('POST', containerPath(name, 'wait'))
  return String(StatusCode)
})
