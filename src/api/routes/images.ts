import { pipeline } from 'node:stream/promises'
import type { Engine } from '../../engine/engine.js'
import { bodyBytes } from '../body.js'
import { CoracleError } from '../../errors.js'
import type { LoadProgress } from '../../image/image.js'
import { sharedSizes } from '../../image/shared-size.js'
import { AGE_AND_LABELS, hasLabels, hasPruneLabels, isOlder, parseFilters } from '../filters.js'
import { checkPlatforms } from '../platform.js'
import type { Handler, Route } from '../router.js'
import { sendJson } from '../answer.js'
import { imageShape, imageSummaryShape } from '../shapes.js'

const LIST_FILTERS = ['label', 'reference', 'dangling', 'before', 'since', 'until'] as const

/** How many containers each image has, by its id. */
export async function usersOf(engine: Engine): Promise<Map<string, number>> {
  const users = new Map<string, number>()
  for (const { imageId } of await engine.list()) users.set(imageId, (users.get(imageId) ?? 0) + 1)
  return users
}

const list: Handler = async ({ engine, response, query }) => {
  const filters = parseFilters(query.text('filters'), LIST_FILTERS)
  const users = await usersOf(engine)
  const references = filters.get('reference')
  const dangling = filters.get('dangling')
  const made = (name: 'before' | 'since'): number[] =>
    (filters.get(name) ?? []).map((each) => Date.parse(engine.images.get(each).created))
  const [before, since] = [made('before'), made('since')]
  const all = engine.images.list()
  const isStep = engine.images.buildSteps()
  const images = all
    .filter((image) => query.flag('all') || !isStep(image))
    .filter(
      ({ tags, config, created }) =>
        hasLabels(config.Labels ?? {}, filters.get('label')) &&
        (references === undefined || tags.some((tag) => references.some((each) => matches(tag, each)))) &&
        (dangling === undefined ||
          dangling.some((each) => (tags.length === 0) === /^(1|true)$/i.test(each))) &&
        before.every((time) => Date.parse(created) < time) &&
        since.every((time) => Date.parse(created) > time) &&
        isOlder(created, filters),
    )
  const shared = query.flag('shared-size') ? sharedSizes(all) : undefined
  sendJson(
    response,
    200,
    images.map((image) => imageSummaryShape(image, users, shared?.get(image.id))),
  )
}

/** Whether a tag is meant by a pattern: `busybox`, `busybox:*`, `busy*`. */
function matches(tag: string, pattern: string): boolean {
  const expression = pattern
    .slice(0, 256)
    .replace(/[.+^${}()|[\]\\]/g, '\\$&')
    .replace(/\*+/g, '[^/]*')
    .replace(/\?/g, '[^/]')
  const whole = new RegExp(`^${expression}$`)
  return whole.test(tag) || whole.test(tag.replace(/:[^:/]*$/, ''))
}

const inspect: Handler = ({ engine, response, params: [name], query }) => {
  const image = engine.images.get(name!)
  if (query.flag('manifests') && query.text('platform'))
    throw new CoracleError(
      'INVALID_ARGUMENT',
      'conflicting options: manifests and platform options cannot both be set',
    )
  checkPlatforms(query, name!)
  sendJson(response, 200, imageShape(image))
}

const history: Handler = ({ engine, response, params: [name], query }) => {
  const lines = engine.images.history(name!)
  checkPlatforms(query, name!)
  sendJson(
    response,
    200,
    lines.map(({ id, created, createdBy, comment, tags, size }) => ({
      Id: id ?? '<missing>',
      Created: Math.floor(Date.parse(created) / 1000) || 0,
      CreatedBy: createdBy,
      Tags: tags.length > 0 ? tags : null,
      Size: size,
      Comment: comment,
    })),
  )
}

