import { CoracleError } from '../../errors.js'
import type { Adapter } from '../../engine/adapters.js'
import { sendJson } from '../answer.js'
import type { Handler, Route } from '../router.js'

/*
 * What Docker has nothing for: the host's network adapters with SR-IOV. `GET /coracle/sriov` lists them,
 * `POST /coracle/sriov/{adapter}?count=N` makes virtual functions, `DELETE /coracle/sriov/{adapter}` takes them away.
 */

const shape = ({ interface: name, address, driver, total, functions, holders }: Adapter): object => ({
  Interface: name ?? '',
  Address: address,
  Driver: driver ?? '',
  Total: total,
  Functions: functions.map((each) => ({
    Index: each.index,
    Address: each.address,
    Driver: each.driver ?? '',
    Group: each.group ?? null,
    Container: holders.get(each.address) ?? '',
  })),
})

const list: Handler = async ({ engine, response }) =>
  sendJson(response, 200, (await engine.adapters.list()).map(shape))

const create: Handler = async ({ engine, response, params, query }) => {
  const count = query.integer('count')
  if (count === undefined) throw new CoracleError('INVALID_ARGUMENT', 'count says how many virtual functions')
  sendJson(response, 201, shape(await engine.adapters.create(params[0]!, count)))
}

const remove: Handler = async ({ engine, response, params }) => {
  await engine.adapters.delete(params[0]!)
  response.writeHead(204).end()
}

export const ADAPTER_ROUTES: readonly Route[] = [
  { method: 'GET', pattern: '/coracle/sriov', handler: list },
  { method: 'POST', pattern: '/coracle/sriov/{adapter}', handler: create },
  { method: 'DELETE', pattern: '/coracle/sriov/{adapter}', handler: remove },
]
