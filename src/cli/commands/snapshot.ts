import { CoracleError } from '../../errors.js'
import { containerPath } from '../client.js'
import { forEach, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { FORMAT, listing } from '../listing.js'
import { showSize } from '../size.js'
import { ago } from '../time.js'

const help = {
  usage: 'snapshot create CONTAINER [NAME] | ls | rm NAME...',
  summary:
    'Saves running containers, memory and all, to go on from there later: any number of times, each time as another\n' +
    'container with an identity of its own. The saved one stands still meanwhile, and goes on. MicroVMs on kvm only;\n' +
    'a snapshot goes on on this host and its kernel alone.',
  options: (yargs) =>
    yargs
      .option('quiet', { alias: 'q', type: 'boolean', describe: 'Only names (ls)' })
      .option('format', { ...FORMAT, describe: `${FORMAT.describe} (ls)` })
      .option('force', {
        alias: 'f',
        type: 'boolean',
        describe: 'Also where a container was created from it and never started (rm)',
      }),
  examples: [
    ['snapshot create web ready', 'save the container web under the name ready'],
    ['run -d --from ready --name web2', 'a container that goes on from there'],
    ['snapshot ls', 'names, images, and what they take of the disk'],
    ['snapshot rm ready', 'containers that have gone on from it stay'],
  ],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

/** From here on a wait is told, in ms. */
const NOTABLE = 1000

/** What the API says of a snapshot. */
export interface SnapshotShape {
  readonly Name: string
  readonly Created?: string
  readonly Container?: string
  readonly Image?: string
  readonly Size?: number
  readonly Error?: string
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const [verb, first, name, ...more] = options._
  return withClient(invocation, async (client) => {
    if (verb === 'create' && first !== undefined && more.length === 0) {
      const path = `${containerPath(first)}/snapshots`
      const saved = await telling(`saving ${first}, which stands still meanwhile…`, () =>
        client.json<SnapshotShape>('POST', `/coracle${path}`, { query: { name } }),
      )
      process.stdout.write(`${saved.Name}\n`)
    } else if (verb === 'ls' && first === undefined) {
      const all = await client.json<SnapshotShape[]>('GET', '/coracle/snapshots')
      process.stdout.write(
        options.quiet
          ? all.map(({ Name }) => `${Name}\n`).join('')
          : listing(COLUMNS, all.map(rowOf), options.format),
      )
    } else if (verb === 'rm' && first !== undefined)
      return forEach(options._.slice(1), async (each) => {
        const query = options.force ? { force: 1 } : {}
        await client.json('DELETE', `/coracle/snapshots/${encodeURIComponent(each)}`, { query })
        return each
      })
    else throw new CoracleError('USAGE', `usage: coracle ${help.usage}. See 'coracle snapshot --help'.`)
    return 0
  })
}

/** Says on stderr what is waited for, where that takes a while. */
export async function telling<T>(line: string, work: () => Promise<T>): Promise<T> {
  const timer = setTimeout(() => process.stderr.write(`coracle: ${line}\n`), NOTABLE)
  try {
    return await work()
  } finally {
    clearTimeout(timer)
  }
}

const COLUMNS = {
  Name: 'NAME',
  Container: 'CONTAINER',
  Image: 'IMAGE',
  CreatedSince: 'CREATED',
  Size: 'SIZE',
  CreatedAt: undefined,
  Error: undefined,
}

const rowOf = ({
  Name,
  Container = '',
  Image = '',
  Created = '',
  Size = 0,
  Error: problem = '',
}: SnapshotShape) => ({
  Name,
  Container: problem === '' ? Container : `of no use: ${problem}`,
  Image,
  CreatedSince: Created === '' ? '' : `${ago(Date.parse(Created) / 1000)} ago`,
  Size: showSize(Size),
  CreatedAt: Created,
  Error: problem,
})