const save =
  (names: (context: Parameters<Handler>[0]) => readonly string[]): Handler =>
  async (context) => {
    const wanted = names(context)
    if (wanted.length === 0) throw new CoracleError('INVALID_ARGUMENT', 'which images are to be saved?')
    for (const name of wanted) context.engine.images.get(name)
    checkPlatforms(context.query, wanted.join(', '))
    const archive = context.engine.images.save(wanted)
    context.response.writeHead(200, { 'Content-Type': 'application/x-tar' })
    await pipeline(archive, context.response)
  }

const prune: Handler = async ({ engine, response, query }) => {
  const filters = parseFilters(query.text('filters'), [...AGE_AND_LABELS, 'dangling'])
  const all = filters.get('dangling')?.some((each) => /^(0|false)$/i.test(each)) ?? false
  const { removals, bytes } = await engine.images.prune(
    (image) =>
      // Asked anew for each: a build may have come to one meanwhile.
      (all || (image.tags.length === 0 && !engine.images.buildSteps()(image))) &&
      isOlder(image.created, filters) &&
      hasPruneLabels(image.config.Labels ?? {}, filters),
  )
  sendJson(response, 200, { ImagesDeleted: removals.length > 0 ? removals : null, SpaceReclaimed: bytes })
}

const remove: Handler = async ({ engine, response, params: [name], query }) => {
  if (query.text('platforms') !== undefined) {
    engine.images.get(name!)
    checkPlatforms(query, name!)
  }
  sendJson(response, 200, await engine.images.remove(name!, query.flag('force')))
}

const tag: Handler = ({ engine, response, params: [name], query }) => {
  const repository = query.text('repo')
  if (!repository) throw new CoracleError('INVALID_ARGUMENT', 'a tag needs repo=')
  engine.images.tag(name!, `${repository}:${query.text('tag') || 'latest'}`)
  response.writeHead(201).end()
}

/** A stream of JSON objects: progress, then what was loaded; an error after the head stands in the stream. */
const load: Handler = async ({ engine, request, response, query, signal }) => {
  const quiet = query.flag('quiet')
  // Of an archive of several, the image of our own platform is taken in any case.
  checkPlatforms(query, 'what the archive holds')
  const send = (message: object): void => {
    if (!response.headersSent) response.writeHead(200, { 'Content-Type': 'application/json' })
    response.write(`${JSON.stringify(message)}\r\n`)
  }
  const onProgress = ({ phase, current, total, layer }: LoadProgress): void =>
    send({
      status: phase === 'read' ? 'Reading' : 'Loading layer',
      id: layer?.replace('sha256:', '').slice(0, 12) ?? 'archive',
      progressDetail: { current, ...(total === undefined ? {} : { total }) },
    })
  try {
    const images = await engine.images.load(bodyBytes(request), { ...(quiet ? {} : { onProgress }), signal })
    for (const { id, tags } of images)
      for (const name of tags.length > 0 ? tags : [undefined])
        send({ stream: name === undefined ? `Loaded image ID: ${id}\n` : `Loaded image: ${name}\n` })
    response.end()
  } catch (error) {
    if (!response.headersSent || signal.aborted) throw error
    const { message } = error as Error
    send({ errorDetail: { message }, error: message })
    response.end()
  }
}

export const IMAGE_ROUTES: readonly Route[] = [
  { method: 'GET', pattern: '/images/json', handler: list },
  { method: 'POST', pattern: '/images/load', handler: load },
  { method: 'POST', pattern: '/images/prune', handler: prune },
  {
    method: 'GET',
    pattern: '/images/get',
    handler: save(({ query }) => query.texts('names').flatMap((each) => each.split(','))),
  },
  { method: 'GET', pattern: '/images/{name...}/get', handler: save(({ params }) => [params[0]!]) },
  { method: 'GET', pattern: '/images/{name...}/history', handler: history },
  { method: 'GET', pattern: '/images/{name...}/json', handler: inspect },
  { method: 'POST', pattern: '/images/{name...}/tag', handler: tag },
  { method: 'DELETE', pattern: '/images/{name...}', handler: remove },
]
