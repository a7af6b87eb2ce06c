import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import { CoracleError } from '../../errors.js'
import { STDERR, frame } from '../../engine/frames.js'
import type { StartedExec } from '../../engine/execs.js'
import type { AttachOptions, ExecState } from '../../isolation/sandbox.js'
import { errorShape, headOf, sendJson } from '../answer.js'
import { checkJson, jsonBody } from '../body.js'
import type { Context, Handler, Route, Upgraded } from '../router.js'
import { EXEC_BODY, EXEC_START_BODY, type ExecBody, type ExecStartBody } from '../schemas.js'
import { join, mediaType, takeBody } from './streams.js'

const create: Handler = async ({ engine, request, response, params: [container] }) => {
  const body = await jsonBody<ExecBody>(request, EXEC_BODY)
  const size = body.ConsoleSize
  const id = await engine.createExec(container!, {
    command: typeof body.Cmd === 'string' ? [body.Cmd] : (body.Cmd ?? []),
    ...(body.Env ? { env: body.Env } : {}),
    ...(body.WorkingDir ? { workingDirectory: body.WorkingDir } : {}),
    ...(body.User ? { user: body.User } : {}),
    ...(body.Privileged ? { privileged: true } : {}),
    tty: body.Tty ?? false,
    attach: {
      stdin: body.AttachStdin ?? false,
      stdout: body.AttachStdout ?? false,
      stderr: body.AttachStderr ?? false,
    },
    ...(body.DetachKeys && { detachKeys: body.DetachKeys }),
    ...(size?.length === 2 ? { consoleSize: size as [number, number] } : {}),
  })
  sendJson(response, 201, { Id: id })
}

const ALL: AttachOptions = { stdin: true, stdout: true, stderr: true }

/** A command that cannot be run is no failed request once the connection is the command's: its output tells. */
type Attempt = { started: StartedExec } | { failure: string; tty: boolean }

async function attempt(
  { engine, params }: Pick<Context, 'engine' | 'params'>,
  { ConsoleSize: size }: ExecStartBody,
): Promise<Attempt> {
  const id = params[0]!
  const { state } = await engine.inspectExec(id)
  if (state.status !== 'created')
    throw new CoracleError('CONFLICT', `Error: Exec command ${id} was started already`)
  try {
    const started = await engine.startExec(id, ALL)
    // It may be over by now.
    if (size?.length === 2 && started.spec.tty)
      await engine.resizeExec(id, size[1]!, size[0]!).catch(() => undefined)
    return { started }
  } catch (error) {
    const after = await engine.inspectExec(id).catch(() => undefined)
    if (after?.state.status !== 'ended') throw error
    return { failure: `${errorShape(error).body.message}\r\n`, tty: state.spec.tty }
  }
}

const ttyOf = (tried: Attempt): boolean => ('started' in tried ? tried.started.spec.tty : tried.tty)

const said = ({ failure, tty }: { failure: string; tty: boolean }): Buffer =>
  tty ? Buffer.from(failure) : frame(STDERR, Buffer.from(failure))

const startUpgraded = async (context: Upgraded): Promise<void> => {
  const { request, socket, head } = context
  const text = await takeBody(request, socket, head)
  const body = await checkJson<ExecStartBody>(text, EXEC_START_BODY)
  if (body.Detach)
    throw new CoracleError('INVALID_ARGUMENT', 'a detached command has no streams to take over')
  const tried = await attempt(context, body)
  socket.write(
    headOf('101 UPGRADED', {
      'Content-Type': mediaType(ttyOf(tried)),
      Connection: 'Upgrade',
      Upgrade: 'tcp',
    }),
  )
  if ('started' in tried) await carry(tried.started, socket, socket)
  else {
    socket.end(said(tried))
    socket.resume()
  }
}

/** The body says how; with streams, and without an Upgrade header, the answer goes on as long as there is output. */
const startPlain: Handler = async (context) => {
  const { engine, request, response, params } = context
  const body = await jsonBody<ExecStartBody>(request, EXEC_START_BODY)
  if (body.Detach) {
    const { stream } = await engine.startExec(params[0]!, undefined)
    stream.destroy()
    response.writeHead(200).end()
    return
  }
  const tried = await attempt(context, body)
  response.writeHead(200, { 'Content-Type': mediaType(ttyOf(tried)) })
  response.flushHeaders()
  if ('started' in tried) await carry(tried.started, request, response)
  else response.end(said(tried))
}

const carry = (
  { spec, stream }: StartedExec,
  input: Duplex | IncomingMessage,
  output: Parameters<typeof join>[3],
): Promise<void> =>
  join(
    { tty: spec.tty, openStdin: spec.openStdin, stdinOnce: true },
    Promise.resolve(stream),
    input,
    output,
    { stdin: true, keys: spec.detachKeys },
  )

const resize: Handler = async ({ engine, response, params: [id], query }) => {
  const width = query.integer('w') ?? 0
  const height = query.integer('h') ?? 0
  if (!(width >= 0 && width <= 65_535 && height >= 0 && height <= 65_535))
    throw new CoracleError('INVALID_ARGUMENT', 'a terminal has from 0 to 65535 columns and rows')
  await engine.resizeExec(id!, width, height)
  response.writeHead(200).end()
}

const inspect: Handler = async ({ engine, response, params: [id] }) => {
  const { container, state } = await engine.inspectExec(id!)
  sendJson(response, 200, execShape(container, state))
}

/** Answer of ExecInspect. */
function execShape(container: string, state: ExecState): object {
  const { spec, status } = state
  return {
    ID: spec.id,
    Running: status === 'running',
    ExitCode: status === 'ended' ? state.exitCode : null,
    ProcessConfig: {
      entrypoint: spec.args[0],
      arguments: spec.args.slice(1),
      tty: spec.tty,
      privileged: spec.capabilities !== undefined,
      user: spec.user ?? '',
    },
    OpenStdin: spec.openStdin,
    OpenStdout: true,
    OpenStderr: true,
    CanRemove: status === 'ended',
    ContainerID: container,
    DetachKeys: spec.detachKeys ?? '',
    Pid: status === 'running' ? state.pid : 0,
  }
}

export const EXEC_ROUTES: readonly Route[] = [
  { method: 'POST', pattern: '/containers/{id}/exec', handler: create },
  { method: 'POST', pattern: '/exec/{id}/start', handler: startPlain, upgrade: startUpgraded },
  { method: 'POST', pattern: '/exec/{id}/resize', handler: resize },
  { method: 'GET', pattern: '/exec/{id}/json', handler: inspect },
]
