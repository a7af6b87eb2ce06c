import { containerPath } from '../client.js'
import { forEach, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'restart [OPTIONS] CONTAINER...',
  summary: 'Stops containers and starts them again.',
  options: (yargs) =>
    yargs
      .option('time', {
        alias: 't',
        type: 'string',
        requiresArg: true,
        describe: 'Seconds until SIGKILL, -1 for never',
      })
      .option('signal', { alias: 's', type: 'string', requiresArg: true, describe: 'Signal that stops it' }),
  examples: [['restart -t 2 web', 'patient for two seconds']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, (client) =>
    forEach(options._, async (name) => {
      await client.json('POST', containerPath(name, 'restart'), {
        query: { t: options.time, signal: options.signal },
      })
      return name
    }),
  )
}
