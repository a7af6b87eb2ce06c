import type { Duplex } from 'node:stream'
import { CoracleError } from '../../errors.js'
import { decodeStat, type PathStat } from '../archive.js'
import { crunError } from '../crun-error.js'
import { parseProcesses, type ProcessList, type RawProcess } from '../processes.js'
import { type Usage, parseUsage, splitFiles } from '../stats.js'
import type { OciConfig, SandboxInterface } from '../sandbox.js'
import * as protocol from './agent-protocol.js'
import { BodyReader, BodyWriter, FrameParser, type Frame, encodeFrame, violation } from './agent-protocol.js'
import { type AgentStreams, GuestStreams } from './guest-streams.js'
import { type Pending, pending } from './pending.js'

/** What the agent says first. */
export interface Hello {
  /** `uname -r` of the guest. */
  readonly kernelRelease: string
  readonly agentVersion: string
  /** Not `empty` only on a connection that was made anew. */
  readonly state: WorkloadState
}

const STATES = ['empty', 'created', 'running', 'exited'] as const
export type WorkloadState = (typeof STATES)[number]

/** A file system that the guest mounts. */
export interface GuestMount {
  /** Such as `/dev/pmem0p1`; the guest waits up to 10 s for it. */
  readonly device: string
  /** Such as `erofs`. */
  readonly type: string
  /** mount(2)'s data, such as `dax=always`. @default '' */
  readonly options?: string
}

export interface AgentConfiguration {
  /** Nanoseconds since 1970. @default left as it is */
  readonly clock?: bigint
  /** At most 512 bytes, credited in full to the guest kernel's generator. */
  readonly entropy?: Uint8Array
  /** At most 64 bytes. @default left as it is */
  readonly hostname?: string
  /** The tools image, once a boot and before CREATE: becomes the guest's own root. */
  readonly tools?: GuestMount
}

export interface AgentRoot {
  /** Lowest first, 1 to 128. */
  readonly layers: readonly GuestMount[]
  /** The writable layer; or a tmpfs with mount options such as `size=512m`. */
  readonly upper: GuestMount | { readonly tmpfs: string }
  /** More options of the overlay, such as `volatile`. @default '' */
  readonly overlayOptions?: string
}

/** What a container that goes on in another machine gets of its own. */
export interface AgentIdentity {
  readonly tty: boolean
  readonly stdin: boolean
  readonly hostname: string
  /** machine-id(5): in place of the one that the container's files hold, if they hold one. */
  readonly machineId: string
  /** @see AgentWorkload.files; those of before are replaced by name */
  readonly files?: AgentWorkload['files']
}

export interface AgentWorkload {
  readonly tty: boolean
  readonly stdin: boolean
  /** `root.path` is set here; mounts may name {@link AgentWorkload.files} as `/run/c/files/NAME`. */
  readonly config: OciConfig
  /** Small files for bind mounts, such as resolv.conf: at most 64, no slash in a name. */
  readonly files?: readonly { readonly name: string; readonly mode: number; readonly data: Uint8Array }[]
}

export interface AgentExit {
  /** 0–255, or 128+n for signal n. */
  readonly exitCode: number
  readonly oomKilled: boolean
}

/** A further process in the container. */
export interface AgentExec {
  readonly streams: AgentStreams
  /** 0–255, or 128+n for signal n; the streams may still be on their way. Rejects when the connection is lost. */
  readonly exited: Promise<number>
  /** @param signal a number, 1–64 */
  signal(signal: number): Promise<void>
  /** Of the terminal, 0–65535 each. */
  resize(columns: number, rows: number): Promise<void>
}

/** What every container has, more or less; the program is the agent's. */
const REHEARSAL = {
  ociVersion: '1.0.2',
  process: { user: { uid: 0, gid: 0 }, args: ['/rehearsed'], env: ['PATH=/bin'], cwd: '/' },
  root: { path: 'rootfs' },
  hostname: 'rehearsal',
  mounts: [
    { destination: '/proc', type: 'proc', source: 'proc' },
    { destination: '/dev', type: 'tmpfs', source: 'tmpfs', options: ['nosuid', 'mode=755'] },
  ],
  linux: { namespaces: ['pid', 'mount', 'ipc', 'uts'].map((type) => ({ type })) },
}

/**
 * The host's side of PROTOCOL.md, over one control connection. Everything from the guest is checked: what is against
 * the protocol destroys the connection, and every promise that waits rejects with `GUEST_FAILED`; `failed` tells the
 * owner to end the VM. Output is complete when the streams have ended *and* {@link exited} has resolved.
 */
