import type { ServerResponse } from 'node:http'
import { CoracleError } from '../../errors.js'
import { isOwnPlatform } from '../../image/contents.js'
import type { PullProgress } from '../../image/registry/pull.js'
import type { PushProgress } from '../../image/registry/push.js'
import { parseReference } from '../../image/reference.js'
import { sendJson } from '../answer.js'
import { parseFilters } from '../filters.js'
import { bodyBytes, jsonBody } from '../body.js'
import { checkPlatforms } from '../platform.js'
import { authOf, authShape } from '../registry-auth.js'
import type { Handler, Route } from '../router.js'
import { AUTH_BODY, type AuthBody } from '../schemas.js'

/** Milliseconds between two messages about one layer's bytes. */
const INTERVAL = 100
const BAR = 50

/** A stream of JSON messages in Docker's form; it begins with the first of them. */
class Messages {
  readonly #response: ServerResponse
  readonly #last = new Map<string, number>()

  constructor(response: ServerResponse) {
    this.#response = response
  }

  get begun(): boolean {
    return this.#response.headersSent
  }

  send(message: object): void {
    if (!this.begun) this.#response.writeHead(200, { 'Content-Type': 'application/json' })
    this.#response.write(`${JSON.stringify(message)}\r\n`)
  }

  /** A layer's new state. */
  state(status: string, layer: string, more: object = {}): void {
    this.#last.delete(layer)
    this.send({ status, progressDetail: {}, id: short(layer), ...more })
  }

