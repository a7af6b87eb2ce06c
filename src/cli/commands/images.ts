import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { filterOption, filterQuery } from '../filter.js'
import { FORMAT, listing } from '../listing.js'
import { showSize } from '../size.js'
import { ago, showTime } from '../time.js'

const help = {
  usage: 'images [OPTIONS] [NAME[:TAG]]',
  summary: 'Lists images.',
  options: (yargs) =>
    yargs
      .option('quiet', { alias: 'q', type: 'boolean', describe: 'Only ids' })
      .option('all', { alias: 'a', type: 'boolean', describe: 'Steps of builds, too' })
      .option('no-trunc', { type: 'boolean', describe: 'Show ids in full' })
      .option('digests', { type: 'boolean', describe: 'Show the digests that registries know them by' })
      .option('filter', { alias: 'f', ...filterOption('reference=, label=, dangling=true, …') })
      .option('format', FORMAT),
  examples: [
    ['images -q', 'the ids of all'],
    ['images debian', 'those of one name'],
    ['images --digests debian', 'and by which digests they can be pulled'],
  ],
  words: [0, 1],
} satisfies CommandHelp<unknown>

const COLUMNS = {
  Repository: 'REPOSITORY',
  Tag: 'TAG',
  Digest: undefined,
  ID: 'IMAGE ID',
  CreatedSince: 'CREATED',
  Size: 'SIZE',
  CreatedAt: undefined,
  Containers: undefined,
  SharedSize: undefined,
  UniqueSize: undefined,
  VirtualSize: undefined,
}

interface Summary {
  readonly Id: string
  readonly RepoTags: readonly string[] | null
  readonly RepoDigests: readonly string[] | null
  readonly Created: number
  readonly Size: number
  readonly SharedSize: number
  readonly Containers: number
}

/** A line for each name; what has none, or a digest alone, has a line too. */
function namesOf({ RepoTags, RepoDigests }: Summary): { Repository: string; Tag: string; Digest: string }[] {
  const digests = (RepoDigests ?? []).map((each) => each.split('@') as [string, string])
  const names = (RepoTags ?? []).map((each) => {
    const at = each.lastIndexOf(':')
    const Repository = each.slice(0, at)
    const [, Digest = '<none>'] = digests.find(([name]) => name === Repository) ?? []
    return { Repository, Tag: each.slice(at + 1), Digest }
  })
  if (names.length > 0) return names
  return digests.length > 0
    ? digests.map(([Repository, Digest]) => ({ Repository, Tag: '<none>', Digest }))
    : [{ Repository: '<none>', Tag: '<none>', Digest: '<none>' }]
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
      const columns = { ...COLUMNS, Digest: options.digests ? 'DIGEST' : undefined }
      // Of neither is there a figure where it was not counted.
      const size = (bytes: number): string => (bytes < 0 ? 'N/A' : showSize(bytes))
      const rows = images.flatMap((image) =>
        namesOf(image).map((names) => ({
          ...names,
          ID: id(image),
          CreatedSince: `${ago(image.Created)} ago`,
          Size: showSize(image.Size),
          CreatedAt: showTime(image.Created),
          Containers: image.Containers < 0 ? 'N/A' : String(image.Containers),
          SharedSize: size(image.SharedSize),
          UniqueSize: size(image.SharedSize < 0 ? -1 : image.Size - image.SharedSize),
          VirtualSize: showSize(image.Size),
        })),
      )
      process.stdout.write(listing(columns, rows, options.format))
    }
    return 0
  })
}