export class AgentClient {
  readonly #control: Duplex
  readonly #hello = pending<Hello>()
  readonly #exited = pending<AgentExit>()
  readonly #failed = pending<CoracleError>()
  readonly #requests = new Map<number, Pending<Buffer | undefined> & { readonly command: string }>()
  readonly #streams = new GuestStreams()
  readonly #execs = new Map<number, Pending<number>>()
  #next = 1
  #nextExec = 1
  #isLost = false
  #state: 'fresh' | 'greeted' | 'created' | 'exited' | 'failed' = 'fresh'

  /** @param control the guest's connection to {@link protocol.PORT_CONTROL}, nothing read from it yet */
  constructor(control: Duplex) {
    this.#control = control
    const parser = new FrameParser()
    control.on('data', (chunk: Buffer) => {
      try {
        for (const frame of parser.push(chunk)) {
          if (this.#state === 'failed') return
          this.#take(frame)
        }
      } catch (error) {
        this.#fail(error instanceof CoracleError ? error : violation(String(error)))
      }
    })
    const closed = (): void => {
      if (this.#state !== 'failed') this.#isLost = true
      this.#fail(new CoracleError('GUEST_FAILED', 'the guest closed its control connection'))
    }
    control.on('error', closed).on('end', closed).on('close', closed)
  }

  /** The agent is there. @throws {@link CoracleError} GUEST_FAILED, as all below */
  get hello(): Promise<Hello> {
    return this.#hello.promise
  }

  /** The workload has ended; what it wrote before is on its streams. */
  get exited(): Promise<AgentExit> {
    return this.#exited.promise
  }

  /** Resolves (never rejects) when the connection is of no more use, with the reason. */
  get failed(): Promise<CoracleError> {
    return this.#failed.promise
  }

  /** The guest has closed its connection, and did nothing wrong before. */
  get isLost(): boolean {
    return this.#isLost
  }

  /** Clock, entropy, hostname, tools. May be repeated, the tools excepted. */
  async configure(configuration: AgentConfiguration): Promise<void> {
    const { clock = 0n, entropy = new Uint8Array(), hostname = '', tools } = configuration
    const body = new BodyWriter().u64(clock).bytes(entropy).string(hostname)
    await this.#request(protocol.CONFIGURE, mount(body, tools ?? { device: '', type: '' }).end())
  }

  /** Mounts the root file system, once a boot. @throws {@link CoracleError} SANDBOX_FAILED, GUEST_FAILED */
  async mount({ layers, upper, overlayOptions = '' }: AgentRoot): Promise<void> {
    const body = new BodyWriter().u32(layers.length)
    for (const layer of layers) mount(body, layer)
    mount(body, 'tmpfs' in upper ? { device: '', type: 'tmpfs', options: upper.tmpfs } : upper)
    await this.#request(protocol.MOUNT, body.string(overlayOptions).end())
  }

  /**
   * Finds the interface by its hardware address, gives it its name and addresses, and brings it up; after the tools.
   * @throws {@link CoracleError} SANDBOX_FAILED, where it is not there within 10 s too; GUEST_FAILED
   */
  async network({ name, mac, addresses, gateways, mtu }: Omit<SandboxInterface, 'tap'>): Promise<void> {
    const body = new BodyWriter()
      .fixed(Buffer.from(mac.replaceAll(':', ''), 'hex'))
      .string(name)
      .u32(mtu)
    body.u32(addresses.length)
    for (const each of addresses) {
      const [address = '', prefix] = each.split('/')
      body.string(address).u32(Number(prefix))
    }
    body.u32(gateways.length)
    for (const gateway of gateways) body.string(gateway)
    await this.#request(protocol.NETWORK, body.end())
  }

  /** Mounts what the host shares under this tag on `/run/v/TAG`. @throws {@link CoracleError} SANDBOX_FAILED, GUEST_FAILED */
  async share(tag: string): Promise<void> {
    await this.#request(protocol.SHARE, new BodyWriter().string(tag).end())
  }

  /** Brings an interface down, before its device is unplugged. */
  async networkDown(name: string): Promise<void> {
    await this.#request(protocol.NETWORK_DOWN, new BodyWriter().string(name).end())
  }

  /**
   * The text of a regular file of the mounted root; empty where there is none, or it is larger than `limit` bytes.
   * @param path as the container sees it
   */
  async readFile(path: string, limit: number): Promise<string> {
    const pieces: Buffer[] = []
    for (let size = 0; size <= limit;) {
      let piece: Buffer | undefined
      try {
        piece = await this.#request(protocol.READ, new BodyWriter().string(path).u64(BigInt(size)).end())
      } catch (error) {
        if (error instanceof CoracleError && error.code === 'NO_SUCH_PATH') return ''
        throw error
      }
      if (piece === undefined) throw violation('an answer without data')
      if (piece.length === 0) return Buffer.concat(pieces).toString()
      pieces.push(piece)
      size += piece.length
    }
    return ''
  }

  /**
   * Creates the container in the mounted root. Its streams connect meanwhile: pass each connection to the
   * stream port to {@link acceptStream}.
   * @throws {@link CoracleError} COMMAND_NOT_FOUND, COMMAND_NOT_EXECUTABLE, SANDBOX_FAILED, GUEST_FAILED
   */
  async create(workload: AgentWorkload): Promise<AgentStreams> {
    const { tty, stdin, config, files = [] } = workload
    const body = new BodyWriter()
    body.u32((tty ? protocol.CREATE_TTY : 0) | (stdin ? protocol.CREATE_STDIN : 0))
    using expected = this.#streams.expectAll(body, tty, stdin)
    body.bytes(Buffer.from(JSON.stringify({ ...config, root: { ...config.root, path: 'rootfs' } })))
    writeFiles(body, files)
    await this.#request(protocol.CREATE, body.end(), config.process.args[0])
    const streams = await expected.connected()
    if (this.#state === 'greeted') this.#state = 'created'
    return streams
  }

  /** Has the container stand still, its streams too, before the machine is saved. @throws {@link CoracleError} */
  async hold(): Promise<void> {
    await this.#request(protocol.HOLD)
  }

  /** Lets it go on, in this machine or the one that was restored. */
  async release(): Promise<void> {
    await this.#request(protocol.RELEASE)
  }

  /**
   * In a restored machine, before {@link release}: makes the container another one, with streams to us. One that the
   * workload had closed has ended.
   * @throws {@link CoracleError} SANDBOX_FAILED, GUEST_FAILED
   */
  async reattach({ tty, stdin, hostname, machineId, files = [] }: AgentIdentity): Promise<AgentStreams> {
    const body = new BodyWriter().u32(stdin ? protocol.CREATE_STDIN : 0)
    using expected = this.#streams.expectAll(body, tty, stdin)
    writeFiles(body.string(hostname).string(machineId), files)
    const answer = await this.#request(protocol.REATTACH, body.end())
    if (answer?.length !== 4) throw violation('streams that are none')
    // Awaited here: until then they are expected.
    return await expected.connected(answer.readUInt32LE(0))
  }

  /**
   * Runs a further process in the started container.
   * @throws {@link CoracleError} COMMAND_NOT_FOUND, COMMAND_NOT_EXECUTABLE, SANDBOX_FAILED, GUEST_FAILED
   */
  async exec(exec: { process: OciConfig['process']; tty: boolean; stdin: boolean }): Promise<AgentExec> {
    const id = this.#nextExec++
    const exited = pending<number>()
    const { process, tty, stdin } = exec
    const body = new BodyWriter().u32(id)
    body.u32((tty ? protocol.CREATE_TTY : 0) | (stdin ? protocol.CREATE_STDIN : 0))
    using expected = this.#streams.expectAll(body, tty, stdin)
    body.bytes(Buffer.from(JSON.stringify(process)))
    this.#execs.set(id, exited)
    try {
      await this.#request(protocol.EXEC, body.end(), process.args[0])
    } catch (error) {
      this.#execs.delete(id)
      throw error
    }
    return {
      streams: await expected.connected(),
      exited: exited.promise,
      signal: async (signal) => {
        await this.#request(protocol.EXEC_SIGNAL, new BodyWriter().u32(id).u32(signal).end())
      },
      resize: async (columns, rows) => {
        await this.#request(protocol.EXEC_RESIZE, new BodyWriter().u32(id).u32(columns).u32(rows).end())
      },
    }
  }

  /** Runs what was created. @throws {@link CoracleError} as {@link create} */
  async start(): Promise<void> {
    await this.#request(protocol.START)
  }

  /** To the workload's first process. @param signal a number, 1–64 */
  async signal(signal: number): Promise<void> {
    await this.#request(protocol.SIGNAL, new BodyWriter().u32(signal).end())
  }

  /** Of the terminal, 0–65535 each. */
  async resize(columns: number, rows: number): Promise<void> {
    await this.#request(protocol.RESIZE, new BodyWriter().u32(columns).u32(rows).end())
  }

  /** Has the guest run a container of nobody's, before there is one: the next starts sooner. */
  async rehearse(): Promise<void> {
    await this.#request(
      protocol.REHEARSE,
      new BodyWriter().bytes(Buffer.from(JSON.stringify(REHEARSAL))).end(),
    )
  }

  /** Makes the guest look for devices that were plugged in. */
  async rescan(): Promise<void> {
    await this.#request(protocol.RESCAN)
  }

  /** What a path of the container is. @throws {@link CoracleError} NO_SUCH_PATH, GUEST_FAILED */
  async stat(path: string): Promise<PathStat> {
    const answer = await this.#request(protocol.ARCHIVE_STAT, new BodyWriter().string(path).end())
    if (answer === undefined) throw violation('an answer without data')
    return decodeStat(answer)
  }

  /** A tree of the container's files as {@link WorkloadArchive.read} has it. */
  readTree(path: string, flags: number): Promise<Duplex> {
    return this.#archive(protocol.ARCHIVE_READ, path, flags)
  }

  /** @see WorkloadArchive.write */
  writeTree(path: string, flags: number): Promise<Duplex> {
    return this.#archive(protocol.ARCHIVE_WRITE, path, flags)
  }

  #archive(type: number, path: string, flags: number): Promise<Duplex> {
    return this.#stream(type, (token) => new BodyWriter().fixed(token).u32(flags).string(path))
  }

  /** Asks for a stream. */
  async #stream(type: number, body: (token: Buffer) => BodyWriter): Promise<Duplex> {
    const stream = this.#streams.expect()
    try {
      await this.#request(type, body(stream.token).end())
      return await stream.promise
    } finally {
      this.#streams.forget(stream)
    }
  }

