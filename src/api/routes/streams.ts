import { once } from 'node:events'
import type { IncomingMessage } from 'node:http'
import type { Duplex, Readable, Writable } from 'node:stream'
import { finished, pipeline } from 'node:stream/promises'
import { CoracleError } from '../../errors.js'
import type { AttachOptions, SandboxSpec } from '../../isolation/sandbox.js'
import { DetachKeys, parseDetachKeys } from '../../engine/detach-keys.js'
import { Unframe, frame } from '../../engine/frames.js'
import type { Context, Handler, Query, Route, Upgraded } from '../router.js'
import { headOf } from '../answer.js'
import { timeOf } from '../filters.js'
import { acceptWebsocket } from '../websocket.js'

/** How long a client may take to close a connection after it was given all of the output and its end, in ms. */
const LINGER = 10_000

/** The media type of a stream. @param tty raw bytes, else frames */
export const mediaType = (tty: boolean): string =>
  `application/vnd.docker.${tty ? 'raw' : 'multiplexed'}-stream`

/** What an attachment is asked for: `logs` is what was put out before, `stream` what comes. */
interface Wanted extends AttachOptions {
  readonly logs: boolean
  readonly stream: boolean
  readonly keys: string | undefined
}

const wantedOf = (query: Query): Wanted => {
  const flag = (name: string): boolean => query.flag(name)
  const [logs, stream] = [flag('logs'), flag('stream')]
  if (!logs && !stream)
    throw new CoracleError('INVALID_ARGUMENT', 'an attachment needs stream=1, or logs=1, or both')
  const keys = query.text('detachKeys')
  parseDetachKeys(keys)
  return { logs, stream, keys, stdin: flag('stdin'), stdout: flag('stdout'), stderr: flag('stderr') }
}

/**
 * @param open writes the head of the answer, and says where bytes come from and go to
 * @param unframed stdout and stderr are one stream, as a terminal's are
 */
async function attach(
  { engine, params, query, signal }: Pick<Context, 'engine' | 'params' | 'query' | 'signal'>,
  open: (tty: boolean) => Promise<[input: Readable, output: Writable]>,
  unframed = false,
): Promise<void> {
  const wanted = wantedOf(query)
  const id = params[0]!
  const options = { ...wanted, follow: false, timestamps: false }
  const earlier = wanted.logs ? await engine.logs(id, options, signal) : undefined
  const attached = wanted.stream ? await engine.attach(id, wanted, signal) : undefined
  const { spec } = attached?.record ?? earlier!.record
  const [input, output] = await open(spec.tty)
  for await (const { stream, data } of earlier?.entries ?? [])
    if (!output.write(spec.tty || unframed ? data : frame(stream, data)))
      await once(output, 'drain', { signal })
  if (attached) await join(spec, attached.stream, input, output, { ...wanted, unframed })
  else output.end()
}

const attachUpgraded = (context: Upgraded): Promise<void> =>
  attach(context, async (tty) => {
    const { request, socket, head } = context
    await takeBody(request, socket, head)
    socket.write(
      headOf('101 UPGRADED', { 'Content-Type': mediaType(tty), Connection: 'Upgrade', Upgrade: 'tcp' }),
    )
    return [socket, socket]
  })

/**
 * Without an Upgrade header the answer is a plain one that goes on as long as there is output, and the request's
 * body is stdin.
 */
const attachPlain: Handler = (context) =>
  attach(context, (tty) => {
    const { request, response } = context
    response.writeHead(200, { 'Content-Type': mediaType(tty) })
    response.flushHeaders()
    return Promise.resolve([request, response])
  })

/** By websocket: bytes in messages, and not told apart which stream they are of (ContainerAttachWebsocket). */
const attachWebsocket = (context: Upgraded): Promise<void> =>
  attach(
    context,
    async () => {
      const stream = await acceptWebsocket(context)
      return [stream, stream]
    },
    true,
  )

/** How {@link join} carries bytes. */
interface Manner {
  readonly stdin: boolean
  /** @see parseDetachKeys */
  readonly keys: string | undefined
  readonly unframed?: boolean
}

/**
 * Carries bytes both ways until the output ends or the client goes. The end of the client's input is the workload's
 * only where the container says so; its output goes on then. On a terminal the detach keys end the connection.
 * @throws CoracleError INVALID_ARGUMENT for keys that are none
 */
export async function join(
  spec: Pick<SandboxSpec, 'tty' | 'openStdin' | 'stdinOnce'>,
  attached: Promise<Duplex>,
  input: Readable,
  output: Writable,
  { stdin, keys, unframed }: Manner,
): Promise<void> {
  const sequence = parseDetachKeys(keys)
  output.once('finish', () => part(input, output))
  let stream: Duplex
  try {
    stream = await attached
  } catch {
    output.end()
    input.on('error', () => undefined).resume()
    return
  }
  output.on('close', () => stream.destroy())
  stream.on('error', () => undefined)
  input.on('error', () => undefined)
  if (stdin && spec.openStdin) {
    // A workload that closed its stdin: what still comes is read and dropped, or the client would hang.
    stream.on('close', () => input.resume())
    const leave = (): void => void stream.destroy()
    const typed = spec.tty ? input.pipe(new DetachKeys(sequence, leave)) : input
    typed.pipe(stream, { end: spec.stdinOnce && !spec.tty })
  } else input.resume()
  try {
    if (spec.tty || unframed) await pipeline(stream, new Unframe(), output)
    else {
      stream.pipe(output)
      await finished(stream, { writable: false })
      output.end()
    }
  } catch {
    output.end()
  }
  input.unpipe()
  input.resume()
  // The monitor waits a while for those who listen to it: tell it that all was heard.
  stream.end()
}

/** Lets go of a client that has all of the output: one that reads slowly is waited for until then. */
function part(input: Readable, output: Writable): void {
  const late = setTimeout(() => output.destroy(), LINGER)
  output.on('close', () => clearTimeout(late))
  if (output !== (input as unknown)) return
  if (input.readableEnded) output.destroy()
  else input.on('end', () => output.destroy())
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
  {
    method: 'GET',
    pattern: '/containers/{id}/attach/ws',
    upgrade: attachWebsocket,
    handler: () => {
      throw new CoracleError('INVALID_ARGUMENT', 'this endpoint is a websocket: Upgrade: websocket')
    },
  },
  { method: 'GET', pattern: '/containers/{id}/logs', handler: logs },
]
