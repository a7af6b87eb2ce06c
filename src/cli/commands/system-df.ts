import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { FORMAT, listing, type Row } from '../listing.js'
import { showSize } from '../size.js'
import { parseTemplate } from '../template.js'
import { ago } from '../time.js'
import { imageLines, type ImageSummary } from './images.js'
import { containerLines, type ContainerSummary } from './ps.js'

const help = {
  usage: 'system df [OPTIONS]',
  summary: 'Shows what images, containers, volumes and builds take of the disk.',
  options: (yargs) =>
    yargs.option('verbose', { alias: 'v', type: 'boolean', describe: 'Each of them' }).option('format', {
      ...FORMAT,
      describe: `${FORMAT.describe}; with -v of .Images, .Containers, .Volumes and .BuildCache`,
    }),
  examples: [
    ["system df --format '{{.Type}} {{.Size}}'", 'for a script'],
    ['system df -v', 'what each image and volume takes'],
  ],
  words: [0, 0],
} satisfies CommandHelp<unknown>

const COLUMNS = {
  Type: 'TYPE',
  TotalCount: 'TOTAL',
  Active: 'ACTIVE',
  Size: 'SIZE',
  Reclaimable: 'RECLAIMABLE',
}

interface Usage {
  readonly LayersSize: number
  readonly Images: readonly ImageSummary[]
  readonly Containers: readonly ContainerSummary[]
  readonly Volumes: readonly {
    readonly Name: string
    readonly UsageData: { readonly Size: number; readonly RefCount: number }
  }[]
  readonly BuildCache: readonly {
    readonly ID: string
    readonly Type: string
    readonly Description: string
    readonly InUse: boolean
    readonly Shared: boolean
    readonly Size: number
    readonly CreatedAt: string
  }[]
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, async (client) => {
    const usage = await client.json<Usage>('GET', '/system/df')
    process.stdout.write(
      options.verbose ? each(usage, options.format) : listing(COLUMNS, sums(usage), options.format),
    )
    return 0
  })
}

const sum = (sizes: readonly number[]): number => sizes.reduce((all, size) => all + size, 0)

/** A line a kind. What could go is what nothing needs now. */
function sums({
  LayersSize,
  Images,
  Containers,
  Volumes,
  BuildCache,
}: Usage): Record<keyof typeof COLUMNS, string>[] {
  const row = (
    Type: string,
    all: readonly { readonly isActive: boolean; readonly size: number }[],
    total = sum(all.map(({ size }) => size)),
  ): Record<keyof typeof COLUMNS, string> => {
    const active = all.filter(({ isActive }) => isActive)
    const free = Math.max(0, total - sum(active.map(({ size }) => size)))
    return {
      Type,
      TotalCount: String(all.length),
      Active: String(active.length),
      Size: showSize(total),
      Reclaimable: `${showSize(free)}${total > 0 ? ` (${Math.floor((free / total) * 100)}%)` : ''}`,
    }
  }
  return [
    row(
      'Images',
      // What the active ones share counts for each: rather too little is promised.
      Images.map((image) => ({ isActive: image.Containers > 0, size: image.Size })),
      LayersSize,
    ),
    row(
      'Containers',
      Containers.map(({ State, SizeRw = 0 }) => ({ isActive: State === 'running', size: SizeRw })),
    ),
    row(
      'Local Volumes',
      Volumes.map(({ UsageData }) => ({ isActive: UsageData.RefCount > 0, size: UsageData.Size })),
    ),
    row(
      'Build Cache',
      BuildCache.map(({ InUse, Size }) => ({ isActive: InUse, size: Size })),
    ),
  ]
}

/** Each of them, in a table a kind or by a template. @throws CoracleError USAGE */
function each(usage: Usage, format: string | undefined): string {
  const kinds = {
    Images: imageLines(usage.Images, false),
    Containers: containerLines(usage.Containers, false),
    Volumes: usage.Volumes.map(({ Name, UsageData }) => ({
      Name,
      Links: String(UsageData.RefCount),
      Size: showSize(UsageData.Size),
    })),
    BuildCache: usage.BuildCache.map(({ ID, Type, Description, InUse, Shared, Size, CreatedAt }) => ({
      ID: ID.replace('sha256:', '').slice(0, 12),
      CacheType: Type,
      Description,
      Size: showSize(Size),
      CreatedSince: `${ago(Date.parse(CreatedAt) / 1000)} ago`,
      InUse: String(InUse),
      Shared: String(Shared),
    })),
  }
  if (format === 'json') return `${JSON.stringify(kinds)}\n`
  if (format !== undefined && format !== 'table') return `${parseTemplate(format)(kinds)}\n`
  const part = <Field extends string>(
    title: string,
    rows: readonly Row<NoInfer<Field>>[],
    columns: Readonly<Record<Field, string>>,
  ): string => `${title} space usage:\n\n${listing(columns, rows, undefined)}`
  return [
    part('Images', kinds.Images, {
      Repository: 'REPOSITORY',
      Tag: 'TAG',
      ID: 'IMAGE ID',
      CreatedSince: 'CREATED',
      Size: 'SIZE',
      SharedSize: 'SHARED SIZE',
      UniqueSize: 'UNIQUE SIZE',
      Containers: 'CONTAINERS',
    }),
    part('Containers', kinds.Containers, {
      ID: 'CONTAINER ID',
      Image: 'IMAGE',
      Command: 'COMMAND',
      LocalVolumes: 'LOCAL VOLUMES',
      Size: 'SIZE',
      RunningFor: 'CREATED',
      Status: 'STATUS',
      Names: 'NAMES',
    }),
    part('Local Volumes', kinds.Volumes, { Name: 'VOLUME NAME', Links: 'LINKS', Size: 'SIZE' }),
    part('Build cache', kinds.BuildCache, {
      ID: 'CACHE ID',
      CacheType: 'CACHE TYPE',
      Size: 'SIZE',
      CreatedSince: 'CREATED',
      InUse: 'IN USE',
      Description: 'FOR',
    }),
  ].join('\n')
}
