import { spawn } from 'node:child_process'
import { mkdirSync, openSync, closeSync, readFileSync, writeFileSync } from 'node:fs'
import { Socket } from 'node:net'
import { join } from 'node:path'
import { SysError, becomeSubreaper, pipe, waitForChild, type Fd } from '@coracle/sys'
import { toolCommand, type Command } from '../../debian/index.js'
import { CoracleError } from '../../errors.js'
import { crunError } from '../crun-error.js'
import { sandboxFiles } from '../files.js'
import type { Workload, WorkloadEnd, WorkloadStreams } from '../monitor/workload.js'
import type { SandboxSpec } from '../sandbox.js'
import { hostBundle } from './bundle.js'
import { killCgroups, oomKills, removeCgroups } from './cgroup.js'
import { RootMount } from './root-mount.js'
import { ConsoleSocket, type Terminal } from './terminal.js'

const SIGKILL = 9

/** Runs the container's process with crun on the host: namespaces, cgroups, no machine of its own. */
export class CrunWorkload implements Workload {
  readonly ended: Promise<WorkloadEnd>
  readonly #spec: SandboxSpec
  readonly #folder: string
  readonly #root: RootMount
  #resolveEnd!: (end: WorkloadEnd) => void
  readonly #command: Promise<Command>
  #pid: number | undefined
  #terminal: Terminal | undefined
  readonly #reap = (): void => this.#takeStatus()

  constructor(spec: SandboxSpec) {
    this.#spec = spec
    this.#folder = spec.runDirectory
    this.#root = new RootMount(join(this.#folder, 'mounts'))
    this.#command = toolCommand('crun')
    this.#command.catch(() => undefined)
    this.ended = new Promise((resolve) => (this.#resolveEnd = resolve))
  }

  async prepare(): Promise<void> {
    if (process.getuid?.() !== 0)
      throw new CoracleError(
        'SANDBOX_FAILED',
        'process isolation needs root; run as root, or use --isolation microvm',
      )
    // crun leaves the container's first process to us: as PID 1 of our namespace or as a subreaper.
    becomeSubreaper()
    this.#root.mount(this.#spec.layers, sandboxFiles(this.#spec).writable)
    mkdirSync(this.#bundle, { recursive: true })
    const bundle = await hostBundle(this.#spec, this.#root.path)
    writeFileSync(join(this.#bundle, 'config.json'), JSON.stringify(bundle))
  }

  async start(): Promise<WorkloadStreams> {
    const pidFile = join(this.#folder, 'pid')
    const create = ['create', '--bundle', this.#bundle, '--pid-file', pidFile]
    let streams: WorkloadStreams
    if (this.#spec.tty) {
      using socket = new ConsoleSocket(join(this.#folder, 'console.sock'))
      await this.#crun([...create, '--console-socket', socket.path], ['ignore', 'ignore', 'ignore'])
      this.#terminal = socket.receive()
      const { stream } = this.#terminal
      streams = this.#spec.openStdin ? { stdin: stream, stdout: stream } : { stdout: stream }
    } else streams = await this.#createWithPipes(create)
    this.#pid = Number(readFileSync(pidFile, 'utf8'))
    process.on('SIGCHLD', this.#reap)
    await this.#crun(['start'], ['ignore', 'ignore', 'ignore'])
    this.#takeStatus()
    return streams
  }

  async kill(signal: number): Promise<void> {
    // Not waited for yet, so the number is still its own.
    if (this.#pid === undefined) throw new CoracleError('NOT_RUNNING', 'the container is not running')
    process.kill(this.#pid, signal)
  }

  async resize(width: number, height: number): Promise<void> {
    this.#terminal?.resize(width, height)
  }

  async release(): Promise<void> {
    if (this.#pid !== undefined) await this.kill(SIGKILL)
    await killCgroups(this.#spec.id)
    this.#takeStatus()
    this.#terminal?.close()
    await removeCgroups(this.#spec.id)
    this.#root.release()
  }

  get #bundle(): string {
    return join(this.#folder, 'bundle')
  }

  async #createWithPipes(create: string[]): Promise<WorkloadStreams> {
    // Pipes, not the socket pairs that Node would make: a process may open /dev/stdout by name.
    const [outEnd, outIn] = pipe()
    const [errEnd, errIn] = pipe()
    const input = this.#spec.openStdin ? pipe() : undefined
    const theirs: Fd[] = [outIn, errIn]
    const ours: Fd[] = [outEnd, errEnd]
    if (input) {
      theirs.push(input[0])
      ours.push(input[1])
    }
    try {
      await this.#crun(create, [input?.[0].number ?? 'ignore', outIn.number, errIn.number])
    } catch (error) {
      for (const fd of ours) fd.close()
      throw error
    } finally {
      for (const fd of theirs) fd.close()
    }
    const reader = (fd: Fd): Socket => new Socket({ fd: fd.release(), readable: true, writable: false })
    const streams = { stdout: reader(outEnd), stderr: reader(errEnd) }
    if (!input) return streams
    const stdin = new Socket({ fd: input[1].release(), readable: false, writable: true })
    // A pipe cannot be shut down; its end is that it is closed.
    stdin.once('finish', () => stdin.destroy())
    return { ...streams, stdin }
  }

  /** Runs one crun command. @throws CoracleError as crunError makes it of crun's log */
  async #crun(command: string[], stdio: ('ignore' | number)[]): Promise<void> {
    const log = join(this.#folder, 'crun.log')
    closeSync(openSync(log, 'w', 0o600))
    const words = ['--root', join(this.#folder, 'crun'), '--cgroup-manager=cgroupfs']
    const { argv, env } = await this.#command
    const all = [...argv.slice(1), ...words, '--log', log, '--log-format=json', ...command, this.#spec.id]
    const child = spawn(argv[0]!, all, { cwd: '/', env: { ...process.env, ...env }, stdio })
    const status = await new Promise<number | null>((resolve, reject) => {
      child.on('exit', resolve)
      child.on('error', (error) => reject(new CoracleError('HOST_TOOL', `cannot run crun: ${error.message}`)))
    })
    if (status !== 0) throw crunError(lastMessage(log), this.#spec.bundle.process.args[0] ?? '')
  }

  #takeStatus(): void {
    if (this.#pid === undefined) return
    let exitCode: number
    try {
      const end = waitForChild(this.#pid)
      if (end === undefined) return
      exitCode = 'status' in end ? end.status : 128 + end.signal
    } catch (error) {
      if (!(error instanceof SysError)) throw error
      exitCode = 128 + SIGKILL
    }
    this.#pid = undefined
    process.off('SIGCHLD', this.#reap)
    const oomKilled = oomKills(this.#spec.id) > 0
    this.#resolveEnd(oomKilled ? { exitCode, oomKilled } : { exitCode })
  }
}

/** The last error in crun's log of JSON lines. */
function lastMessage(log: string): string {
  const line = readFileSync(log, 'utf8').trim().split('\n').at(-1)
  if (!line) return 'it failed without a message'
  try {
    return (JSON.parse(line) as { msg: string }).msg
  } catch {
    return line
  }
}
