import { CoracleError } from '../../errors.js'
import { isOwnPlatform } from '../../image/contents.js'
import { writtenBytes } from '../../isolation/written.js'
import type { ContainerRecord } from '../../engine/record.js'
import type { Engine } from '../../engine/engine.js'
import type { WaitCondition } from '../../engine/runner.js'
import { jsonBody } from '../body.js'
import { createRequest } from '../create.js'
import {
  CONTAINER_FILTERS,
  AGE_AND_LABELS,
  hasPruneLabels,
  isOlder,
  parseFilters,
  passes,
} from '../filters.js'
import type { Handler, Query, Route } from '../router.js'
import { CREATE_BODY, type CreateBody } from '../schemas.js'
import { sendJson } from '../answer.js'
import { type Beside, containerShape, summaryShape } from '../shapes.js'

/** To Docker's clients a 404 here means that the image is missing: they would fetch it, and try again. */
function notTheImage(error: unknown): never {
  if (error instanceof CoracleError && /^NO_SUCH_(CONTAINER|NETWORK)$/.test(error.code))
    throw new CoracleError('INVALID_ARGUMENT', error.message, { cause: error })
  throw error
}

const create: Handler = async ({ engine, request, response, query }) => {
  const body = await jsonBody<CreateBody>(request, CREATE_BODY)
  const platform = query.text('platform')
  if (!isOwnPlatform(platform))
    throw new CoracleError(
      'NO_SUCH_IMAGE',
      `no image of platform ${platform!.slice(0, 64)}: this host runs linux/amd64`,
    )
  const { id, warnings } = await engine
    .create(createRequest(body, query.text('name') || undefined))
    .catch(notTheImage)
  sendJson(response, 201, { Id: id, Warnings: warnings })
}

/** What of a container is known beside its record. */
export const beside = (engine: Engine, record: ContainerRecord): Beside => ({
  place: engine.place(record),
  restarting: engine.isRestarting(record.id),
  health: engine.health(record.id),
})

const list: Handler = async ({ engine, response, query }) => {
  const filters = parseFilters(query.text('filters'), CONTAINER_FILTERS)
  const limit = query.integer('limit') ?? 0
  const records = await engine.list()
  const restarting = (record: ContainerRecord): boolean => engine.isRestarting(record.id)
  const all = query.flag('all') || limit > 0 || filters.has('status') || filters.has('exited')
  const shown = records.filter(
    (record) =>
      (all || record.state.status === 'running' || restarting(record)) &&
      passes(record, filters, records, beside(engine, record)),
  )
  sendJson(
    response,
    200,
    (limit > 0 ? shown.slice(0, limit) : shown).map((record) => ({
      ...summaryShape(record, beside(engine, record)),
      ...(query.flag('size') && sizesOf(engine, record)),
    })),
  )
}

/** Bytes of what a container wrote, and of all of its files: what `size=1` asks for. @throws CoracleError NO_SUCH_IMAGE */
export const sizesOf = (engine: Engine, record: ContainerRecord): { SizeRw: number; SizeRootFs: number } => {
  const SizeRw = writtenBytes(record.spec)
  return { SizeRw, SizeRootFs: SizeRw + engine.images.get(record.imageId).size }
}

const inspect: Handler = async ({ engine, response, params: [id], query }) => {
  const record = await engine.inspect(id!)
  const sizes = query.flag('size') && sizesOf(engine, record)
  sendJson(response, 200, { ...containerShape(record, beside(engine, record)), ...sizes })
}

const start: Handler = async ({ engine, response, params: [id] }) => {
  // Not tied to the client: a container whose start was asked for starts.
  await engine.start(id!)
  response.writeHead(204).end()
}

const stopOptions = (query: Query): { timeout?: number; signal?: string } => {
  const timeout = query.integer('t')
  const signal = query.text('signal')
  return { ...(timeout === undefined ? {} : { timeout }), ...(signal ? { signal } : {}) }
}