  /**
   * Makes the guest let go of a device, before it is taken out of the machine.
   * @param slot of PCI bus 0, 1 to 31 @param function_ 0 to 7
   * @throws {@link CoracleError} SANDBOX_FAILED where it sees none there
   */
  async unplug(slot: number, function_ = 0): Promise<void> {
    await this.#request(protocol.UNPLUG, new BodyWriter().u32(slot).u32(function_).end())
  }

  /** What the container uses. @throws {@link CoracleError} INTERNAL where it does not run, GUEST_FAILED */
  async stats(): Promise<Usage> {
    const data = await this.#request(protocol.STATS)
    if (data === undefined) throw violation('an answer without data')
    return parseUsage(splitFiles(data.toString('latin1')))
  }

  /** What runs in the container. @throws CoracleError INTERNAL where it does not run, GUEST_FAILED */
  async processes(): Promise<ProcessList> {
    const chunks: Buffer[] = []
    let size = 0
    const stream = await this.#stream(protocol.PROCESSES, (token) => new BodyWriter().fixed(token))
    for await (const chunk of stream) {
      chunks.push(chunk as Buffer)
      size += (chunk as Buffer).length
      if (size > protocol.MAX_PROCESS_LIST) throw violation('a list of processes that is too long')
    }
    const reader = new BodyReader(Buffer.concat(chunks))
    const [sinceBoot, memory] = [Number(reader.u64()), Number(reader.u64())]
    const all: RawProcess[] = []
    for (let pid; (pid = reader.u32()) !== 0;)
      all.push({
        pid,
        uid: reader.u32(),
        stat: reader.bytes().toString('utf8'),
        command: reader.bytes().toString('utf8'),
      })
    reader.end()
    return { processes: parseProcesses(all, sinceBoot), memory }
  }

