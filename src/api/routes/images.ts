import { CoracleError } from '../../errors.js'
import type { LoadProgress } from '../../image/image.js'
import { hasLabels, parseFilters } from '../filters.js'
import type { Handler, Route } from '../router.js'
import { sendJson } from '../answer.js'
import { imageShape, imageSummaryShape } from '../shapes.js'

const list: Handler = async ({ engine, response, query }) => {
  const filters = parseFilters(query.text('filters'), ['label', 'reference', 'dangling'])
  const users = new Map<string, number>()
  for (const { imageId } of await engine.list()) users.set(imageId, (users.get(imageId) ?? 0) + 1)
  const references = filters.get('reference')
  const dangling = filters.get('dangling')
  const images = engine
    .images()
    .filter((image) => query.flag('all') || !engine.isBuildStep(image))
    .filter(
      ({ tags, config }) =>
        hasLabels(config.Labels ?? {}, filters.get('label')) &&
        (references === undefined || tags.some((tag) => references.some((each) => matches(tag, each)))) &&
        (dangling === undefined || dangling.some((each) => (tags.length === 0) === /^(1|true)$/i.test(each))),
    )
  sendJson(
    response,
    200,
    images.map((image) => imageSummaryShape(image, users)),
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

const inspect: Handler = ({ engine, response, params: [name] }) =>
  sendJson(response, 200, imageShape(engine.image(name!)))

const remove: Handler = async ({ engine, response, params: [name], query }) =>
  sendJson(response, 200, await engine.removeImage(name!, query.flag('force')))

const tag: Handler = ({ engine, response, params: [name], query }) => {
  const repository = query.text('repo')
  if (!repository) throw new CoracleError('INVALID_ARGUMENT', 'a tag needs repo=')
  engine.tagImage(name!, `${repository}:${query.text('tag') || 'latest'}`)
  response.writeHead(201).end()
}

/** A stream of JSON objects: progress, then what was loaded; an error after the head stands in the stream. */
const load: Handler = async ({ engine, request, response, query, signal }) => {
  const quiet = query.flag('quiet')
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
    const images = await engine.loadImages(request, { ...(quiet ? {} : { onProgress }), signal })
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
  { method: 'GET', pattern: '/images/{name...}/json', handler: inspect },
  { method: 'POST', pattern: '/images/{name...}/tag', handler: tag },
  { method: 'DELETE', pattern: '/images/{name...}', handler: remove },
]
