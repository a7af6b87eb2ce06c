import { isAnonymous, type VolumeState } from '../../engine/volumes.js'
import { sendJson } from '../answer.js'
import { jsonBody } from '../body.js'
import { type Filters, hasLabels, hasPruneLabels, parseFilters } from '../filters.js'
import type { Handler, Route } from '../router.js'
import { VOLUME_BODY, type VolumeBody } from '../schemas.js'
import { refuseFields } from '../unhonoured.js'

const FILTERS = ['dangling', 'driver', 'label', 'name'] as const

const isTrue = (value: string): boolean => /^(true|1)$/.test(value)

function passes({ record, users }: VolumeState, filters: Filters): boolean {
  const any = (name: string, test: (value: string) => boolean): boolean =>
    filters.get(name)?.some(test) ?? true
  return (
    any('name', (value) => record.name.includes(value)) &&
    any('driver', (value) => value === 'local') &&
    any('dangling', (value) => isTrue(value) === (users.length === 0)) &&
    hasLabels(record.labels, filters.get('label'))
  )
}

/** A Volume of Docker's API. @param size bytes, where they were counted */
export function volumeShape({ record, mountpoint, users }: VolumeState, size?: number): object {
  const some = (values: Readonly<Record<string, string>>): object | null =>
    Object.keys(values).length > 0 ? values : null
  return {
    CreatedAt: record.created,
    Driver: 'local',
    Labels: some(record.labels),
    Mountpoint: mountpoint,
    Name: record.name,
    Options: some(record.options),
    Scope: 'local',
    ...(size === undefined ? {} : { UsageData: { Size: size, RefCount: users.length } }),
  }
}

const list: Handler = ({ engine, response, query }) => {
  const filters = parseFilters(query.text('filters'), FILTERS)
  const volumes = engine.volumes.list().filter((volume) => passes(volume, filters))
  sendJson(response, 200, { Volumes: volumes.map((volume) => volumeShape(volume)), Warnings: null })
}

const inspect: Handler = ({ engine, response, params: [name] }) =>
  sendJson(response, 200, volumeShape(engine.volumes.get(name!)))

const create: Handler = async ({ engine, request, response }) => {
  const body = await jsonBody<VolumeBody>(request, VOLUME_BODY)
  refuseFields('a volume', body)
  const volume = await engine.volumes.create({
    ...(body.Name ? { name: body.Name } : {}),
    ...(body.Driver ? { driver: body.Driver } : {}),
    labels: body.Labels ?? {},
    options: body.DriverOpts ?? {},
  })
  sendJson(response, 201, volumeShape(volume))
}

const remove: Handler = async ({ engine, response, params: [name], query }) => {
  await engine.volumes.remove(name!, query.flag('force'))
  response.writeHead(204).end()
}

/** Without `all=true` those alone that nobody named. */
const prune: Handler = async ({ engine, response, query }) => {
  const filters = parseFilters(query.text('filters'), ['all', 'label', 'label!'])
  const all = filters.get('all')?.some(isTrue) ?? false
  const { names, bytes } = await engine.volumes.prune(
    (record) => (all || isAnonymous(record)) && hasPruneLabels(record.labels, filters),
  )
  sendJson(response, 200, { VolumesDeleted: names, SpaceReclaimed: bytes })
}

export const VOLUME_ROUTES: readonly Route[] = [
  { method: 'GET', pattern: '/volumes', handler: list },
  { method: 'POST', pattern: '/volumes/create', handler: create },
  { method: 'POST', pattern: '/volumes/prune', handler: prune },
  { method: 'GET', pattern: '/volumes/{name}', handler: inspect },
  { method: 'DELETE', pattern: '/volumes/{name}', handler: remove },
]
