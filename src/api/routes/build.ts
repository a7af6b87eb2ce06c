import type { BuildRequest } from '../../engine/build/builder.js'
import { CoracleError } from '../../errors.js'
import { isOwnPlatform } from '../../image/contents.js'
import { sendJson } from '../answer.js'
import { bodyBytes, checkJson } from '../body.js'
import { isolationOf } from '../create.js'
import { isOlder, parseFilters } from '../filters.js'
import { authsOf } from '../registry-auth.js'
import type { Handler, Query, Route } from '../router.js'
import { HOST_CONFIG, type HostConfig } from '../schemas.js'

const SECRETS_HEADER = 'x-coracle-build-secrets'

/** A JSON object of texts in the query. @throws CoracleError INVALID_ARGUMENT */
function dictionary(query: Query, name: string): Record<string, string> {
  const text = query.text(name)
  if (!text) return {}
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    throw new CoracleError('INVALID_ARGUMENT', `${name} is no JSON`)
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new CoracleError('INVALID_ARGUMENT', `${name} is no object`)
  // Of a name without a value the client has none: it is as if it were not given.
  return Object.fromEntries(
    Object.entries(value).filter((pair): pair is [string, string] => typeof pair[1] === 'string'),
  )
}

/**
 * The secrets of a build, which the classic API has no place for: base64 of a JSON object, of id to base64, in a
 * header, since a query may stand in a log. @throws CoracleError INVALID_ARGUMENT
 */
function secretsOf(header: string | string[] | undefined): Map<string, Buffer> {
  if (header === undefined) return new Map()
  let value: unknown
  try {
    value = JSON.parse(Buffer.from(String(header), 'base64').toString('utf8'))
  } catch {
    // Told below, without a word of it.
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new CoracleError('INVALID_ARGUMENT', `${SECRETS_HEADER} is no object in base64`)
  return new Map(Object.entries(value).map(([id, text]) => [id, Buffer.from(String(text), 'base64')]))
}

/** @throws CoracleError INVALID_ARGUMENT */
async function ulimitsOf(text: string | undefined): Promise<BuildRequest['ulimits']> {
  if (!text || text === 'null') return undefined
  const { Ulimits } = await checkJson<HostConfig>(`{"Ulimits":${text}}`, HOST_CONFIG)
  return Ulimits?.map(({ Name, Soft, Hard }) => ({ name: Name, soft: Soft, hard: Hard }))
}

async function requestOf(query: Query): Promise<BuildRequest> {
  const hypervisor = query.text('hypervisor')
  if (hypervisor !== undefined && hypervisor !== 'auto' && hypervisor !== 'kvm' && hypervisor !== 'qemu')
    throw new CoracleError('INVALID_ARGUMENT', `unknown hypervisor: ${hypervisor.slice(0, 64)}`)
  const [dockerfile, target, network] = ['dockerfile', 'target', 'networkmode'].map((name) =>
    query.text(name),
  )
  const isolation = isolationOf({ Isolation: query.text('isolation') ?? '' })
  const memory = query.integer('memory')
  if (query.text('version') === '2')
    throw new CoracleError('NOT_IMPLEMENTED', 'BuildKit sessions are not built yet: set DOCKER_BUILDKIT=0')
  const platform = query.text('platform')
  if (!isOwnPlatform(platform))
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `platform ${platform!.slice(0, 64)}: linux/amd64 is built here`,
    )
  const extraHosts = query.texts('extrahosts').filter((host) => host !== '')
  const shmSize = query.integer('shmsize')
  const ulimits = await ulimitsOf(query.text('ulimits'))
  return {
    tags: query.texts('t').filter((tag) => tag !== ''),
    args: dictionary(query, 'buildargs'),
    labels: dictionary(query, 'labels'),
    noCache: query.flag('nocache'),
    pull: query.flag('pull'),
    ...(extraHosts.length > 0 && { extraHosts }),
    ...(shmSize ? { shmSize } : {}),
    ...(ulimits && { ulimits }),
    ...(dockerfile ? { dockerfile } : {}),
    ...(target ? { target } : {}),
    ...(network && network !== 'default' ? { network } : {}),
    ...(isolation ? { isolation } : {}),
    ...(hypervisor ? { hypervisor } : {}),
    ...(memory ? { memory } : {}),
  }
}

/** A stream of JSON objects: what a user reads, the image's id, or in its place why there is none. */
const build: Handler = async ({ engine, request, response, query, signal }) => {
  const wanted = {
    ...(await requestOf(query)),
    auths: await authsOf(request.headers),
    secrets: secretsOf(request.headers[SECRETS_HEADER]),
  }
  const quiet = query.flag('q')
  const send = (message: object): void => {
    if (!response.headersSent) response.writeHead(200, { 'Content-Type': 'application/json' })
    response.write(`${JSON.stringify(message)}\r\n`)
  }
  try {
    const say = (stream: string): void => {
      if (!quiet && stream !== '') send({ stream })
    }
    const { id } = await engine.builds.build(wanted, bodyBytes(request), say, signal)
    send({ aux: { ID: id } })
    if (quiet) send({ stream: `${id}\n` })
    say(`Successfully built ${id.replace('sha256:', '').slice(0, 12)}\n`)
    for (const tag of wanted.tags) say(`Successfully tagged ${/:[^/]*$/.test(tag) ? tag : `${tag}:latest`}\n`)
    response.end()
  } catch (error) {
    if (!response.headersSent || signal.aborted) throw error
    const { message } = error as Error
    send({ errorDetail: { message }, error: message })
    response.end()
  }
}

/** All that is old enough goes that no build uses now, `all` or not. */
const prune: Handler = async ({ engine, response, query }) => {
  const filters = parseFilters(query.text('filters'), ['until'])
  const { ids, bytes } = await engine.builds.prune((created) => isOlder(created, filters))
  sendJson(response, 200, { CachesDeleted: ids, SpaceReclaimed: bytes })
}

export const BUILD_ROUTES: readonly Route[] = [
  { method: 'POST', pattern: '/build', handler: build },
  { method: 'POST', pattern: '/build/prune', handler: prune },
]
