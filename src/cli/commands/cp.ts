import { lstatSync, statSync } from 'node:fs'
import { basename, dirname, resolve } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { CoracleError } from '../../errors.js'
import { containerPath, type Client } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { pack } from '../pack.js'
import { unpack } from '../../image/unpack.js'

const help = {
  usage: 'cp [OPTIONS] CONTAINER:SOURCE TARGET | SOURCE CONTAINER:TARGET',
  summary: 'Copies files and folders out of a container or into one, running or not.',
  options: (yargs) =>
    yargs
      .option('archive', { alias: 'a', type: 'boolean', describe: 'Keep the owners' })
      .option('quiet', { alias: 'q', type: 'boolean', describe: 'Nothing is said of it anyhow' })
      .option('follow-link', { alias: 'L', type: 'boolean', describe: 'Follow SOURCE where it is a link' }),
  examples: [
    ['cp web:/etc/hosts .', 'a file out of a container'],
    ['cp site/. web:/www', "a folder's contents into one"],
    ['cp web:/var/log - | tar -t', 'a tar to stdout; - reads one from stdin too'],
  ],
  words: [2, 2],
} satisfies CommandHelp<unknown>

interface Stat {
  readonly mode: number
  readonly linkTarget: string
}
const GO_DIRECTORY = 0x8000_0000
const GO_LINK = 0x0800_0000

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const [source, target] = options._.map(parse) as [Place, Place]
  const manner = { owners: options.archive ?? false, follow: options['follow-link'] ?? false }
  if ((source.container === undefined) === (target.container === undefined))
    throw new CoracleError('USAGE', 'one of the two places, and not both, is in a container: NAME:PATH')
  return withClient(invocation, async (client) => {
    if (source.container !== undefined)
      await copyOut(client, source.container, source.path, target.path, manner)
    else await copyIn(client, source.path, target.container!, target.path, manner)
    return 0
  })
}

interface Place {
  readonly container: string | undefined
  readonly path: string
}

/** `NAME:PATH`, unless it is a path of this machine: one that begins with a dot or a slash is. */
function parse(word: string): Place {
  const at = /^[./]/.test(word) ? -1 : word.indexOf(':')
  if (at <= 0) return { container: undefined, path: word }
  return { container: word.slice(0, at), path: word.slice(at + 1) || '/' }
}

interface Manner {
  readonly owners: boolean
  readonly follow: boolean
}

/** Whether a path means what is in the folder, and not the folder. */
const isContents = (path: string): boolean => /(^|\/)\.\/?$/.test(path)

async function copyOut(
  client: Client,
  container: string,
  path: string,
  target: string,
  { owners, follow }: Manner,
): Promise<void> {
  let source = path
  if (follow) {
    const stat = await statIn(client, container, path)
    if (stat && isLink(stat)) source = resolve('/', dirname(path), stat.linkTarget)
  }
  const tar = await client.stream('GET', containerPath(container, 'archive'), { query: { path: source } })
  if (target === '-') return pipeline(tar, process.stdout, { end: false })
  const stat = decodeStat(tar.headers['x-docker-container-path-stat'])
  const there = statSync(target, { throwIfNoEntry: false })
  const into = there?.isDirectory() ?? false
  if (!there && target.endsWith('/') && !isFolder(stat))
    throw new CoracleError('USAGE', `${target} is no folder that is there`)
  if (!into && there && isFolder(stat)) throw new CoracleError('USAGE', `cannot copy a folder over ${target}`)
  if (!into && !statSync(dirname(resolve(target)), { throwIfNoEntry: false })?.isDirectory())
    throw new CoracleError('USAGE', `the folder of ${target} is not there`)
  const folder = into ? target : dirname(resolve(target))
  const contents = isContents(path) && isFolder(stat)
  await unpack(tar, folder, {
    owners,
    // The archive's names begin with the source's own; here they begin with the target's.
    rename: (name) => {
      const rest = name.split('/').filter((part) => part !== '' && part !== '.')
      if (source === '/' || isContents(source) || basename(source) === '')
        return [...(into ? [] : [basename(resolve(target))]), ...rest].join('/') || '.'
      const own = into ? (contents ? [] : [basename(path)]) : [basename(resolve(target))]
      return [...own, ...rest.slice(1)].join('/') || '.'
    },
  })
}

async function copyIn(
  client: Client,
  source: string,
  container: string,
  path: string,
  { owners, follow }: Manner,
): Promise<void> {
  const target = await followIn(client, container, path)
  const stat = await statIn(client, container, target)
  const put = (folder: string, tar: AsyncIterable<Uint8Array>): Promise<void> =>
    client.json('PUT', containerPath(container, 'archive'), {
      query: { path: folder, noOverwriteDirNonDir: true, copyUIDGID: owners || undefined },
      upload: Readable.from(tar, { objectMode: false }),
    })
  if (source === '-') {
    if (!stat || !isFolder(stat)) throw new CoracleError('USAGE', `${path} is no folder in the container`)
    return put(target, process.stdin)
  }
  const own = follow || source.endsWith('/') ? statSync(source, { throwIfNoEntry: false }) : undefined
  const local = own ?? lstatSync(source, { throwIfNoEntry: false })
  if (!local) throw new CoracleError('USAGE', `${source} is not there`)
  const options = { owners, follow: follow || source.endsWith('/') }
  if (stat && isFolder(stat)) {
    const name = local.isDirectory() && isContents(source) ? '.' : basename(resolve(source))
    return put(target, pack(source, name, options))
  }
  if (stat && local.isDirectory())
    throw new CoracleError('USAGE', `cannot copy a folder over ${path}, which is none`)
  if (!stat && target.endsWith('/') && !local.isDirectory())
    throw new CoracleError('USAGE', `${path} is no folder that is there`)
  return put(dirname(target.replace(/\/+$/, '')) || '/', pack(source, basename(target), options))
}

/** Where a link in a container leads, so that a target is what the link points at. */
async function followIn(client: Client, container: string, path: string): Promise<string> {
  let at = path.startsWith('/') ? path : `/${path}`
  for (let hops = 0; hops < 32; hops++) {
    const stat = await statIn(client, container, at)
    if (!stat || !isLink(stat)) return at
    at = resolve('/', dirname(at), stat.linkTarget)
  }
  throw new CoracleError('USAGE', `too many links at ${path}`)
}

const isFolder = ({ mode }: Stat): boolean => mode >= GO_DIRECTORY
const isLink = ({ mode }: Stat): boolean => Math.floor(mode / GO_LINK) % 2 === 1

/** @returns undefined where there is no such path */
async function statIn(client: Client, container: string, path: string): Promise<Stat | undefined> {
  try {
    const answer = await client.stream('HEAD', containerPath(container, 'archive'), { query: { path } })
    answer.resume()
    return decodeStat(answer.headers['x-docker-container-path-stat'])
  } catch (error) {
    if (error instanceof CoracleError && error.status === 404) {
      // A HEAD has no body: whether it is the container that is missing, another question tells.
      await client.json('GET', containerPath(container, 'json'))
      return undefined
    }
    throw error
  }
}

function decodeStat(header: string | string[] | undefined): Stat {
  return JSON.parse(Buffer.from(String(header), 'base64').toString('utf8')) as Stat
}
