import { containerPath } from '../client.js'
import { eachOf, type CommandHelp } from '../command.js'

const help = {
  usage: 'kill [OPTIONS] CONTAINER...',
  summary: 'Sends a signal to the first process of containers.',
  options: (yargs) =>
    yargs.option('signal', {
      alias: 's',
      type: 'string',
      requiresArg: true,
      default: 'KILL',
      describe: 'Name or number',
    }),
  examples: [['kill -s HUP web', 'let a server read its configuration again']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export const run = eachOf(help, async (client, name, { signal }) => {
  await client.json('POST', containerPath(name, 'kill'), { query: { signal } })
  return name
})
