import { chmodSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { CoracleError } from '../../errors.js'
import { MAX_PATH, TAR_FLAGS, type WorkloadArchive } from '../archive.js'
import { MAX_LINE, describeError, type Request, type Response } from '../protocol.js'
import type { ProcessList } from '../processes.js'
import type { AttachOptions, SandboxExit, SandboxInterface, SandboxLimits } from '../sandbox.js'
import type { SnapshotSink } from '../../vmm/machine.js'
import { carry } from './carry.js'
import type { Execs } from './execs.js'
import { sendSnapshot } from './snapshot-sender.js'
import type { SandboxState } from '../protocol.js'
import type { SandboxStats } from '../stats.js'

/** What a monitor does on request. */
export interface Controlled {
  state(): SandboxState
  start(still: boolean): Promise<void>
  kill(signal: number): Promise<void>
  resize(width: number, height: number): Promise<void>
  update(limits: SandboxLimits): Promise<void>
  setInterfaces(interfaces: readonly SandboxInterface[]): Promise<void>
  /** @throws CoracleError NOT_RUNNING, as `resume` does */
  pause(): Promise<void>
  resume(): Promise<void>
  wait(): Promise<SandboxExit>
  destroy(): Promise<void>
  /** @throws CoracleError NOT_RUNNING */
  stats(): Promise<SandboxStats>
  /** @throws CoracleError NOT_RUNNING */
  processes(): Promise<ProcessList>
  machine(): Promise<object>
  /** @throws CoracleError NOT_RUNNING, SNAPSHOT_UNSUPPORTED, CONFLICT, what `sink` throws */
  save(sink: SnapshotSink, stay: boolean): Promise<void>
  attach(socket: Socket, options: AttachOptions): void
  /** @throws CoracleError NOT_RUNNING */
  readonly execs: Execs
  /** The files of what is prepared, also before it is started. @throws CoracleError NOT_RUNNING, why it could not be */
  archive(): Promise<WorkloadArchive>
  /** @see Sandbox.readTree @throws CoracleError NOT_RUNNING */
  read(path: string, flags: number, still: boolean): Promise<Duplex>
}

/**
 * Listens at `path`, for this user alone, or on a listening socket: one request line a connection (protocol.ts).
 * Whoever can connect may do all of it, so what is checked here guards against mistakes, not against attacks.
 * @param at a path, or the number of a socket that becomes ours
 */
export async function serveControl(at: string | number, controlled: Controlled): Promise<Server> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: false }, (socket) => {
    socket.on('error', () => socket.destroy())
    readRequest(socket, (request) => void answer(controlled, socket, request))
  })
  const mask = process.umask(0o177)
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen(typeof at === 'number' ? { fd: at } : at, resolve)
    })
  } finally {
    process.umask(mask)
  }
  if (typeof at === 'string') chmodSync(at, 0o600)
  return server
}

function readRequest(socket: Socket, handle: (request: Request) => void): void {
  let seen = Buffer.alloc(0)
  const read = (chunk: Buffer): void => {
    seen = Buffer.concat([seen, chunk])
    const end = seen.indexOf(0x0a)
    if (end < 0 && seen.length <= MAX_LINE) return
    socket.pause()
    socket.off('data', read)
    socket.off('end', ended)
    if (end + 1 < seen.length && end >= 0) socket.unshift(seen.subarray(end + 1))
    try {
      if (end < 0) throw new CoracleError('INVALID_ARGUMENT', 'the request is too long')
      handle(checkRequest(JSON.parse(seen.toString('utf8', 0, end))))
    } catch (error) {
      send(socket, { error: describeError(error) })
      socket.end()
    }
  }
  const ended = (): void => void socket.end()
  socket.on('data', read)
  socket.on('end', ended)
}

const CGROUP_NUMBERS = ['memoryReservation', 'memorySwap', 'blkioWeight']
const CPUSETS = ['cpusetCpus', 'cpusetMems']

function checkCgroup(value: unknown, bad: () => never): void {
  for (const [name, limit] of Object.entries((value ?? bad()) as object))
    if (
      !(CGROUP_NUMBERS.includes(name) && Number.isSafeInteger(limit)) &&
      !(CPUSETS.includes(name) && /^[\d,-]{1,2048}$/.test(String(limit)))
    )
      bad()
}

