import { imagePath } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { PLATFORM, platformQuery } from '../platform.js'
import { FORMAT, listing } from '../listing.js'
import { showSize } from '../size.js'
import { ago, showTime } from '../time.js'

const help = {
  usage: 'history [OPTIONS] IMAGE',
  summary: 'Shows the steps that made an image, the last one first.',
  options: (yargs) =>
    yargs
      .option('no-trunc', { type: 'boolean', describe: 'Show everything in full' })
      .option('human', {
        alias: 'H',
        type: 'boolean',
        default: true,
        describe: 'Sizes and times for people; =false for programs',
      })
      .option('quiet', { alias: 'q', type: 'boolean', describe: 'Only ids' })
      .option('format', FORMAT)
      .option('platform', PLATFORM),
  examples: [['history app', 'what each of its layers is for']],
  words: [1, 1],
} satisfies CommandHelp<unknown>

interface Line {
  readonly Id: string
  readonly Created: number
  readonly CreatedBy: string
  readonly Size: number
  readonly Comment: string
}

const COLUMNS = {
  ID: 'IMAGE',
  CreatedSince: 'CREATED',
  CreatedBy: 'CREATED BY',
  Size: 'SIZE',
  Comment: undefined,
  CreatedAt: undefined,
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const platform = platformQuery(options.platform)
  const cut = (text: string): string =>
    options['no-trunc'] || text.length <= 45 ? text : `${text.slice(0, 44)}…`
  return withClient(invocation, async (client) => {
    const lines = await client.json<Line[]>('GET', imagePath(options._[0]!, 'history'), {
      query: { platform },
    })
    const rows = lines.map(({ Id, Created, CreatedBy, Size, Comment }) => ({
      ID: options['no-trunc'] ? Id : Id.replace('sha256:', '').slice(0, 12),
      CreatedSince: options.human ? `${ago(Created)} ago` : new Date(Created * 1000).toISOString(),
      CreatedBy: cut(CreatedBy.replace(/\s+/g, ' ')),
      Size: options.human ? showSize(Size) : String(Size),
      Comment,
      CreatedAt: showTime(Created),
    }))
    process.stdout.write(
      options.quiet ? rows.map(({ ID }) => `${ID}\n`).join('') : listing(COLUMNS, rows, options.format),
    )
    return 0
  })
}
