import { randomBytes } from 'node:crypto'
import type { Duplex } from 'node:stream'
import { CoracleError } from '../errors.js'
import { parseDetachKeys } from './detach-keys.js'
import type { AttachOptions, ExecSpec, ExecState, Sandbox } from '../isolation/sandbox.js'

/** Hexadecimal digits of a container's id with which the ids of its execs begin: the id tells whose it is. */
const PREFIX = 32
/** Bytes of an exec's description at most. */
const MAX_SPEC = 512 * 1024
/** Ended execs of ended containers that this engine remembers. */
const MAX_REMEMBERED = 1024
const SIGKILL = 9

/** A further command in a running container, as a client asks for it. Absent means the container's own. */
export interface ExecRequest {
  readonly command: readonly string[]
  /** `NAME=value`; a bare `NAME` takes the container's variable away. */
  readonly env?: readonly string[]
  readonly workingDirectory?: string
  /** `user[:group]`, names or numbers. */
  readonly user?: string
  /** It has all capabilities. */
  readonly privileged?: boolean
  readonly tty: boolean
  /** Which streams a client will want. */
  readonly attach: AttachOptions
  /** Keys that leave its terminal. @see parseDetachKeys */
  readonly detachKeys?: string
  /** Rows and columns of the terminal at the start. */
  readonly consoleSize?: readonly [number, number]
}

/** A started exec. */
export interface StartedExec {
  readonly spec: ExecSpec
  /** Frames, as of an attachment; undefined where none was asked for. */
  readonly stream: Duplex
}

/** What stands behind {@link Execs}: the containers. */
export interface ExecHost {
  /** @throws CoracleError NO_SUCH_CONTAINER, NOT_RUNNING */
  running(id: string): Promise<Sandbox>
  /** The ids of all containers. */
  ids(): string[]
}

/**
 * The commands that run in containers beside their own. They live in the sandboxes; what is remembered here is only
 * the end of those whose container ended with them, for whoever started them through this engine.
 */
export class Execs {
  readonly #host: ExecHost
  readonly #ends = new Map<string, Promise<ExecState>>()

  constructor(host: ExecHost) {
    this.#host = host
  }

  /**
   * @param capabilities in place of the container's
   * @returns its id. @throws CoracleError INVALID_ARGUMENT, NOT_RUNNING, NO_SUCH_CONTAINER
   */
  async create(container: string, request: ExecRequest, capabilities?: readonly string[]): Promise<string> {
    const id = container.slice(0, PREFIX) + randomBytes(32 - PREFIX / 2).toString('hex')
    const spec = specOf(id, request, capabilities)
    const sandbox = await this.#host.running(container)
    await sandbox.createExec(spec)
    return id
  }

  /**
   * @param attach undefined for no streams
   * @throws CoracleError NO_SUCH_EXEC, CONFLICT where it was started, NOT_RUNNING, and why it could not start
   */
  async start(id: string, attach: AttachOptions | undefined): Promise<StartedExec> {
    const sandbox = await this.#sandbox(id)
    const { spec } = await sandbox.execState(id)
    const stream = await sandbox.startExec(id, attach)
    this.#remember(id, spec, sandbox)
    return { spec, stream }
  }

  /** @throws CoracleError NO_SUCH_EXEC, NOT_RUNNING */
  async resize(id: string, width: number, height: number): Promise<void> {
    await (await this.#sandbox(id)).resizeExec(id, width, height)
  }

  /** @throws CoracleError NO_SUCH_EXEC */
  async inspect(id: string): Promise<{ container: string; state: ExecState }> {
    const container = this.#container(id)
    try {
      return { container, state: await (await this.#host.running(container)).execState(id) }
    } catch (error) {
      const end = this.#ends.get(id)
      if (end) return { container, state: await end }
      if (error instanceof CoracleError && error.code === 'NOT_RUNNING') throw noSuchExec(id)
      throw error
    }
  }

  async #sandbox(id: string): Promise<Sandbox> {
    return this.#host.running(this.#container(id))
  }

  #container(id: string): string {
    const container = /^[0-9a-f]{64}$/.test(id)
      ? this.#host.ids().find((each) => each.startsWith(id.slice(0, PREFIX)))
      : undefined
    if (container === undefined) throw noSuchExec(id)
    return container
  }

  #remember(id: string, spec: ExecSpec, sandbox: Sandbox): void {
    for (const oldest of this.#ends.keys()) {
      if (this.#ends.size < MAX_REMEMBERED) break
      this.#ends.delete(oldest)
    }
    const lost: ExecState = { status: 'ended', spec, pid: 0, exitCode: 128 + SIGKILL }
    this.#ends.set(
      id,
      sandbox.waitExec(id).catch(() => lost),
    )
  }
}

const noSuchExec = (id: string): CoracleError =>
  new CoracleError('NO_SUCH_EXEC', `No such exec instance: ${id.slice(0, 64)}`)

function specOf(id: string, request: ExecRequest, capabilities: readonly string[] | undefined): ExecSpec {
  const { command, env = [], workingDirectory: cwd, user, tty, detachKeys, consoleSize } = request
  parseDetachKeys(detachKeys)
  if (command.length === 0 || command[0] === '')
    throw new CoracleError('INVALID_ARGUMENT', 'No exec command specified')
  for (const entry of env)
    if (entry.startsWith('=') || entry === '')
      throw new CoracleError('INVALID_ARGUMENT', `invalid environment variable: ${entry.slice(0, 64)}`)
  if ([...command, ...env, cwd ?? '', user ?? ''].some((text) => text.includes('\0')))
    throw new CoracleError('INVALID_ARGUMENT', 'a command, variable, folder or user holds a NUL')
  if (cwd !== undefined && !cwd.startsWith('/'))
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `the working directory '${cwd.slice(0, 64)}' is invalid, it needs to be an absolute path`,
    )
  const size = tty && consoleSize && consoleSize[0] > 0 && consoleSize[1] > 0 ? consoleSize : undefined
  const spec: ExecSpec = {
    id,
    args: command,
    env,
    ...(cwd === undefined ? {} : { cwd }),
    ...(user === undefined ? {} : { user }),
    ...(capabilities && { capabilities }),
    tty,
    openStdin: request.attach.stdin,
    ...(detachKeys !== undefined && { detachKeys }),
    ...(size ? { consoleSize: { height: size[0], width: size[1] } } : {}),
  }
  if (Buffer.byteLength(JSON.stringify(spec)) > MAX_SPEC)
    throw new CoracleError('INVALID_ARGUMENT', `a command is larger than ${MAX_SPEC} bytes`)
  return spec
}
