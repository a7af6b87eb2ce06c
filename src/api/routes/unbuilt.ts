import { CoracleError } from '../../errors.js'
import { sendJson } from '../answer.js'
import type { Handler, Route } from '../router.js'

/** The endpoints of Docker's API 1.51 that are not built yet, with the verbs they have. */
const UNBUILT = `
POST /build/cancel
POST /session
POST /grpc
GET /plugins/privileges
POST /plugins/pull
POST /plugins/create
POST /plugins/{name...}/enable
POST /plugins/{name...}/disable
POST /plugins/{name...}/upgrade
POST /plugins/{name...}/push
POST /plugins/{name...}/set
DELETE /plugins/{name...}
POST /swarm/init
POST /swarm/join`

/** What only a swarm has: Docker answers so as well where there is none. */
const SWARM = `
GET /swarm
PUT /volumes/{name}
POST /swarm/leave
POST /swarm/update
GET /swarm/unlockkey
POST /swarm/unlock
GET /nodes
GET /nodes/{id}
POST /nodes/{id}/update
DELETE /nodes/{id}
GET /services
POST /services/create
GET /services/{id}
POST /services/{id}/update
GET /services/{id}/logs
DELETE /services/{id}
GET /tasks
GET /tasks/{id}
GET /tasks/{id}/logs
GET /secrets
POST /secrets/create
GET /secrets/{id}
POST /secrets/{id}/update
DELETE /secrets/{id}
GET /configs
POST /configs/create
GET /configs/{id}
POST /configs/{id}/update
DELETE /configs/{id}`

const routes = (lines: string, refuse: (line: string) => CoracleError): Route[] =>
  lines
    .trim()
    .split('\n')
    .map((line) => {
      const [method, pattern] = line.split(' ') as [string, string]
      const handler: Handler = () => {
        throw refuse(line.replace('...', ''))
      }
      return { method, pattern, handler }
    })

/** Every other endpoint answers, so that a client learns that it asked rightly. */
export const UNBUILT_ROUTES: readonly Route[] = [
  ...routes(UNBUILT, (line) => new CoracleError('NOT_IMPLEMENTED', `${line} is not built yet`)),
  ...routes(
    SWARM,
    () => new CoracleError('NO_SWARM', 'This node is not a swarm manager, nor part of a swarm.'),
  ),
  // There is no plugin, and that is an answer.
  {
    method: 'GET',
    pattern: '/plugins/{name...}/json',
    handler: ({ params: [name] }) => {
      throw new CoracleError('NO_SUCH_PLUGIN', `plugin "${name}" not found`)
    },
  },
  { method: 'GET', pattern: '/plugins', handler: ({ response }) => sendJson(response, 200, []) },
]
