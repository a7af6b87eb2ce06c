import { spawn, type ChildProcess } from 'node:child_process'
import { EventEmitter, once } from 'node:events'
import { appendFileSync, rmSync, writeFileSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { Duplex } from 'node:stream'
import type { SandboxDriver } from '../../src/engine/driver.js'
import { STDERR, STDOUT, frame } from '../../src/engine/frames.js'
import { savedFiles } from '../../src/isolation/index.js'
import { parseProcesses, type ProcessList } from '../../src/isolation/processes.js'
import type { SandboxStats } from '../../src/isolation/stats.js'
import { CoracleError } from '../../src/errors.js'
import type {
  AttachOptions,
  Sandbox,
  SandboxExit,
  SandboxInterface,
  SandboxLimits,
  SandboxSpec,
} from '../../src/isolation/sandbox.js'

/**
 * Sandboxes without a box: the command runs as a plain child of the test, and lives as long as this driver, which
 * stands for the monitors and what they leave on disk. Several engines may share one.
 */
export class FakeDriver implements SandboxDriver {
  readonly sandboxes = new Map<string, FakeSandbox>()
  readonly exits = new Map<string, SandboxExit>()
  readonly specs: SandboxSpec[] = []
  /** Called at each launch. */
  launched: (spec: SandboxSpec) => void = () => undefined
  /** Makes the next launch fail. */
  failure: CoracleError | undefined

  async launchSandbox(spec: SandboxSpec): Promise<FakeSandbox> {
    if (this.failure) throw this.failure
    this.specs.push(spec)
    this.launched(spec)
    this.exits.delete(spec.id)
    const sandbox = new FakeSandbox(spec)
    this.sandboxes.set(spec.id, sandbox)
    void sandbox.wait().then((exit) => {
      if (this.sandboxes.get(spec.id) !== sandbox) return
      this.sandboxes.delete(spec.id)
      this.exits.set(spec.id, exit)
    })
    return sandbox
  }

  async openSandbox(spec: SandboxSpec): Promise<FakeSandbox | undefined> {
    return this.sandboxes.get(spec.id)
  }

  readExit(spec: SandboxSpec): SandboxExit | undefined {
    return this.exits.get(spec.id)
  }

  reap(spec: SandboxSpec): void {
    rmSync(spec.runDirectory, { recursive: true, force: true })
  }

  /** As `kill -9` of a monitor: no status, and nobody hears of it. */
  async crash(id: string): Promise<void> {
    const sandbox = this.sandboxes.get(id)!
    this.sandboxes.delete(id)
    await sandbox.destroy()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.sandboxes.values()].map((each) => each.destroy()))
  }
}

export class FakeSandbox implements Sandbox {
  readonly sizes: [number, number][] = []
  readonly #events = new EventEmitter<{ exit: [SandboxExit] }>()
  readonly #exit: Promise<SandboxExit>
  readonly #attached = new Set<Attachment>()
  #child: ChildProcess | undefined
  #stdinWriter: Attachment | undefined

  constructor(readonly spec: SandboxSpec) {
    this.#exit = once(this.#events, 'exit').then(([exit]) => exit as SandboxExit)
  }

  /** What it says it uses. */
  usage: SandboxStats = {
    cpu: { total: 2e9, user: 1.5e9, system: 5e8, periods: 0, throttledPeriods: 0, throttledTime: 0 },
    memory: { usage: 3 << 20, detail: { inactive_file: 1 << 20 } },
    pids: { current: 2, limit: 0 },
    block: [{ major: 254, minor: 0, readBytes: 4096, writeBytes: 512, reads: 1, writes: 1 }],
    networks: {},
    memoryLimit: 64 << 20,
    host: { cpu: 100e9, cpus: 2 },
  }

  stats(): Promise<SandboxStats> {
    return Promise.resolve(this.usage)
  }

  processes(): Promise<ProcessList> {
    const stat = (pid: number, name: string, tty: number): string =>
      `${pid} (${name}) S 1 ${pid} ${pid} ${tty} ${pid} 0 0 0 0 0 25000 5500 0 0 20 0 1 0 100 8388608 256 ${'0 '.repeat(27)}`
    const all = [
      { pid: 7, uid: 0, stat: stat(107, 'sh) S 1', 0x8801), command: 'sh\0-c\0a\u001bb\0' },
      { pid: 8, uid: 33, stat: stat(108, 'worker', 0), command: '' },
      { pid: 9, uid: 0, stat: 'no such file', command: '' },
    ]
    return Promise.resolve({ processes: parseProcesses(all, 1001e9), memory: 64 << 20 })
  }

  interfaces: readonly SandboxInterface[] = []

  async setInterfaces(interfaces: readonly SandboxInterface[]): Promise<void> {
    this.interfaces = interfaces
  }

  still = false

  async pause(): Promise<void> {
    this.still = true
    this.#child?.kill('SIGSTOP')
  }

  async resume(): Promise<void> {
    this.still = false
    this.#child?.kill('SIGCONT')
  }

  readonly limits: SandboxLimits[] = []
  async update(limits: SandboxLimits): Promise<void> {
    this.limits.push(limits)
  }

  machine(): Promise<object> {
    return Promise.reject(new CoracleError('INVALID_ARGUMENT', 'no machine'))
  }

  /** Where it is to fail. */
  snapshotFailure: Error | undefined

  async snapshot(folder: string, _signal?: AbortSignal, stay = false): Promise<void> {
    if (stay) await this.pause()
    for (const [name, path] of Object.entries(savedFiles(folder)))
      writeFileSync(path, `${name} of ${this.spec.id}`)
    if (this.snapshotFailure) throw this.snapshotFailure
  }

