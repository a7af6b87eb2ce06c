import type { UpdateRequest } from '../../engine/update.js'
import { sendJson } from '../answer.js'
import { jsonBody } from '../body.js'
import { cgroupLimitsOf, nanoCpusOf, restartOf } from '../create.js'
import type { Handler, Route } from '../router.js'
import { UPDATE_BODY, type UpdateBody } from '../schemas.js'
import { refuseFields } from '../unhonoured.js'

/** Docker's client sends all fields, those that were not given as zero or empty. */
function updateRequest(body: UpdateBody): UpdateRequest {
  refuseFields('an update', body)
  const cgroupLimits = cgroupLimitsOf(body)
  const nanoCpus = nanoCpusOf(body)
  const restart = body.RestartPolicy?.Name
    ? (restartOf({ RestartPolicy: body.RestartPolicy }) ?? { name: 'no' as const, maximumRetryCount: 0 })
    : undefined
  return {
    ...(body.Memory && { memory: body.Memory }),
    ...(nanoCpus && { nanoCpus }),
    ...(body.CpuShares && { cpuShares: body.CpuShares }),
    ...(body.PidsLimit && { pidsLimit: body.PidsLimit }),
    ...(cgroupLimits && { cgroupLimits }),
    ...(restart && { restart }),
  }
}

const update: Handler = async ({ engine, request, response, params: [id] }) => {
  const Warnings = await engine.update(id!, updateRequest(await jsonBody<UpdateBody>(request, UPDATE_BODY)))
  sendJson(response, 200, { Warnings })
}

export const UPDATE_ROUTES: readonly Route[] = [
  { method: 'POST', pattern: '/containers/{id}/update', handler: update },
]
