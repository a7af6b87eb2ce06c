import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { filterOption, filterQuery } from '../filter.js'
import { FORMAT, listing } from '../listing.js'
import { showSize } from '../size.js'
import { ago } from '../time.js'

const help = {
  usage: 'images [OPTIONS] [NAME[:TAG]]',
  summary: 'Lists images.',
  options: (yargs) =>
    yargs
      .option('quiet', { alias: 'q', type: 'boolean', describe: 'Only ids' })
      .option('all', { alias: 'a', type: 'boolean', describe: 'Steps of builds, too' })
      .option('no-trunc', { type: 'boolean', describe: 'Show ids in full' })
      .option('filter', { alias: 'f', ...filterOption('reference=, label=, dangling=true, …') })
      .option('format', FORMAT),
  examples: [
    ['images -q', 'the ids of all'],
    ['images debian', 'those of one name'],
  ],
  words: [0, 1],
} satisfies CommandHelp<unknown>

const COLUMNS = {
  Repository: 'REPOSITORY',
  Tag: 'TAG',
  ID: 'IMAGE ID',
  CreatedSince: 'CREATED',
  Size: 'SIZE',
  CreatedAt: undefined,
}

interface Summary {
  readonly Id: string
  readonly RepoTags: readonly string[] | null
  readonly Created: number
  readonly Size: number
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, async (client) => {
    const filters = [...listOf(options.filter), ...options._.map((name) => `reference=${name}`)]
    const images = await client.json<Summary[]>('GET', '/images/json', {
      query: { all: options.all ? 1 : 0, filters: filterQuery(filters) },
    })
    const id = (image: Summary): string =>
      options['no-trunc'] ? image.Id : image.Id.replace('sha256:', '').slice(0, 12)
    if (options.quiet) process.stdout.write(images.map((image) => `${id(image)}\n`).join(''))
    else {
      const rows = images.flatMap((image) =>
        (image.RepoTags?.length ? image.RepoTags : ['<none>:<none>']).map((name) => {
          const at = name.lastIndexOf(':')
          return {
            Repository: name.slice(0, at),
            Tag: name.slice(at + 1),
            ID: id(image),
            CreatedSince: `${ago(image.Created)} ago`,
            Size: showSize(image.Size),
            CreatedAt: new Date(image.Created * 1000).toISOString(),
          }
        }),
      )
      process.stdout.write(listing(COLUMNS, rows, options.format))
    }
    return 0
  })
}