  get pid(): number {
    return this.#child?.pid ?? 0
  }

  async start(_signal?: AbortSignal, still = false): Promise<void> {
    const { args, env, cwd } = this.spec.bundle.process
    const child = spawn(args[0]!, args.slice(1), {
      env: Object.fromEntries(env.map((each) => [each.split('=', 1)[0]!, each.slice(each.indexOf('=') + 1)])),
      cwd,
      stdio: [this.spec.openStdin ? 'pipe' : 'ignore', 'pipe', 'pipe'],
    })
    this.#child = child
    try {
      await once(child, 'spawn')
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      this.#child = undefined
      const name = JSON.stringify(args[0])
      throw code === 'EACCES'
        ? new CoracleError('COMMAND_NOT_EXECUTABLE', `cannot run ${name}: permission denied`)
        : new CoracleError('COMMAND_NOT_FOUND', `cannot run ${name}: executable file not found in $PATH`)
    }
    child.stdin?.on('error', () => undefined)
    if (still) await this.pause()
    for (const each of this.#attached) this.#connectStdin(each)
    for (const [stream, source] of [
      [STDOUT, child.stdout!],
      [STDERR, child.stderr!],
    ] as const)
      source.on('data', (data: Buffer) => this.#carry(stream, data, source))
    child.on('close', (code, signal) => {
      for (const each of this.#attached) each.push(null)
      const exitCode = code ?? 128 + constants.signals[signal!]
      this.#events.emit('exit', { exitCode, finishedAt: new Date().toISOString() })
    })
  }

  #carry(stream: number, data: Buffer, source: NodeJS.ReadableStream): void {
    if (data.length < 4096) {
      const line = {
        log: data.toString(),
        stream: stream === STDERR ? 'stderr' : 'stdout',
        time: new Date().toISOString(),
      }
      appendFileSync(join(this.spec.stateDirectory, 'container.log'), `${JSON.stringify(line)}\n`)
    }
    const full = [...this.#attached].filter((each) => each.takes(stream) && !each.push(frame(stream, data)))
    if (full.length === 0) return
    source.pause()
    void Promise.all(full.map((each) => each.drained())).then(() => source.resume())
  }

  async attach(options: AttachOptions): Promise<Duplex> {
    const attachment = new Attachment(options)
    this.#attached.add(attachment)
    attachment.on('close', () => this.#attached.delete(attachment))
    if (this.#child) this.#connectStdin(attachment)
    return attachment
  }

  #connectStdin(attachment: Attachment): void {
    if (!attachment.options.stdin || this.#stdinWriter) return
    this.#stdinWriter = attachment
    attachment.sink(this.#child!.stdin!)
  }

  async kill(signal: number): Promise<void> {
    this.#child?.kill(signal)
  }

  async resize(width: number, height: number): Promise<void> {
    this.sizes.push([width, height])
  }

  wait(): Promise<SandboxExit> {
    return this.#exit
  }

  /** A fake has one process only. */
  async createExec(): Promise<void> {
    throw new CoracleError('NOT_IMPLEMENTED', 'no exec here')
  }

  readonly startExec = (): Promise<never> => this.#noExec()
  readonly execState = (): Promise<never> => this.#noExec()
  readonly waitExec = (): Promise<never> => this.#noExec()
  readonly killExec = (): Promise<never> => this.#noExec()
  readonly resizeExec = (): Promise<never> => this.#noExec()

  readonly statPath = (): Promise<never> => this.#noExec()
  readonly treesStill: boolean[] = []
  readTree(_path: string, _flags: number, still = false): Promise<never> {
    this.treesStill.push(still)
    return this.#noExec()
  }

  readonly writeTree = (): Promise<never> => this.#noExec()

  async #noExec(): Promise<never> {
    throw new CoracleError('NO_SUCH_EXEC', 'no exec here')
  }

  /** Where it is to fail. */
  destroyFailure: Error | undefined

  async destroy(): Promise<void> {
    if (this.destroyFailure) throw this.destroyFailure
    if (this.#child) this.#child.kill('SIGKILL')
    else {
      for (const each of this.#attached) each.push(null)
      this.#events.emit('exit', { exitCode: 137, finishedAt: new Date().toISOString() })
    }
    await this.#exit
  }
}

class Attachment extends Duplex {
  #sink: NodeJS.WritableStream | undefined
  #waiting: (() => void)[] = []
  #held: (() => void) | undefined

  constructor(readonly options: AttachOptions) {
    super({ allowHalfOpen: true })
    this.on('error', () => undefined)
  }

  takes(stream: number): boolean {
    return stream === STDERR ? this.options.stderr : this.options.stdout
  }

  drained(): Promise<void> {
    return new Promise((resolve) => {
      if (this.destroyed) resolve()
      else this.#waiting.push(resolve)
    })
  }

  sink(sink: NodeJS.WritableStream): void {
    this.#sink = sink
    this.#held?.()
  }

  override _read(): void {
    this.#waiting.splice(0).forEach((wake) => wake())
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error) => void): void {
    if (!this.#sink) this.#held = () => this._write(chunk, _encoding, done)
    else if (this.#sink.write(chunk)) done()
    else {
      const sink = this.#sink
      const next = (): void => {
        sink.off('drain', next).off('close', next)
        done()
      }
      sink.on('drain', next).on('close', next)
    }
  }

  override _final(done: () => void): void {
    if (!this.#sink) this.#held = () => this._final(done)
    else this.#sink.end(() => done())
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this._read()
    done(error)
  }
}