function checkRequest(value: unknown): Request {
  const request = value as Record<string, unknown>
  const bad = (): never => {
    throw new CoracleError('INVALID_ARGUMENT', 'the monitor does not know this request')
  }
  if (typeof value !== 'object' || value === null) return bad()
  const within = (name: string, least: number, most: number): void => {
    const number = request[name]
    if (!Number.isInteger(number) || (number as number) < least || (number as number) > most) bad()
  }
  switch (request['op']) {
    case 'state':
    case 'wait':
    case 'destroy':
    case 'stats':
    case 'processes':
    case 'machine':
    case 'pause':
    case 'resume':
      break
    case 'start':
      if (typeof request['still'] !== 'boolean') bad()
      break
    case 'snapshot':
      if (typeof request['stay'] !== 'boolean') bad()
      break
    case 'update':
      for (const [name, value] of Object.entries(request['limits'] ?? bad()))
        if (name === 'cgroup') checkCgroup(value, bad)
        else if (
          !['memory', 'cpus', 'cpuShares', 'pids'].includes(name) ||
          !(value >= 0 && value <= Number.MAX_SAFE_INTEGER)
        )
          bad()
      break
    case 'interfaces':
      if (!Array.isArray(request['interfaces'])) bad()
      break
    case 'kill':
      within('signal', 1, 64)
      break
    case 'resize':
      within('width', 0, 0xffff)
      within('height', 0, 0xffff)
      break
    case 'attach':
      for (const name of ['stdin', 'stdout', 'stderr']) if (typeof request[name] !== 'boolean') bad()
      break
    case 'exec-create': {
      const spec = request['spec'] as Record<string, unknown> | null
      if (typeof spec !== 'object' || !isId(spec?.['id'])) bad()
      break
    }
    case 'exec-start':
      for (const name of ['stdin', 'stdout', 'stderr', 'detach'])
        if (typeof request[name] !== 'boolean') bad()
      if (!isId(request['id'])) bad()
      break
    case 'exec-state':
    case 'exec-wait':
      if (!isId(request['id'])) bad()
      break
    case 'exec-kill':
      within('signal', 1, 64)
      if (!isId(request['id'])) bad()
      break
    case 'exec-resize':
      within('width', 0, 0xffff)
      within('height', 0, 0xffff)
      if (!isId(request['id'])) bad()
      break
    case 'archive-stat':
    case 'archive-read':
    case 'archive-write': {
      const path = request['path']
      if (typeof path !== 'string' || path.includes('\0') || Buffer.byteLength(path) > MAX_PATH) bad()
      if (request['op'] !== 'archive-stat') within('flags', 0, TAR_FLAGS)
      if (request['op'] === 'archive-read' && typeof request['still'] !== 'boolean') bad()
      break
    }
    default:
      bad()
  }
  return value as Request
}

const isId = (id: unknown): boolean => typeof id === 'string' && /^[0-9a-f]{64}$/.test(id)

async function answer(controlled: Controlled, socket: Socket, request: Request): Promise<void> {
  try {
    switch (request.op) {
      case 'attach':
        send(socket, { result: null })
        controlled.attach(socket, request)
        return
      case 'wait':
        // Stays open: its end tells that the monitor is gone.
        send(socket, { result: await controlled.wait() })
        socket.resume()
        return
      case 'state':
        send(socket, { result: controlled.state() })
        break
      case 'start':
        await controlled.start(request.still)
        send(socket, { result: null })
        break
      case 'kill':
        await controlled.kill(request.signal)
        send(socket, { result: null })
        break
      case 'resize':
        await controlled.resize(request.width, request.height)
        send(socket, { result: null })
        break
      case 'update':
        await controlled.update(request.limits)
        send(socket, { result: null })
        break
      case 'interfaces':
        await controlled.setInterfaces(request.interfaces)
        send(socket, { result: null })
        break
      case 'pause':
      case 'resume':
        await controlled[request.op]()
        send(socket, { result: null })
        break
      case 'stats':
        send(socket, { result: await controlled.stats() })
        break
      case 'processes':
        send(socket, { result: await controlled.processes() })
        break
      case 'machine':
        send(socket, { result: await controlled.machine() })
        break
      case 'snapshot':
        await sendSnapshot(socket, (sink) => controlled.save(sink, request.stay))
        break
      case 'exec-create':
        controlled.execs.create(request.spec)
        send(socket, { result: null })
        break
      case 'exec-start': {
        const join = await controlled.execs.start(request.id, request.detach ? undefined : request)
        send(socket, { result: null })
        join(socket)
        if (!request.detach) return
        break
      }
      case 'exec-state':
        send(socket, { result: controlled.execs.state(request.id) })
        break
      case 'exec-wait':
        send(socket, { result: await controlled.execs.wait(request.id) })
        break
      case 'exec-kill':
        await controlled.execs.kill(request.id, request.signal)
        send(socket, { result: null })
        break
      case 'exec-resize':
        await controlled.execs.resize(request.id, request.width, request.height)
        send(socket, { result: null })
        break
      case 'archive-stat':
        send(socket, { result: await (await controlled.archive()).stat(request.path) })
        break
      case 'archive-read':
      case 'archive-write': {
        const { path, flags } = request
        const stream = await (request.op === 'archive-read'
          ? controlled.read(path, flags, request.still)
          : (await controlled.archive()).write(path, flags))
        send(socket, { result: null })
        carry(socket, stream)
        return
      }
      case 'destroy':
        send(socket, { result: null })
        await controlled.destroy()
        return
    }
  } catch (error) {
    send(socket, { error: describeError(error) })
  }
  socket.end()
  socket.resume()
}

function send(socket: Socket, response: Response): void {
  if (!socket.destroyed) socket.write(`${JSON.stringify(response)}\n`)
}
