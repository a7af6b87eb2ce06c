import { once } from 'node:events'
import { sendJson } from '../answer.js'
import type { Handler, Route } from '../router.js'

/*
 * Containers that move to another daemon. `POST /coracle/containers/{id}/move` makes a running one stand still and
 * answers with it, `application/vnd.coracle.move` (engine/move-archive.ts). The answer's bytes say where they end, and
 * the connection stays: when the client ends it, the container goes on, unless it was removed before. `POST
 * /coracle/moves` takes such bytes, answers 201 with `Id` and `Warnings` as soon as the container runs here, and reads
 * nothing behind their end.
 */

const send: Handler = async ({ engine, response, params: [id], signal }) => {
  await engine.moves.send(
    id!,
    async (bytes) => {
      if (!response.headersSent) response.writeHead(200, { 'Content-Type': 'application/vnd.coracle.move' })
      if (!response.write(bytes)) await once(response, 'drain', { signal })
    },
    signal,
  )
}

const receive: Handler = async ({ engine, request, response }) => {
  const { id: Id, warnings } = await engine.moves.receive(request as AsyncIterable<Buffer>)
  sendJson(response, 201, { Id, Warnings: warnings })
}

export const MOVE_ROUTES: readonly Route[] = [
  { method: 'POST', pattern: '/coracle/containers/{id}/move', handler: send },
  { method: 'POST', pattern: '/coracle/moves', handler: receive },
]
