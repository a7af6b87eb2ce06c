import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'
import { CoracleError, ERRORS } from '../errors.js'
import type { Engine } from '../engine/engine.js'
import { skipRest } from './body.js'
import { HEADERS, errorShape, headOf, sendJson } from './answer.js'
import { Router } from './router.js'
import { refuseParameters } from './unhonoured.js'
import { ARCHIVE_ROUTES } from './routes/archive.js'
import { ADAPTER_ROUTES } from './routes/adapters.js'
import { BUILD_ROUTES } from './routes/build.js'
import { CONTAINER_ROUTES } from './routes/containers.js'
import { EVENT_ROUTES } from './routes/events.js'
import { EXEC_ROUTES } from './routes/exec.js'
import { IMAGE_ROUTES } from './routes/images.js'
import { MOVE_ROUTES } from './routes/moves.js'
import { NETWORK_ROUTES } from './routes/networks.js'
import { REGISTRY_ROUTES } from './routes/registry.js'
import { SNAPSHOT_ROUTES } from './routes/snapshots.js'
import { STATS_ROUTES } from './routes/stats.js'
import { UPDATE_ROUTES } from './routes/update.js'
import { STREAM_ROUTES } from './routes/streams.js'
import { DISK_USAGE_ROUTES } from './routes/disk-usage.js'
import { SYSTEM_ROUTES } from './routes/system.js'
import { VOLUME_ROUTES } from './routes/volumes.js'
import { UNBUILT_ROUTES } from './routes/unbuilt.js'

/** Bytes of a request's head at most. */
const MAXIMUM_HEAD = 64 * 1024

export interface ApiServer extends Server {
  /** Resolves when the requests that are being answered now are done with, those of clients that went among them. */
  idle(): Promise<void>
}

/**
 * An HTTP server of Docker's Engine API over an engine. It does not listen: the caller says where, or hands it
 * connections by `server.emit('connection', socket)`.
 */
export function createApiServer(engine: Engine): ApiServer {
  const router = new Router([
    ...ADAPTER_ROUTES,
    ...SNAPSHOT_ROUTES,
    ...MOVE_ROUTES,
    ...SYSTEM_ROUTES,
    ...DISK_USAGE_ROUTES,
    ...STREAM_ROUTES,
    ...CONTAINER_ROUTES,
    ...ARCHIVE_ROUTES,
    ...BUILD_ROUTES,
    ...REGISTRY_ROUTES,
    ...EXEC_ROUTES,
    ...EVENT_ROUTES,
    ...NETWORK_ROUTES,
    ...STATS_ROUTES,
    ...UPDATE_ROUTES,
    ...IMAGE_ROUTES,
    ...VOLUME_ROUTES,
    ...UNBUILT_ROUTES,
  ])
  const server = createServer({
    maxHeaderSize: MAXIMUM_HEAD,
    // An upload may take longer than the default of 300 s.
    requestTimeout: 0,
    keepAliveTimeout: 60_000,
  })
  const running = new Set<Promise<void>>()
  const track = (work: Promise<void>): void => {
    running.add(work)
    void work.finally(() => running.delete(work))
  }
  server.on('request', (request, response) => track(answer(router, engine, request, response)))
  server.on('upgrade', (request, socket, head) => track(takeOver(router, engine, request, socket, head)))
  server.on('clientError', (_error, socket) => {
    if (socket.writable) socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n')
    else socket.destroy()
  })
  return Object.assign(server, { idle: async () => void (await Promise.all(running)) })
}

async function answer(
  router: Router,
  engine: Engine,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  for (const [name, value] of Object.entries(HEADERS)) response.setHeader(name, value)
  const gone = new AbortController()
  response.on('close', () => {
    if (!response.writableFinished) gone.abort(new Error('the client is gone'))
  })
  response.on('error', () => undefined)
  try {
    const { route, params, query } = router.match(request.method!, request.url!)
    if (!route.handler) throw new CoracleError('NOT_FOUND', 'page not found')
    refuseParameters(`${route.method} ${route.pattern}`, query)
    await route.handler({ engine, request, response, params, query, signal: gone.signal })
  } catch (error) {
    if (response.destroyed || gone.signal.aborted) return
    const { status, body } = errorShape(error)
    if (response.headersSent) {
      // The status is out: the answer is cut off instead.
      response.destroy()
      return
    }
    if (status === ERRORS.NOT_MODIFIED.status) {
      response.writeHead(status).end()
      return
    }
    sendJson(response, status, body)
  } finally {
    if (!request.complete) skipRest(request)
  }
}

async function takeOver(
  router: Router,
  engine: Engine,
  request: IncomingMessage,
  socket: Duplex,
  head: Buffer,
): Promise<void> {
  socket.on('error', () => socket.destroy())
  const gone = new AbortController()
  socket.on('close', () => gone.abort(new Error('the client is gone')))
  try {
    const { route, params, query } = router.match(request.method!, request.url!)
    if (!route.upgrade) {
      if (!route.handler) throw new CoracleError('NOT_FOUND', 'page not found')
      throw new CoracleError('NOT_IMPLEMENTED', 'this endpoint cannot be upgraded')
    }
    await route.upgrade({ engine, request, socket, head, params, query, signal: gone.signal })
  } catch (error) {
    const { status, body } = errorShape(error)
    const text = JSON.stringify(body)
    socket.end(
      headOf(`${status} Error`, {
        'Content-Type': 'application/json',
        'Content-Length': String(Buffer.byteLength(text)),
        Connection: 'close',
      }) + text,
    )
    socket.resume()
  }
}
