import { containerPath } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { copyOutput } from '../session.js'

const TIME = { type: 'string', requiresArg: true } as const

const help = {
  usage: 'logs [OPTIONS] CONTAINER',
  summary: "Shows a container's output.",
  options: (yargs) =>
    yargs
      .option('follow', { alias: 'f', type: 'boolean', describe: 'Go on until it ends' })
      .option('tail', {
        alias: 'n',
        type: 'string',
        requiresArg: true,
        default: 'all',
        describe: 'Lines from the end',
      })
      .option('timestamps', { alias: 't', type: 'boolean', describe: 'The time before each line' })
      .option('details', {
        type: 'boolean',
        describe: 'As without: what adds to lines (--log-opt labels=, env=) is refused',
      })
      .option('since', { ...TIME, describe: 'RFC 3339, seconds since 1970, or how long ago, such as 10m' })
      .option('until', { ...TIME, describe: 'The same, for the end' }),
  examples: [['logs -f --tail 10 web', 'the last lines and what comes']],
  words: [1, 1],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, async (client) => {
    const response = await client.stream('GET', containerPath(options._[0]!, 'logs'), {
      query: {
        stdout: 1,
        stderr: 1,
        follow: options.follow ? 1 : 0,
        timestamps: options.timestamps ? 1 : 0,
        tail: options.tail,
        since: options.since,
        until: options.until,
      },
    })
    const multiplexed = /multiplexed/.test(response.headers['content-type'] ?? '')
    await copyOutput(response, multiplexed)
    return 0
  })
}