  /** A layer's bytes: not too often, and not to a client that does not keep up. */
  bytes(status: string, layer: string, current: number, total: number): void {
    const now = Date.now()
    if (now - (this.#last.get(layer) ?? 0) < INTERVAL || this.#response.writableNeedDrain) return
    this.#last.set(layer, now)
    const progress = bar(current, total)
    this.send({ status, progressDetail: { current, total }, progress, id: short(layer) })
  }

  /** An error after the head, in the stream. */
  fail(error: unknown): void {
    const { message } = error as Error
    this.send({ errorDetail: { message }, error: message })
  }

  end(): void {
    this.#response.end()
  }
}

const short = (digest: string): string => digest.replace('sha256:', '').slice(0, 12)

/** Docker's bar, for clients that print it as it is. */
function bar(current: number, total: number): string {
  const full = Math.min(BAR, Math.floor((current / Math.max(total, 1)) * BAR))
  const line = `${'='.repeat(Math.max(0, full - 1))}>`.padEnd(BAR)
  const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(2)}MB`
  return `[${line}] ${megabytes(current)}/${megabytes(total)}`
}

const PULL_STATES: Partial<Record<PullProgress['phase'], string>> = {
  wait: 'Pulling fs layer',
  exists: 'Already exists',
  downloaded: 'Download complete',
  done: 'Pull complete',
}

/** Of an archive in the body. The daemon fetches nothing from addresses: it may reach what its client may not. */
const importImage: Handler = async ({ engine, request, response, query, signal }) => {
  if (query.text('fromSrc') !== '-')
    throw new CoracleError(
      'INVALID_ARGUMENT',
      'an image comes from a registry (fromImage) or from an archive in the body (fromSrc=-), from no other address: fetch that, and import the file',
    )
  const platform = query.text('platform')
  if (!isOwnPlatform(platform))
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `platform ${platform!.slice(0, 64)}: linux/amd64 is what runs here`,
    )
  const repository = query.text('repo')
  const tag = query.text('tag')
  const comment = query.text('message')
  const { id } = await engine.images.import(bodyBytes(request), {
    ...(repository ? { name: tag ? `${repository}:${tag}` : repository } : {}),
    ...(comment ? { comment } : {}),
    changes: query.texts('changes'),
    signal,
  })
  const messages = new Messages(response)
  messages.send({ status: id })
  messages.end()
}

const pull: Handler = async (context) => {
  const { engine, request, response, query, signal } = context
  const from = query.text('fromImage')
  if (!from) return importImage(context)
  const tag = query.text('tag') ?? ''
  const auth = await authOf(request.headers)
  const platform = query.text('platform') ?? ''
  const messages = new Messages(response)
  const pullOne = async (name: string): Promise<void> => {
    const { repository, tag: shownTag, digest } = parseReference(name)
    const familiar = repository.replace(/^docker\.io\//, '')
    const { changed, digest: found } = await engine.images.pull(name, {
      auth,
      platform,
      signal,
      onResolved: () => messages.send({ status: `Pulling from ${familiar}`, id: digest ?? shownTag }),
      onProgress: ({ layer, phase, current = 0, total = 0 }) => {
        if (phase === 'download') messages.bytes('Downloading', layer, current, total)
        else if (phase === 'convert') messages.bytes('Extracting', layer, current, total)
        else messages.state(PULL_STATES[phase]!, layer)
      },
    })
    messages.send({ status: `Digest: ${found}` })
    messages.send({
      status: changed
        ? `Status: Downloaded newer image for ${name}`
        : `Status: Image is up to date for ${name}`,
    })
  }
  try {
    // Without a tag all are meant, unless the name says which.
    const all = tag === '' && !from.includes('@') && !/:[^/]*$/.test(from)
    const tags = all ? await engine.images.remoteTags(from, { auth, signal }) : []
    if (all && tags.length === 0)
      throw new CoracleError('REGISTRY_NOT_FOUND', `${from.slice(0, 256)} has no tags`)
    const join = tag.startsWith('sha256:') ? '@' : ':'
    const names = all ? tags.map((each) => `${from}:${each}`) : [tag === '' ? from : `${from}${join}${tag}`]
    for (const name of names) await pullOne(name)
  } catch (error) {
    if (!messages.begun || signal.aborted) throw error
    messages.fail(error)
  }
  messages.end()
}

const PUSH_STATES: Partial<Record<PushProgress['phase'], string>> = {
  wait: 'Preparing',
  exists: 'Layer already exists',
  done: 'Pushed',
}

const push: Handler = async ({ engine, request, response, params: [name], query, signal }) => {
  const { repository } = parseReference(name!)
  const auth = await authOf(request.headers)
  // Docker's own client names the tag beside the repository, others within it; without one it is all of them.
  const [, within] = /:([^:/@]+)$/.exec(name!) ?? []
  const tag = query.text('tag') || within
  const tags = tag === undefined ? tagsOf(engine.images.list(), repository) : [tag]
  if (tags.length === 0)
    throw new CoracleError('NO_SUCH_IMAGE', `An image does not exist locally with the tag: ${name!}`)
  checkPlatforms(query, name!)
  for (const each of tags) engine.images.get(`${repository}:${each}`)
  const messages = new Messages(response)
  messages.send({ status: `The push refers to repository [${repository}]` })
  try {
    for (const each of tags) {
      const { digest, size } = await engine.images.push(`${repository}:${each}`, {
        auth,
        signal,
        onProgress: ({ layer, phase, current = 0, total = 0, from }) => {
          if (phase === 'upload') messages.bytes('Pushing', layer, current, total)
          else if (phase === 'mounted') messages.state(`Mounted from ${from}`, layer)
          else messages.state(PUSH_STATES[phase]!, layer)
        },
      })
      messages.send({ status: `${each}: digest: ${digest} size: ${size}` })
      messages.send({ progressDetail: {}, aux: { Tag: each, Digest: digest, Size: size } })
    }
  } catch (error) {
    if (signal.aborted) throw error
    messages.fail(error)
  }
  messages.end()
}

/** The tags by which images of a repository are here. */
function tagsOf(images: readonly { readonly tags: readonly string[] }[], repository: string): string[] {
  return images
    .flatMap(({ tags }) => tags.map(parseReference))
    .flatMap((reference) => (reference.repository === repository && reference.tag ? [reference.tag] : []))
}

const SEARCH_FILTERS = ['is-official', 'is-automated', 'stars'] as const

const search: Handler = async ({ engine, response, query, signal }) => {
  const term = query.text('term') ?? ''
  const limit = query.integer('limit') ?? 25
  if (term === '' || term.length > 256)
    throw new CoracleError('INVALID_ARGUMENT', 'a search needs term=, of up to 256 characters')
  if (limit < 1 || limit > 100) throw new CoracleError('INVALID_ARGUMENT', 'limit is from 1 to 100')
  const filters = parseFilters(query.text('filters'), SEARCH_FILTERS)
  const [official] = filters.get('is-official') ?? []
  const stars = Math.max(0, ...(filters.get('stars') ?? []).map(Number))
  // Nothing is automated any more.
  const none = filters.get('is-automated')?.includes('true') ?? false
  const found = none ? [] : await engine.images.search(term, limit, signal)
  sendJson(
    response,
    200,
    found
      .filter(
        (image) =>
          (official === undefined || (official === 'true') === image.official) && image.stars >= stars,
      )
      .map(({ name, description, stars: count, official: is }) => ({
        ...{ name, description, star_count: count },
        ...{ is_official: is, is_automated: false },
      })),
  )
}

const login: Handler = async ({ engine, request, response, signal }) => {
  const body = await jsonBody<AuthBody>(request, AUTH_BODY)
  await engine.images.login(body.serveraddress ?? '', { auth: authShape(body), signal })
  sendJson(response, 200, { Status: 'Login Succeeded', IdentityToken: body.identitytoken ?? '' })
}

const describe: Handler = async ({ engine, request, response, params: [name], signal }) => {
  const auth = await authOf(request.headers)
  const { mediaType, digest, size, platforms } = await engine.images.describe(name!, { auth, signal })
  sendJson(response, 200, { Descriptor: { mediaType, digest, size }, Platforms: platforms })
}

export const REGISTRY_ROUTES: readonly Route[] = [
  { method: 'POST', pattern: '/images/create', handler: pull },
  { method: 'POST', pattern: '/images/{name...}/push', handler: push },
  { method: 'GET', pattern: '/images/search', handler: search },
  { method: 'GET', pattern: '/distribution/{name...}/json', handler: describe },
  { method: 'POST', pattern: '/auth', handler: login },
]
