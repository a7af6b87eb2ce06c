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
  refused: { tree: 'images are of one platform here, so there is nothing below a line' },
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

/** One of the API's list of images. */
export interface ImageSummary {
  readonly Id: string
  readonly RepoTags: readonly string[] | null
  readonly RepoDigests: readonly string[] | null
  readonly Created: number
  readonly Size: number
  readonly SharedSize: number
  readonly Containers: number
}

/** A line for each name; what has none, or a digest alone, has a line too. */
function namesOf({
  RepoTags,
  RepoDigests,
}: ImageSummary): { Repository: string; Tag: string; Digest: string }[] {
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
    const counted = /\.(Shared|Unique)Size\b/.test(options.format ?? '')
    const filters = [...listOf(options.filter), ...options._.map((name) => `reference=${name}`)]
    const images = await client.json<ImageSummary[]>('GET', '/images/json', {
      query: {
        all: options.all ? 1 : 0,
        'shared-size': counted ? 1 : undefined,
        filters: filterQuery(filters),
      },
    })
    const lines = imageLines(images, options['no-trunc'] ?? false)
    const columns = { ...COLUMNS, Digest: options.digests ? 'DIGEST' : undefined }
    process.stdout.write(
      options.quiet
        ? images.map((image) => `${idOf(image, options['no-trunc'])}\n`).join('')
        : listing(columns, lines, options.format),
    )
    return 0
  })
}

const idOf = ({ Id }: ImageSummary, whole?: boolean): string =>
  whole ? Id : Id.replace('sha256:', '').slice(0, 12)

/** The lines of images, under Docker's names of their columns. */
export function imageLines(
  images: readonly ImageSummary[],
  whole: boolean,
): Record<keyof typeof COLUMNS, string>[] {
  // Of neither is there a figure where it was not counted.
  const size = (bytes: number): string => (bytes < 0 ? 'N/A' : showSize(bytes))
  return images.flatMap((image) =>
    namesOf(image).map((names) => ({
      ...names,
      ID: idOf(image, whole),
      CreatedSince: `${ago(image.Created)} ago`,
      Size: showSize(image.Size),
      CreatedAt: showTime(image.Created),
      Containers: image.Containers < 0 ? 'N/A' : String(image.Containers),
      SharedSize: size(image.SharedSize),
      UniqueSize: size(image.SharedSize < 0 ? -1 : Math.max(0, image.Size - image.SharedSize)),
      VirtualSize: showSize(image.Size),
    })),
  )
}