  /** How many processes and threads the container may have; 0 for no limit. */
  async limitProcesses(most: number): Promise<void> {
    await this.#request(protocol.LIMIT_PROCESSES, new BodyWriter().u32(most).end())
  }

  /** sync(2) in the guest. */
  async sync(): Promise<void> {
    await this.#request(protocol.SYNC)
  }

  /** Resolves when the writable layer is unmounted: the VM may be ended then. It powers itself off or resets. */
  async shutdown(how: 'power-off' | 'reset' = 'power-off'): Promise<void> {
    await this.#request(protocol.SHUTDOWN, new BodyWriter().u32(how === 'reset' ? 1 : 0).end())
  }

  /** @see GuestStreams.accept */
  acceptStream(socket: Duplex): void {
    this.#streams.accept(socket)
  }

  /** Ends the connection; what waits rejects. The guest is not told. */
  destroy(reason = new CoracleError('GUEST_FAILED', 'the connection to the guest was ended')): void {
    this.#fail(reason)
  }

  async #request(type: number, body: Buffer = Buffer.alloc(0), command = ''): Promise<Buffer | undefined> {
    await this.#hello.promise
    // Also where it failed since the caller asked.
    if (this.#state === 'failed') throw await this.#failed.promise
    const request = this.#next++
    const reply = { ...pending<Buffer | undefined>(), command }
    const frame = encodeFrame({ type, flags: 0, request, body })
    this.#requests.set(request, reply)
    this.#control.write(frame)
    return reply.promise
  }

