import { containerPath } from '../client.js'
import { eachOf, type CommandHelp } from '../command.js'

const help = {
  usage: 'restart [OPTIONS] CONTAINER...',
  summary: 'Stops containers and starts them again.',
  options: (yargs) =>
    yargs
      .option('timeout', {
        alias: ['t', 'time'],
        type: 'string',
        requiresArg: true,
        describe: 'Seconds until SIGKILL, -1 for never',
      })
      .option('signal', { alias: 's', type: 'string', requiresArg: true, describe: 'Signal that stops it' }),
  examples: [['restart -t 2 web', 'patient for two seconds']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export const run = eachOf(help, async (client, name, { timeout: t, signal }) => {
  await client.json('POST', containerPath(name, 'restart'), { query: { t, signal } })
  return name
})
