import type { Argv } from 'yargs'
import { CoracleError } from '../../errors.js'
import type { Client } from '../client.js'
import { type Command, type CommandHelp, type Refused, listOf, parseOptions, withClient } from '../command.js'
import { confirm } from '../confirm.js'
import { filterOption, filterQuery } from '../filter.js'
import { showSize } from '../size.js'

/** One kind of what is removed where nothing needs it: `container prune` and so on. */
interface Kind {
  readonly noun: string
  /** What goes, and with `--all`. */
  readonly removes: string
  readonly all?: { readonly removes: string; readonly describe: string; readonly filter?: string }
  /** Those that the API takes; none: no `--filter`. */
  readonly filters?: string
  readonly refused?: Refused
  readonly path: string
  /** The lines of the API's answer. */
  readonly deleted: (answer: Answer) => readonly string[]
  readonly example: readonly [line: string, meaning: string]
}

interface Answer {
  readonly ContainersDeleted?: readonly string[] | null
  readonly NetworksDeleted?: readonly string[] | null
  readonly VolumesDeleted?: readonly string[] | null
  readonly CachesDeleted?: readonly string[] | null
  readonly ImagesDeleted?: readonly { readonly Deleted?: string; readonly Untagged?: string }[] | null
  readonly SpaceReclaimed?: number
}

const LABELS = 'label=KEY[=VALUE], label!=KEY[=VALUE]'
const AGED = `until=24h, ${LABELS}`

const CONTAINERS: Kind = {
  noun: 'container',
  removes: 'all containers that do not run',
  filters: AGED,
  path: '/containers/prune',
  deleted: ({ ContainersDeleted }) => ContainersDeleted ?? [],
  example: ['-f --filter until=24h', 'those made before yesterday'],
}

const NETWORKS: Kind = {
  noun: 'network',
  removes: 'all networks that no container is on',
  filters: AGED,
  path: '/networks/prune',
  deleted: ({ NetworksDeleted }) => NetworksDeleted ?? [],
  example: ['-f --filter until=24h', 'those made before yesterday'],
}

const VOLUMES: Kind = {
  noun: 'volume',
  removes: 'the volumes that nobody named and no container has, with all that is in them',
  all: {
    removes: 'all volumes that no container has, with all that is in them',
    describe: 'Those with names too',
    filter: 'all=true',
  },
  filters: LABELS,
  path: '/volumes/prune',
  deleted: ({ VolumesDeleted }) => VolumesDeleted ?? [],
  example: ['-af', 'all that no container has, without a question'],
}

const IMAGES: Kind = {
  noun: 'image',
  removes: 'all images without a name',
  all: {
    removes: 'all images that no container needs',
    describe: 'All that no container needs',
    filter: 'dangling=false',
  },
  filters: AGED,
  path: '/images/prune',
  deleted: ({ ImagesDeleted }) =>
    (ImagesDeleted ?? []).map(({ Deleted, Untagged }) =>
      Deleted === undefined ? `untagged: ${Untagged}` : `deleted: ${Deleted}`,
    ),
  example: ['-af', 'without a question'],
}

const BUILD_CACHE = 'what builds keep for the next one: their steps, and the caches of RUN --mount=type=cache'
const BUILDS: Kind = {
  noun: 'builder',
  removes: BUILD_CACHE,
  all: { removes: BUILD_CACHE, describe: 'As without: all that is not in use' },
  filters: 'until=24h',
  refused: Object.fromEntries(
    ['keep-storage', 'reserved-space', 'max-used-space', 'min-free-space'].map((option) => [
      option,
      'all goes that no build uses now, or what is older than a time: --filter until=24h',
    ]),
  ),
  path: '/build/prune',
  deleted: ({ CachesDeleted }) => CachesDeleted ?? [],
  example: ['-f', 'without a question'],
}

/** Prints what went. @returns the bytes that it took, where the API tells */
async function prune(client: Client, kind: Kind, all: boolean, filters: readonly string[]): Promise<number> {
  const query = filterQuery([...filters, ...(all && kind.all?.filter ? [kind.all.filter] : [])])
  const answer = await client.json<Answer>('POST', kind.path, { query: { filters: query } })
  for (const line of kind.deleted(answer)) process.stdout.write(`${line}\n`)
  return answer.SpaceReclaimed ?? 0
}

const freed = (bytes: number): void => void process.stdout.write(`Freed: ${showSize(bytes)}\n`)

const FORCE = { alias: 'f', type: 'boolean', describe: 'Do not ask' } as const

const ALL = { alias: 'a', type: 'boolean' } as const

interface Chosen {
  readonly force?: boolean
  readonly all?: boolean
  readonly filter?: string[]
}

const command = (kind: Kind): Command => {
  const help = {
    usage: `${kind.noun} prune [OPTIONS]`,
    summary: `Removes ${kind.removes}.`,
    options: (yargs) => {
      let options: Argv = yargs.option('force', FORCE)
      if (kind.all) options = options.option('all', { ...ALL, describe: kind.all.describe })
      if (kind.filters) options = options.option('filter', filterOption(kind.filters))
      return options as Argv<Chosen>
    },
    examples: [[`${kind.noun} prune ${kind.example[0]}`, kind.example[1]]],
    words: [0, 0],
    ...(kind.refused && { refused: kind.refused }),
  } satisfies CommandHelp<unknown>
  return {
    run: async (invocation) => {
      const options = await parseOptions(invocation.words, help)
      if (!options) return 0
      const { all = false, force, filter } = options
      if (!force && !(await confirm(`This removes ${all && kind.all ? kind.all.removes : kind.removes}.`)))
        return 1
      return withClient(invocation, async (client) => {
        freed(await prune(client, kind, all, listOf(filter)))
        return 0
      })
    },
  }
}

export const container = command(CONTAINERS)
export const image = command(IMAGES)
export const network = command(NETWORKS)
export const volume = command(VOLUMES)
export const builder = command(BUILDS)

const systemHelp = {
  usage: 'system prune [OPTIONS]',
  summary: 'Removes containers, networks, images and what builds keep, where nothing needs them.',
  options: (yargs) =>
    yargs
      .option('all', { ...ALL, describe: 'All images that no container needs' })
      .option('volumes', { type: 'boolean', describe: 'And the volumes that nobody named' })
      .option('force', FORCE)
      .option('filter', filterOption(`${AGED}; with a label what builds keep stays`)),
  examples: [['system prune -af --volumes', 'everything, without a question']],
  words: [0, 0],
} satisfies CommandHelp<unknown>

export const system: Command = {
  run: async (invocation) => {
    const options = await parseOptions(invocation.words, systemHelp)
    if (!options) return 0
    const { all = false } = options
    const filters = listOf(options.filter)
    if (options.volumes && filters.some((filter) => filter.startsWith('until=')))
      throw new CoracleError('USAGE', '--filter until= does not go with --volumes: they have no such filter')
    const aged = filters.every((filter) => filter.startsWith('until='))
    const kinds = [
      ...[CONTAINERS, NETWORKS, ...(options.volumes ? [VOLUMES] : [])],
      ...[IMAGES, ...(aged ? [BUILDS] : [])],
    ]
    const removes = kinds.map((kind) => (all && kind === IMAGES ? kind.all!.removes : kind.removes))
    if (!options.force && !(await confirm(`This removes ${removes.join('; ')}.`))) return 1
    return withClient(invocation, async (client) => {
      let bytes = 0
      for (const kind of kinds) bytes += await prune(client, kind, all && kind === IMAGES, filters)
      freed(bytes)
      return 0
    })
  },
}