  #take({ type, request, body }: Frame): void {
    const reader = new BodyReader(body)
    if ((type === protocol.HELLO) !== (this.#state === 'fresh'))
      throw violation(`message ${type} out of turn`)
    switch (type) {
      case protocol.HELLO:
        this.#takeHello(reader)
        break
      case protocol.OK:
        this.#reply(request).resolve(undefined)
        break
      case protocol.DATA:
        this.#reply(request).resolve(reader.bytes())
        break
      case protocol.ERROR: {
        const reply = this.#reply(request)
        const errno = reader.u32()
        reply.reject(failure(errno, reader.string(), reader.string(), reply.command))
        break
      }
      case protocol.EXIT: {
        const [status, flags] = [reader.u32(), reader.u32()]
        if (status > 255) throw violation(`exit status ${status}`)
        if (this.#state === 'exited') throw violation('a second exit')
        this.#state = 'exited'
        this.#exited.resolve({ exitCode: status, oomKilled: (flags & protocol.EXIT_OOM_KILLED) !== 0 })
        break
      }
      case protocol.EXEC_EXIT: {
        const [id, status] = [reader.u32(), reader.u32()]
        const exec = this.#execs.get(id)
        if (status > 255 || !exec) throw violation(`the end ${status} of process ${id}`)
        this.#execs.delete(id)
        exec.resolve(status)
        break
      }
      case protocol.NOTICE:
        reader.string()
        break
      default:
        throw violation(`message of unknown type ${type}`)
    }
    reader.end()
  }

  #takeHello(reader: BodyReader): void {
    const version = reader.u32()
    if (version !== protocol.PROTOCOL_VERSION)
      throw new CoracleError(
        'GUEST_FAILED',
        `the guest's agent speaks version ${version} of the protocol, not ${protocol.PROTOCOL_VERSION}: run set-up again`,
      )
    const [kernelRelease, agentVersion, state] = [reader.string(), reader.string(), STATES[reader.u32()]]
    if (state === undefined) throw violation('an unknown state')
    this.#state = state === 'created' || state === 'running' ? 'created' : 'greeted'
    this.#hello.resolve({ kernelRelease, agentVersion, state })
  }

  #reply(request: number): Pending<Buffer | undefined> & { readonly command: string } {
    const reply = this.#requests.get(request)
    if (!reply) throw violation(`a reply to no request (${request})`)
    this.#requests.delete(request)
    return reply
  }

  #fail(error: CoracleError): void {
    if (this.#state === 'failed') return
    this.#state = 'failed'
    this.#control.destroy()
    this.#streams.fail(error)
    for (const wait of [this.#hello, this.#exited, ...this.#requests.values(), ...this.#execs.values()])
      wait.reject(error)
    this.#requests.clear()
    this.#execs.clear()
    this.#failed.resolve(error)
  }
}

function writeFiles(body: BodyWriter, files: NonNullable<AgentWorkload['files']>): void {
  body.u32(files.length)
  for (const { name, mode, data } of files) body.string(name).u32(mode).bytes(data)
}

function mount(body: BodyWriter, { device, type, options = '' }: GuestMount): BodyWriter {
  return body.string(device).string(type).string(options)
}

function failure(errno: number, code: string, text: string, command: string): CoracleError {
  if (code === 'RUNTIME' || code === 'NOT_FOUND' || code === 'NOT_EXECUTABLE')
    return crunError(text.replace(/^crun \w+: /, ''), command)
  if (code === 'FILE') return new CoracleError('NO_SUCH_PATH', `in the guest: ${text}`)
  if (code === 'PROTOCOL' || code === 'STATE')
    return new CoracleError('INTERNAL', `the guest's agent refused a request: ${text} (${errno})`)
  return new CoracleError('SANDBOX_FAILED', `in the guest: ${text}`)
}
