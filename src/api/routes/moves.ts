import { once } from 'node:events'
import { bodyBytes } from '../body.js'
import { sendJson } from '../answer.js'
import type { Handler, Route } from '../router.js'

/*
 * Containers that move to another daemon (engine/moves.ts), by whoever reaches both.
 *
 * At the sender `POST /coracle/containers/{id}/move` makes a running one stand still and answers with it,
 * `application/vnd.coracle.move` (engine/move-archive.ts), the move's id in the header `Coracle-Move`. The answer's bytes
 * say where they end, and the connection stays: when the client ends it, the container goes on, unless it was given away
 * by `POST /coracle/moves/{move}/give` (204, or 409 where it goes on already). `GET /coracle/moves/{move}` says what
 * became of a move: `State` is leaving, given or unknown.
 *
 * At the receiver `POST /coracle/moves` takes such bytes, answers 201 with `Id` and `Warnings` as soon as the container
 * is ready here, and reads nothing behind their end. It is paused until `POST /containers/{id}/unpause`. `GET
 * /coracle/moves` lists those that are, with the id of the move and that of the container where it comes from.
 */

const send: Handler = async ({ engine, response, params: [id], signal }) => {
  await engine.moves.send(
    id!,
    async (bytes, move) => {
      if (!response.headersSent)
        response.writeHead(200, { 'Content-Type': 'application/vnd.coracle.move', 'Coracle-Move': move })
      if (!response.write(bytes)) await once(response, 'drain', { signal })
    },
    signal,
  )
}

const give: Handler = async ({ engine, response, params: [move] }) => {
  await engine.moves.give(move!)
  response.writeHead(204).end()
}

const inspect: Handler = ({ engine, response, params: [move] }) =>
  sendJson(response, 200, { State: engine.moves.state(move!) })

const receive: Handler = async ({ engine, request, response, signal }) => {
  const { id: Id, warnings } = await engine.moves.receive(bodyBytes(request), signal)
  sendJson(response, 201, { Id, Warnings: warnings })
}

const list: Handler = ({ engine, response }) =>
  sendJson(
    response,
    200,
    engine.moves.arrived().map(({ record, move }) => ({
      Id: record.id,
      Name: record.name,
      Move: move.id,
      Container: move.container,
    })),
  )

export const MOVE_ROUTES: readonly Route[] = [
  { method: 'POST', pattern: '/coracle/containers/{id}/move', handler: send },
  { method: 'POST', pattern: '/coracle/moves/{move}/give', handler: give },
  { method: 'GET', pattern: '/coracle/moves/{move}', handler: inspect },
  { method: 'POST', pattern: '/coracle/moves', handler: receive },
  { method: 'GET', pattern: '/coracle/moves', handler: list },
]
