import { CoracleError } from '../errors.js'
import type { ContainerRecord } from '../engine/record.js'
import { exposedPorts } from './network-settings.js'
import { type Beside, statusOf } from './shapes.js'

/** Filters of a list request: a name, and the values any of which may match. */
export type Filters = ReadonlyMap<string, readonly string[]>

/**
 * Reads `filters=`: `{"label":{"a=b":true}}`, or the older `{"label":["a=b"]}`.
 * @throws CoracleError INVALID_ARGUMENT
 */
export function parseFilters(text: string | undefined, known: readonly string[]): Filters {
  const filters = new Map<string, string[]>()
  if (!text) return filters
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    throw new CoracleError('INVALID_ARGUMENT', 'invalid filter: not JSON')
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new CoracleError('INVALID_ARGUMENT', 'invalid filter: not an object')
  for (const [name, given] of Object.entries(value)) {
    if (!known.includes(name))
      throw new CoracleError('INVALID_ARGUMENT', `invalid filter '${name.slice(0, 64)}'`)
    const values: unknown[] = Array.isArray(given)
      ? given
      : typeof given === 'object' && given !== null
        ? Object.entries(given)
            .filter(([, on]) => on === true)
            .map(([key]) => key)
        : [undefined]
    if (!values.every((each) => typeof each === 'string'))
      throw new CoracleError('INVALID_ARGUMENT', `invalid filter '${name}': its values must be strings`)
    filters.set(name, values)
  }
  return filters
}

/** Whether all of `label`'s wanted labels (`key` or `key=value`) are there. */
export function hasLabels(
  labels: Readonly<Record<string, string>>,
  wanted: readonly string[] | undefined,
): boolean {
  return (wanted ?? []).every((each) => {
    const at = each.indexOf('=')
    const key = at < 0 ? each : each.slice(0, at)
    return Object.hasOwn(labels, key) && (at < 0 || labels[key] === each.slice(at + 1))
  })
}

export const CONTAINER_FILTERS = [
  'status',
  'label',
  'id',
  'name',
  'ancestor',
  'exited',
  'health',
  'network',
  'before',
  'since',
  'volume',
  'publish',
  'expose',
  'is-task',
  'isolation',
] as const

/** Whether a container passes all filters. @throws CoracleError INVALID_ARGUMENT for ports that are none */
export function passes(
  record: ContainerRecord,
  filters: Filters,
  all: readonly ContainerRecord[],
  { place, health }: Beside,
): boolean {
  const any = (name: string, test: (value: string) => boolean): boolean =>
    filters.get(name)?.some(test) ?? true
  const created = (reference: string): string | undefined =>
    all.find(({ id, name }) => name === reference || id.startsWith(reference))?.created
  return (
    any('status', (value) => statusOf(record.state) === value) &&
    any('health', (value) => (health?.status ?? 'none') === value) &&
    any('network', (value) =>
      Object.keys(record.request.endpoints ?? {}).some(
        (name) =>
          name === value ||
          place.endpoints.find(({ network }) => network.name === name)?.network.id === value,
      ),
    ) &&
    any('publish', (value) =>
      (place.attachment?.ports ?? []).some((each) => isAmong(value, each.containerPort, each.protocol)),
    ) &&
    any('expose', (value) =>
      exposedPorts(record.request, place).some((port) => {
        const [number, protocol = 'tcp'] = port.split('/')
        return isAmong(value, Number(number), protocol)
      }),
    ) &&
    any('isolation', (value) => value === record.spec.isolation) &&
    // Nothing here is a swarm's.
    any('is-task', (value) => /^(0|false)$/i.test(value)) &&
    hasLabels(record.request.labels ?? {}, filters.get('label')) &&
    any('id', (value) => record.id.startsWith(value)) &&
    any('name', (value) => record.name.includes(value.replace(/^\//, ''))) &&
    any(
      'ancestor',
      (value) =>
        [record.request.image, `${record.request.image}:latest`].includes(value) ||
        record.imageId.replace('sha256:', '').startsWith(value.replace('sha256:', '')),
    ) &&
    any('volume', (value) =>
      (record.mounts ?? []).some(({ name, destination }) => name === value || destination === value),
    ) &&
    any('exited', (value) => record.state.status === 'exited' && record.state.exitCode === Number(value)) &&
    any('before', (value) => record.created < (created(value) ?? '')) &&
    any('since', (value) => record.created > (created(value) ?? '~'))
  )
}

/** Whether a port is meant by `80`, `80/udp` or `8000-8080/tcp`. @throws CoracleError INVALID_ARGUMENT */
function isAmong(text: string, port: number, protocol: string): boolean {
  const [, first, last, its = 'tcp'] = /^(\d{1,5})(?:-(\d{1,5}))?(?:\/(tcp|udp|sctp))?$/.exec(text) ?? []
  if (first === undefined)
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `invalid filter: '${text.slice(0, 64)}' is no port, such as 80/tcp`,
    )
  return its === protocol && Number(first) <= port && port <= Number(last ?? first)
}

/** Filters of the prune requests of what is made once and has labels. */
export const AGE_AND_LABELS = ['until', 'label', 'label!'] as const

/** The labels of a prune request: all of `label`, and none of `label!`. */
export function hasPruneLabels(labels: Readonly<Record<string, string>>, filters: Filters): boolean {
  return (
    hasLabels(labels, filters.get('label')) &&
    !(filters.get('label!') ?? []).some((each) => hasLabels(labels, [each]))
  )
}

/** Whether `created` (RFC 3339) is before `until` of a prune request. @throws CoracleError INVALID_ARGUMENT */
export function isOlder(created: string, filters: Filters): boolean {
  return (filters.get('until') ?? []).every((until) => Date.parse(created) <= timeOf('until', until)!)
}

const UNITS: Readonly<Record<string, number>> = { h: 3_600_000, m: 60_000, s: 1000, ms: 1 }

/**
 * A time as Docker's clients send it: seconds since 1970, maybe with a fraction, RFC 3339, or how long ago (`1h30m`).
 * @returns milliseconds since 1970; undefined for none or 0
 * @throws CoracleError INVALID_ARGUMENT
 */
export function timeOf(name: string, text: string | undefined): number | undefined {
  if (!text || text === '0') return undefined
  if (/^\d+(\.\d+)?$/.test(text)) return Number(text) * 1000
  if (/^(\d+(\.\d+)?(h|ms|m|s))+$/.test(text)) {
    const parts = [...text.matchAll(/(\d+(?:\.\d+)?)(h|ms|m|s)/g)]
    return Date.now() - parts.reduce((sum, [, count, unit]) => sum + Number(count) * UNITS[unit!]!, 0)
  }
  const time = Date.parse(text)
  if (Number.isNaN(time))
    throw new CoracleError('INVALID_ARGUMENT', `invalid value for "${name}": ${text.slice(0, 64)}`)
  return time
}
