import { imagePath } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { showSize } from '../size.js'
import { table } from '../table.js'
import { ago } from '../time.js'

const help = {
  usage: 'history [OPTIONS] IMAGE',
  summary: 'Shows the steps that made an image, the last one first.',
  options: (yargs) => yargs.option('no-trunc', { type: 'boolean', describe: 'Show everything in full' }),
  examples: [['history app', 'what each of its layers is for']],
  words: [1, 1],
} satisfies CommandHelp<unknown>

interface Line {
  readonly Id: string
  readonly Created: number
  readonly CreatedBy: string
  readonly Size: number
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const cut = (text: string): string =>
    options['no-trunc'] || text.length <= 45 ? text : `${text.slice(0, 44)}…`
  return withClient(invocation, async (client) => {
    const lines = await client.json<Line[]>('GET', imagePath(options._[0]!, 'history'))
    process.stdout.write(
      table([
        ['IMAGE', 'CREATED', 'CREATED BY', 'SIZE'],
        ...lines.map(({ Id, Created, CreatedBy, Size }) => [
          options['no-trunc'] ? Id : Id.replace('sha256:', '').slice(0, 12),
          `${ago(Created)} ago`,
          cut(CreatedBy.replace(/\s+/g, ' ')),
          showSize(Size),
        ]),
      ]),
    )
    return 0
  })
}
