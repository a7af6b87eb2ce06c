import { existsSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import type { Duplex, Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { SysError } from '@coracle/sys'
import { CoracleError } from '../errors.js'
import type { PathStat } from './archive.js'
import { readExit, sandboxFiles } from './files.js'
import { MAX_LINE, restoreError, type Request, type Response, type Result } from './protocol.js'
import { offerAdapter } from './offers.js'
import { thawCgroups } from './process/cgroup.js'
import { hostProcesses } from './process/processes.js'
import type { ProcessList } from './processes.js'
import { gone, monitorProcesses, type ProcessIdentity } from './liveness.js'
import { reap, release } from './reap.js'
import { receiveSnapshot } from './snapshot-receiver.js'
import type { SandboxStats } from './stats.js'
import type {
  AttachOptions,
  ExecSpec,
  ExecState,
  Sandbox,
  SandboxExit,
  SandboxInterface,
  SandboxLimits,
  SandboxSpec,
} from './sandbox.js'
import { updateMachine } from './update.js'

/** Asks a sandbox's monitor. @throws CoracleError NOT_RUNNING where no monitor answers, or what it answered */
export async function request(spec: SandboxSpec, request: Request, signal?: AbortSignal): Promise<Result> {
  const { socket, result } = await exchange(spec, request, signal)
  socket.destroy()
  return result
}

/** A sandbox as everybody but its monitor sees it. */
export class SandboxClient implements Sandbox {
  readonly #spec: SandboxSpec
  readonly #processes: readonly ProcessIdentity[]
  readonly pid: number

  constructor(spec: SandboxSpec, pid: number) {
    this.#spec = spec
    this.pid = pid
    this.#processes = monitorProcesses(pid)
  }

  async start(signal?: AbortSignal, still = false): Promise<void> {
    await request(this.#spec, { op: 'start', still }, signal)
  }

  async attach(options: AttachOptions): Promise<Duplex> {
    return (await exchange(this.#spec, { op: 'attach', ...options })).socket
  }

  async kill(signal: number): Promise<void> {
    await request(this.#spec, { op: 'kill', signal })
  }

  async resize(width: number, height: number): Promise<void> {
    await request(this.#spec, { op: 'resize', width, height })
  }

  async setInterfaces(interfaces: readonly SandboxInterface[]): Promise<void> {
    const { offers } = sandboxFiles(this.#spec)
    if (existsSync(offers))
      for (const { tap, vhost } of interfaces) {
        try {
          if (tap !== undefined) offerAdapter(offers, tap, vhost)
        } catch (error) {
          // It is an interface of before: the sandbox has it.
          if (!(error instanceof SysError && error.code === 'EBUSY')) throw error
        }
      }
    await request(this.#spec, { op: 'interfaces', interfaces })
  }

  async pause(): Promise<void> {
    await request(this.#spec, { op: 'pause' })
  }

  async resume(): Promise<void> {
    await request(this.#spec, { op: 'resume' })
  }

  async update(limits: SandboxLimits): Promise<void> {
    const ask = async (some: SandboxLimits): Promise<void> => {
      await request(this.#spec, { op: 'update', limits: some })
    }
    if (this.#spec.isolation === 'process') await ask(limits)
    else await updateMachine(this.#spec, limits, ask)
  }

  async stats(): Promise<SandboxStats> {
    return (await request(this.#spec, { op: 'stats' })) as SandboxStats
  }

  async processes(): Promise<ProcessList> {
    if (this.#spec.isolation === 'process') return hostProcesses(this.#spec)
    return (await request(this.#spec, { op: 'processes' })) as ProcessList
  }

  async machine(): Promise<object> {
    return (await request(this.#spec, { op: 'machine' })) as object
  }

  async snapshot(folder: string, signal?: AbortSignal, stay = false): Promise<void> {
    const socket = connect({ path: sandboxFiles(this.#spec).control, allowHalfOpen: true })
    socket.on('error', () => undefined)
    socket.write(`${JSON.stringify({ op: 'snapshot', stay } satisfies Request)}\n`)
    await receiveSnapshot(socket, this.#spec, folder, signal)
  }

  async createExec(spec: ExecSpec): Promise<void> {
    await request(this.#spec, { op: 'exec-create', spec })
  }

  async startExec(id: string, options: AttachOptions | undefined): Promise<Duplex> {
    const streams = options ?? { stdin: false, stdout: false, stderr: false }
    const detach = options === undefined
    return (await exchange(this.#spec, { op: 'exec-start', id, detach, ...streams })).socket
  }

  async execState(id: string): Promise<ExecState> {
    return (await request(this.#spec, { op: 'exec-state', id })) as ExecState
  }

  async waitExec(id: string): Promise<ExecState> {
    return (await request(this.#spec, { op: 'exec-wait', id })) as ExecState
  }

  async killExec(id: string, signal: number): Promise<void> {
    await request(this.#spec, { op: 'exec-kill', id, signal })
  }

  async resizeExec(id: string, width: number, height: number): Promise<void> {
    await request(this.#spec, { op: 'exec-resize', id, width, height })
  }

  async statPath(path: string): Promise<PathStat> {
    return (await request(this.#spec, { op: 'archive-stat', path })) as PathStat
  }

  async readTree(path: string, flags: number, still = false): Promise<Readable> {
    const { socket } = await exchange(this.#spec, { op: 'archive-read', path, flags, still })
    socket.end()
    return socket
  }

  async writeTree(path: string, flags: number, archive: Readable): Promise<void> {
    const { socket } = await exchange(this.#spec, { op: 'archive-write', path, flags })
    let answer = ''
    const answered = new Promise<void>((resolve) => {
      socket.setEncoding('utf8').on('data', (text: string) => (answer += text))
      socket.on('end', resolve).on('close', resolve)
    })
    // It may stop reading before the end: what it says then is the better reason.
    const sent = pipeline(archive, socket, { end: true }).catch((error: unknown) => error as Error)
    socket.on('error', () => undefined)
    await answered
    archive.destroy()
    const failure = await sent
    socket.destroy()
    if (answer === '\n') return
    const reason = answer.trim() || failure?.message || 'the container ended meanwhile'
    throw new CoracleError('INVALID_ARGUMENT', `cannot write into ${path}: ${reason}`)
  }

  async wait(): Promise<SandboxExit> {
    let exit: SandboxExit | undefined
    try {
      const { socket, result } = await exchange(this.#spec, { op: 'wait' })
      exit = result as SandboxExit
      await closed(socket)
    } catch (error) {
      // The monitor is gone: what it left on disk tells how it ended.
      if (!(error instanceof CoracleError && error.code === 'NOT_RUNNING')) throw error
    }
    this.#thaw()
    await gone(this.#processes)
    await release(this.#spec, this.#processes)
    exit ??= readExit(this.#spec)
    return (
      exit ?? {
        exitCode: 137,
        error: 'the sandbox ended without a status',
        finishedAt: new Date().toISOString(),
      }
    )
  }

  /** A monitor that was killed cannot end before the processes of its namespaces do, and frozen ones never would. */
  #thaw(): void {
    if (this.#spec.isolation === 'process') thawCgroups(this.#spec)
  }

  async destroy(): Promise<void> {
    try {
      const { socket } = await exchange(this.#spec, { op: 'destroy' })
      await closed(socket)
    } catch {
      // It is gone already, or does not listen any more: then it is ended from outside.
    }
    await reap(this.#spec)
    await gone(this.#processes)
  }
}

/** Sends a request and reads the line of its answer. What follows that line stays unread in the socket. */
async function exchange(
  spec: SandboxSpec,
  request: Request,
  signal?: AbortSignal,
): Promise<{ socket: Socket; result: Result }> {
  signal?.throwIfAborted()
  const socket = connect({ path: sandboxFiles(spec).control, allowHalfOpen: true })
  const abort = (): void => void socket.destroy(signal?.reason as Error)
  signal?.addEventListener('abort', abort, { once: true })
  try {
    socket.write(`${JSON.stringify(request)}\n`)
    const response = JSON.parse(await readLine(socket)) as Response
    if ('error' in response) throw restoreError(response.error)
    return { socket, result: response.result }
  } catch (error) {
    socket.destroy()
    signal?.throwIfAborted()
    if (error instanceof CoracleError) throw error
    throw new CoracleError('NOT_RUNNING', `container ${spec.id.slice(0, 12)} is not running`, {
      cause: error,
    })
  } finally {
    signal?.removeEventListener('abort', abort)
  }
}

function readLine(socket: Socket): Promise<string> {
  return new Promise((resolve, reject) => {
    let seen = Buffer.alloc(0)
    const read = (): void => {
      for (let chunk; (chunk = socket.read() as Buffer | null) !== null;) {
        seen = Buffer.concat([seen, chunk])
        const end = seen.indexOf(0x0a)
        if (end >= 0) {
          stop()
          if (end + 1 < seen.length) socket.unshift(seen.subarray(end + 1))
          resolve(seen.toString('utf8', 0, end))
          return
        }
        if (seen.length > MAX_LINE) fail(new Error('the answer is too long'))
      }
    }
    const fail = (error?: Error): void => {
      stop()
      reject(error ?? new Error('the connection ended before the answer'))
    }
    const ended = (): void => fail()
    const stop = (): void => {
      socket.off('readable', read)
      socket.off('error', fail)
      socket.off('end', ended)
      socket.off('close', ended)
    }
    socket.on('readable', read)
    socket.on('error', fail)
    socket.on('end', ended)
    socket.on('close', ended)
  })
}

function closed(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    socket.on('close', resolve)
    socket.on('error', () => undefined)
    socket.on('end', () => socket.destroy())
    socket.resume()
  })
}
