import { CoracleError } from '../../errors.js'
import type { SavedContainer, SnapshotSummary } from '../../engine/snapshots.js'
import { sendJson } from '../answer.js'
import type { Handler, Route } from '../router.js'

/*
 * What Docker has nothing for: saved containers. `GET /coracle/snapshots` lists them, `GET` and
 * `DELETE /coracle/snapshots/{name}` are of one, `POST /coracle/containers/{id}/snapshots?name=` makes one. A container
 * is created from one by `HostConfig.Annotations["coracle.from"]`, and `POST /coracle/containers/{id}/clone?name=` does
 * both at once, and starts it.
 */

const shape = ({ name, created, container }: SavedContainer): object => ({
  Name: name,
  Created: created,
  Container: container.name,
  ContainerID: container.id,
  Image: container.request.image,
  ImageID: container.imageId,
  Memory: container.spec.memory,
  Tty: container.spec.tty,
  OpenStdin: container.spec.openStdin,
})

const summary = ({ name, saved, bytes }: SnapshotSummary): object =>
  saved instanceof CoracleError
    ? { Name: name, Size: bytes, Error: saved.message }
    : { ...shape(saved), Size: bytes, Error: '' }

const list: Handler = ({ engine, response }) => sendJson(response, 200, engine.saves.list().map(summary))

const inspect: Handler = ({ engine, response, params: [name] }) =>
  sendJson(response, 200, shape(engine.saves.read(name!)))

const create: Handler = async ({ engine, response, params: [id], query, signal }) =>
  sendJson(response, 201, shape(await engine.saves.take(id!, query.text('name') || undefined, signal)))

const clone: Handler = async ({ engine, response, params: [id], query, signal }) => {
  const name = query.text('name')
  const { id: Id, warnings } = await engine.saves.clone(id!, name ? { name } : {}, signal)
  sendJson(response, 201, { Id, Warnings: warnings })
}

const remove: Handler = async ({ engine, response, params: [name], query }) => {
  await engine.saves.remove(name!, query.flag('force'))
  response.writeHead(204).end()
}

export const SNAPSHOT_ROUTES: readonly Route[] = [
  { method: 'GET', pattern: '/coracle/snapshots', handler: list },
  { method: 'GET', pattern: '/coracle/snapshots/{name}', handler: inspect },
  { method: 'DELETE', pattern: '/coracle/snapshots/{name}', handler: remove },
  { method: 'POST', pattern: '/coracle/containers/{id}/snapshots', handler: create },
  { method: 'POST', pattern: '/coracle/containers/{id}/clone', handler: clone },
]
