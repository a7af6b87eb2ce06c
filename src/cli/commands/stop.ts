import { containerPath } from '../client.js'
import { eachOf, type CommandHelp } from '../command.js'

const help = {
  usage: 'stop [OPTIONS] CONTAINER...',
  summary: 'Stops containers: their stop signal, and SIGKILL when that did not help in time.',
  options: (yargs) =>
    yargs
      .option('timeout', {
        alias: ['t', 'time'],
        type: 'string',
        requiresArg: true,
        describe: 'Seconds to wait before SIGKILL (10)',
      })
      .option('signal', {
        alias: 's',
        type: 'string',
        requiresArg: true,
        describe: 'In place of its stop signal',
      }),
  examples: [['stop -t 2 web', 'wait two seconds']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export const run = eachOf(help, async (client, name, { timeout: t, signal }) => {
  await client.json('POST', containerPath(name, 'stop'), { query: { t, signal } })
  return name
})
