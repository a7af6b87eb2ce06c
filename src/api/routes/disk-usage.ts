import type { Engine } from '../../engine/engine.js'
import { CoracleError } from '../../errors.js'
import { layersSize, sharedSizes } from '../../image/shared-size.js'
import { sendJson } from '../answer.js'
import type { Handler, Route } from '../router.js'
import { imageSummaryShape, summaryShape } from '../shapes.js'
import { beside, sizesOf } from './containers.js'
import { usersOf } from './images.js'
import { volumeShape } from './volumes.js'

/** What of the answer belongs to a value of `type`; a client that asks for some gets those alone. */
const PARTS: Readonly<Record<string, (engine: Engine) => Promise<object>>> = {
  image: async (engine) => {
    // What is but a step of builds is told as their cache.
    const isStep = engine.images.buildSteps()
    const images = engine.images.list().filter((image) => !isStep(image))
    const [users, shared] = [await usersOf(engine), sharedSizes(images)]
    return {
      LayersSize: layersSize(images),
      Images: images.map((image) => imageSummaryShape(image, users, shared.get(image.id))),
    }
  },
  container: async (engine) => ({
    Containers: (await engine.list()).map((record) => ({
      ...summaryShape(record, beside(engine, record)),
      ...sizesOf(engine, record),
    })),
  }),
  volume: async (engine) => ({
    Volumes: await Promise.all(
      engine.volumes.list().map(async (volume) => volumeShape(volume, await engine.volumes.size(volume))),
    ),
  }),
  'build-cache': async (engine) => ({
    BuildCache: (await engine.builds.kept()).map(({ id, kind, description, inUse, bytes, created }) => ({
      ID: id,
      Type: kind === 'step' ? 'regular' : 'exec.cachemount',
      Description: description,
      InUse: inUse,
      Shared: false,
      Size: bytes,
      CreatedAt: created,
      LastUsedAt: null,
      UsageCount: 0,
    })),
  }),
}

const diskUsage: Handler = async ({ engine, response, query }) => {
  const types = query.texts('type')
  const unknown = types.find((type) => !Object.hasOwn(PARTS, type))
  if (unknown !== undefined)
    throw new CoracleError('INVALID_ARGUMENT', `unknown object type: ${unknown.slice(0, 64)}`)
  const wanted = types.length > 0 ? [...new Set(types)] : Object.keys(PARTS)
  const parts = await Promise.all(wanted.map((type) => PARTS[type]!(engine)))
  sendJson(response, 200, Object.assign({}, ...parts) as object)
}

export const DISK_USAGE_ROUTES: readonly Route[] = [
  { method: 'GET', pattern: '/system/df', handler: diskUsage },
]
