import { pipeline } from 'node:stream/promises'
import type { EngineEvent } from '../../engine/events.js'
import { type Filters, hasLabels, parseFilters, timeOf } from '../filters.js'
import type { Handler, Route } from '../router.js'

const FILTERS = [
  'container',
  'image',
  'network',
  'volume',
  'event',
  'type',
  'label',
  'scope',
  'daemon',
] as const

/** Whether an event passes: any of each filter's values, all of its labels. */
function passes({ type, action, id, attributes }: EngineEvent, filters: Filters): boolean {
  const any = (name: string, test: (value: string) => boolean): boolean =>
    filters.get(name)?.some(test) ?? true
  const actor = (kind: EngineEvent['type'], value: string): boolean =>
    type === kind && (id.startsWith(value) || attributes['name'] === value.replace(/^\//, ''))
  return (
    any('type', (value) => value === type) &&
    // `exec_create: sh -c …` is asked for by its first word.
    any('event', (value) => value === action || action.startsWith(`${value}: `)) &&
    any('scope', (value) => value === 'local') &&
    // The daemon itself has none.
    any('daemon', () => false) &&
    any('container', (value) => actor('container', value)) &&
    any('network', (value) => actor('network', value)) &&
    any('volume', (value) => actor('volume', value)) &&
    any('image', (value) => actor('image', value) || attributes['image'] === value) &&
    hasLabels(attributes, filters.get('label'))
  )
}

function eventShape({ type, action, id, attributes, time }: EngineEvent): object {
  return {
    // The three that Docker kept for clients older than its API 1.22.
    ...(type === 'container' ? { status: action, id, from: attributes['image'] ?? '' } : {}),
    Type: type,
    Action: action,
    Actor: { ID: id, Attributes: attributes },
    scope: 'local',
    time: Math.floor(time / 1000),
    timeNano: time * 1_000_000,
  }
}

/** A JSON object a line, as they come, until the client goes or `until`. */
const events: Handler = async ({ engine, response, query, signal }) => {
  const filters = parseFilters(query.text('filters'), FILTERS)
  const since = timeOf('since', query.text('since'))
  const until = timeOf('until', query.text('until'))
  response.writeHead(200, { 'Content-Type': 'application/json' })
  response.flushHeaders()
  const lines = async function* (): AsyncGenerator<string> {
    for await (const event of engine.events({ since, until, signal }))
      if (passes(event, filters)) yield `${JSON.stringify(eventShape(event))}\n`
  }
  await pipeline(lines, response)
}

export const EVENT_ROUTES: readonly Route[] = [{ method: 'GET', pattern: '/events', handler: events }]
