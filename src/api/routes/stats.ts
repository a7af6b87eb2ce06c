import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Engine } from '../../engine/engine.js'
import { sendJson } from '../answer.js'
import type { Handler, Route } from '../router.js'
import { processTable } from '../process-table.js'
import { type Sample, statsShape } from '../stats-shape.js'

/** Between two samples, in ms. */
const PERIOD = 1000

async function* samples(
  engine: Engine,
  id: string,
  signal: AbortSignal,
): AsyncGenerator<{ shape: object; running: boolean }> {
  for (let before: Sample | undefined; ; await sleep(PERIOD, undefined, { signal })) {
    const { record, stats } = await engine.stats(id)
    const now = stats && { read: new Date().toISOString(), stats }
    yield { shape: statsShape(record, now, before), running: now !== undefined }
    before = now
  }
}

/** A JSON object a second, or one: `one-shot` at once, else with the share of the processor in a second. */
const stats: Handler = async ({ engine, response, params: [id], query, signal }) => {
  const { record } = await engine.stats(id!)
  const stream = query.flag('stream', true)
  if (!stream) {
    let left = query.flag('one-shot') ? 1 : 2
    for await (const { shape, running } of samples(engine, record.id, signal))
      if (--left === 0 || !running) return sendJson(response, 200, shape)
    return
  }
  response.writeHead(200, { 'Content-Type': 'application/json' })
  response.flushHeaders()
  const lines = async function* (): AsyncGenerator<string> {
    for await (const { shape } of samples(engine, record.id, signal)) yield `${JSON.stringify(shape)}\n`
  }
  await pipeline(lines, response)
}

/** What runs in it, in the columns that arguments of ps(1) ask for. */
const top: Handler = async ({ engine, response, params: [id], query }) => {
  sendJson(response, 200, processTable(await engine.processes(id!), query.text('ps_args') || '-ef'))
}

/** Ours, not Docker's: what the container's virtual machine is made of. */
const machine: Handler = async ({ engine, response, params: [id] }) => {
  sendJson(response, 200, await engine.machine(id!))
}

export const STATS_ROUTES: readonly Route[] = [
  { method: 'GET', pattern: '/containers/{id}/stats', handler: stats },
  { method: 'GET', pattern: '/containers/{id}/top', handler: top },
  { method: 'GET', pattern: '/containers/{id}/machine', handler: machine },
]
