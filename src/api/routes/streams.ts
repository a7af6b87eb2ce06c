import type { IncomingMessage } from 'node:http'
import type { Duplex, Readable, Writable } from 'node:stream'
import { finished, pipeline } from 'node:stream/promises'
import { CoracleError } from '../../errors.js'
import type { SandboxSpec } from '../../isolation/sandbox.js'
import { Unframe, frame } from '../../engine/frames.js'
import type { Handler, Query, Route, Upgraded } from '../router.js'
import { headOf } from '../answer.js'
import { timeOf } from '../filters.js'

/** How long a client may take to close a connection whose output has ended. */
const LINGER = 10_000

/** The media type of a stream. @param tty raw bytes, else frames */
export const mediaType = (tty: boolean): string =>
  `application/vnd.docker.${tty ? 'raw' : 'multiplexed'}-stream`

const streamsOf = (query: Query): { stdin: boolean; stdout: boolean; stderr: boolean } => {
  if (query.flag('logs'))
    throw new CoracleError('NOT_IMPLEMENTED', 'attaching with earlier output is not built yet')
  if (!query.flag('stream')) throw new CoracleError('INVALID_ARGUMENT', 'an attachment needs stream=1')
  return { stdin: query.flag('stdin'), stdout: query.flag('stdout'), stderr: query.flag('stderr') }
}

const attachUpgraded = async (context: Upgraded): Promise<void> => {
  const { engine, request, socket, head, params, query, signal } = context
  const options = streamsOf(query)
  const { record, stream } = await engine.attach(params[0]!, options, signal)
  await takeBody(request, socket, head)
  socket.write(
    headOf('101 UPGRADED', {
      'Content-Type': mediaType(record.spec.tty),
      Connection: 'Upgrade',
      Upgrade: 'tcp',
    }),
  )
  await join(record.spec, stream, socket, socket, options.stdin)
}

/**
 * Without an Upgrade header the answer is a plain one that goes on as long as there is output, and the request's
 * body is stdin.
 */
const attachPlain: Handler = async ({ engine, request, response, params, query, signal }) => {
  const options = streamsOf(query)
  const { record, stream } = await engine.attach(params[0]!, options, signal)
  response.writeHead(200, { 'Content-Type': mediaType(record.spec.tty) })
  response.flushHeaders()
  await join(record.spec, stream, request, response, options.stdin)
}

/**
 * Carries bytes both ways until the output ends or the client goes. The end of the client's input is the workload's
 * only where the container says so; its output goes on then.
 */
export async function join(
  spec: Pick<SandboxSpec, 'tty' | 'openStdin' | 'stdinOnce'>,
  attached: Promise<Duplex>,
  input: Readable,
  output: Writable,
  stdin: boolean,
): Promise<void> {
  let stream
  try {
    stream = await attached
  } catch {
    output.end()
    return
  }
  output.on('close', () => stream.destroy())
  stream.on('error', () => undefined)
  input.on('error', () => undefined)
  if (stdin && spec.openStdin) {
    // A workload that closed its stdin: what still comes is read and dropped, or the client would hang.
    stream.on('close', () => input.resume())
    input.pipe(stream, { end: spec.stdinOnce && !spec.tty })
  } else input.resume()
  try {
    if (spec.tty) await pipeline(stream, new Unframe(), output)
    else {
      stream.pipe(output)
      await finished(stream, { writable: false })
      output.end()
    }
  } catch {
    output.end()
  }
  input.unpipe(stream)
  input.resume()
  // The monitor waits a while for those who listen to it: tell it that all was heard.
  stream.end()
  const late = setTimeout(() => output.destroy(), LINGER)
  output.on('close', () => clearTimeout(late))
  if (output === (input as unknown)) input.on('end', () => output.destroy())
}

/** The body of an upgraded request is left on the socket: exactly Content-Length bytes of it are not stdin. */
export async function takeBody(request: IncomingMessage, socket: Duplex, head: Buffer): Promise<string> {
  const body: Buffer[] = []
  let left = Number(request.headers['content-length'] ?? 0)
  if (!(left >= 0 && left <= 65_536)) throw new CoracleError('INVALID_ARGUMENT', 'an attachment has no body')
  if (head.length > 0) socket.unshift(head)
  while (left > 0) {
    const chunk = socket.read() as Buffer | null
    if (chunk === null) {
      if (socket.readableEnded) break
      await new Promise<void>((resolve) => {
        socket.once('readable', resolve)
        socket.once('end', resolve)
        socket.once('close', resolve)
      })
      if (socket.destroyed) break
      continue
    }
    if (chunk.length > left) socket.unshift(chunk.subarray(left))
    body.push(chunk.subarray(0, left))
    left -= Math.min(left, chunk.length)
  }
  return Buffer.concat(body).toString('utf8')
}

function tailOf(text: string | undefined): number | undefined {
  // As Docker: what is no number means all.
  return text !== undefined && /^\d{1,9}$/.test(text) ? Number(text) : undefined
}

const logs: Handler = async ({ engine, response, params, query, signal }) => {
  const [stdout, stderr] = [query.flag('stdout'), query.flag('stderr')]
  if (!stdout && !stderr)
    throw new CoracleError('INVALID_ARGUMENT', 'Bad parameters: you must choose at least one stream')
  const tail = tailOf(query.text('tail'))
  const since = timeOf('since', query.text('since'))
  const until = timeOf('until', query.text('until'))
  const { record, entries } = await engine.logs(
    params[0]!,
    {
      stdout,
      stderr,
      follow: query.flag('follow'),
      timestamps: query.flag('timestamps'),
      ...(tail === undefined ? {} : { tail }),
      ...(since === undefined ? {} : { since }),
      ...(until === undefined ? {} : { until }),
    },
    signal,
  )
  response.writeHead(200, { 'Content-Type': mediaType(record.spec.tty) })
  response.flushHeaders()
  const { tty } = record.spec
  const encode = async function* (): AsyncGenerator<Buffer> {
    for await (const { stream, data } of entries) yield tty ? data : frame(stream, data)
  }
  await pipeline(encode, response)
}

export const STREAM_ROUTES: readonly Route[] = [
  { method: 'POST', pattern: '/containers/{id}/attach', handler: attachPlain, upgrade: attachUpgraded },
  { method: 'GET', pattern: '/containers/{id}/logs', handler: logs },
]