const stop: Handler = async ({ engine, response, params: [id], query }) => {
  await engine.stop(id!, stopOptions(query))
  response.writeHead(204).end()
}

const restart: Handler = async ({ engine, response, params: [id], query }) => {
  await engine.restart(id!, stopOptions(query))
  response.writeHead(204).end()
}

const kill: Handler = async ({ engine, response, params: [id], query }) => {
  await engine.kill(id!, query.text('signal') ?? '')
  response.writeHead(204).end()
}

const pause: Handler = async ({ engine, response, params: [id] }) => {
  await engine.pause(id!)
  response.writeHead(204).end()
}

const unpause: Handler = async ({ engine, response, params: [id] }) => {
  await engine.unpause(id!)
  response.writeHead(204).end()
}

const resize: Handler = async ({ engine, response, params: [id], query }) => {
  const width = query.integer('w') ?? 0
  const height = query.integer('h') ?? 0
  if (!(width >= 0 && width <= 65_535 && height >= 0 && height <= 65_535))
    throw new CoracleError('INVALID_ARGUMENT', 'a terminal has from 0 to 65535 columns and rows')
  await engine.resize(id!, width, height)
  response.writeHead(200).end()
}

const rename: Handler = async ({ engine, response, params: [id], query }) => {
  await engine.rename(id!, query.text('name') ?? '')
  response.writeHead(204).end()
}

const prune: Handler = async ({ engine, response, query }) => {
  const filters = parseFilters(query.text('filters'), AGE_AND_LABELS)
  const { ids, bytes } = await engine.prune(
    ({ created, request }) => isOlder(created, filters) && hasPruneLabels(request.labels ?? {}, filters),
  )
  sendJson(response, 200, { ContainersDeleted: ids, SpaceReclaimed: bytes })
}

const remove: Handler = async ({ engine, response, params: [id], query }) => {
  await engine.remove(id!, query.flag('force'), query.flag('v'))
  response.writeHead(204).end()
}

const CONDITIONS: readonly string[] = ['not-running', 'next-exit', 'removed'] satisfies WaitCondition[]

const wait: Handler = async ({ engine, response, params: [id], query, signal }) => {
  const condition = query.text('condition') || 'not-running'
  if (!CONDITIONS.includes(condition))
    throw new CoracleError('INVALID_ARGUMENT', `invalid condition: "${condition.slice(0, 64)}"`)
  const { done } = await engine.wait(id!, condition as WaitCondition, signal)
  // The client starts the container only when it has this answer's head.
  response.writeHead(200, { 'Content-Type': 'application/json' })
  response.flushHeaders()
  const { exitCode, error } = await done
  response.end(
    `${JSON.stringify({ StatusCode: exitCode, ...(error === undefined ? {} : { Error: { Message: error } }) })}\n`,
  )
}

export const CONTAINER_ROUTES: readonly Route[] = [
  { method: 'POST', pattern: '/containers/create', handler: create },
  { method: 'GET', pattern: '/containers/json', handler: list },
  { method: 'GET', pattern: '/containers/{id}/json', handler: inspect },
  { method: 'POST', pattern: '/containers/{id}/start', handler: start },
  { method: 'POST', pattern: '/containers/{id}/stop', handler: stop },
  { method: 'POST', pattern: '/containers/{id}/restart', handler: restart },
  { method: 'POST', pattern: '/containers/{id}/kill', handler: kill },
  { method: 'POST', pattern: '/containers/{id}/pause', handler: pause },
  { method: 'POST', pattern: '/containers/{id}/unpause', handler: unpause },
  { method: 'POST', pattern: '/containers/{id}/wait', handler: wait },
  { method: 'POST', pattern: '/containers/{id}/resize', handler: resize },
  { method: 'POST', pattern: '/containers/{id}/rename', handler: rename },
  { method: 'POST', pattern: '/containers/prune', handler: prune },
  { method: 'DELETE', pattern: '/containers/{id}', handler: remove },
]
