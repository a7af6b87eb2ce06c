import { containerPath } from '../client.js'
import { eachOf, type Command, type CommandHelp } from '../command.js'

function command(
  verb: 'pause' | 'unpause',
  summary: string,
  examples: CommandHelp<unknown>['examples'],
): Command {
  const help = {
    usage: `${verb} CONTAINER...`,
    summary,
    options: (yargs) => yargs,
    examples,
    words: [1, Infinity],
  } satisfies CommandHelp<unknown>
  return {
    run: eachOf(help, async (client, name) => {
      await client.json('POST', containerPath(name, verb))
      return name
    }),
  }
}

export const pause = command(
  'pause',
  'Makes all processes of containers stand still, or their virtual machines.',
  [['pause web', 'it keeps its memory and its connections, and uses no processor']],
)
export const unpause = command('unpause', 'Lets paused containers go on.', [
  ['unpause web', 'where it was paused'],
])
