import { spawn } from 'node:child_process'
import { mkdirSync, openSync, closeSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { Socket } from 'node:net'
import { dirname, join } from 'node:path'
import { becomeSubreaper, pipe, type Fd } from '@coracle/sys'
import { toolCommand, type Command } from '../../debian/index.js'
import { CoracleError } from '../../errors.js'
import { crunError } from '../crun-error.js'
import { execProcess } from '../exec.js'
import { sandboxFiles } from '../files.js'
import type { ExecProcess, Workload, WorkloadEnd, WorkloadStreams } from '../monitor/workload.js'
import type { ExecSpec, OciConfig, SandboxLimits, SandboxSpec } from '../sandbox.js'
import { MAX_USER_FILE } from '../user.js'
import { HostArchive } from './archive.js'
import { hostBundle } from './bundle.js'
import { freezeCgroups, killCgroups, oomKills, removeCgroups, thawCgroups, updateCgroups } from './cgroup.js'
import { Child } from './child.js'
import { readRootFile } from './root-file.js'
import { RootMount } from './root-mount.js'
import { type SandboxStats, hostCpu } from '../stats.js'
import { type LetGo, Stillness } from '../stillness.js'
import { cgroupUsage } from './usage.js'
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
  #child: Child | undefined
  #config: OciConfig | undefined
  #terminal: Terminal | undefined
  readonly #stillness: Stillness
  #paused: Promise<LetGo> | undefined
  /** Settles when no exec is being started: one at a time, so that it is clear whose a process is. */
  #starting: Promise<unknown> = Promise.resolve()

  constructor(spec: SandboxSpec) {
    this.#spec = spec
    this.#folder = spec.runDirectory
    this.#stillness = new Stillness(
      () => freezeCgroups(spec),
      async () => thawCgroups(spec),
    )
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
    const { ipc } = this.#spec.joins ?? {}
    const sharedMemory = ipc === undefined ? undefined : this.#root.share(`/proc/${ipc}/ns/mnt`, '/dev/shm')
    this.#root.mount(this.#spec.layers, sandboxFiles(this.#spec).writable)
    mkdirSync(this.#bundle, { recursive: true })
    this.#config = await hostBundle(this.#spec, this.#root.path, sharedMemory)
    writeFileSync(join(this.#bundle, 'config.json'), JSON.stringify(this.#config))
  }

  async start(): Promise<WorkloadStreams> {
    const { openStdin, tty, bundle } = this.#spec
    const command = bundle.process.args[0] ?? ''
    const created = await this.#spawn(['create', '--bundle', this.#bundle], this.#folder, {
      openStdin,
      tty,
      command,
    })
    this.#terminal = created.terminal
    this.#child = created.child
    void created.child.ended.then((exitCode) => {
      const oomKilled = oomKills(this.#spec) > 0
      this.#resolveEnd(oomKilled ? { exitCode, oomKilled } : { exitCode })
    })
    await this.#crun(['start'], ['ignore', 'ignore', 'ignore'], this.#folder, command)
    created.child.look()
    return created.streams
  }

  async stats(): Promise<SandboxStats> {
    if (!this.#child?.alive) throw new CoracleError('NOT_RUNNING', 'the container is not running')
    return { ...cgroupUsage(this.#spec, this.#child.pid), host: hostCpu() }
  }

  async pause(): Promise<void> {
    const hold = (this.#paused ??= this.hold())
    try {
      await hold
    } catch (error) {
      this.#paused = undefined
      throw error
    }
  }

  async resume(): Promise<void> {
    const hold = this.#paused
    this.#paused = undefined
    await (
      await hold?.catch(() => undefined)
    )?.()
  }

  hold(): Promise<LetGo> {
    return this.#stillness.hold()
  }

  async update(limits: SandboxLimits): Promise<void> {
    updateCgroups(this.#spec, limits)
  }

  machine(): Promise<never> {
    const message = 'this container runs with process isolation and has no machine'
    return Promise.reject(new CoracleError('INVALID_ARGUMENT', message))
  }

  exec(exec: ExecSpec): Promise<ExecProcess> {
    const started = this.#starting.then(async () => {
      // crun would refuse: but where files are read it is soon over.
      if (!this.#paused) await this.#stillness.moving()
      return this.#exec(exec)
    })
    this.#starting = started.catch(() => undefined)
    return started
  }

  async #exec(exec: ExecSpec): Promise<ExecProcess> {
    const folder = join(this.#folder, `exec-${exec.id.slice(-16)}`)
    const file = join(folder, 'process.json')
    mkdirSync(folder, { recursive: true, mode: 0o700 })
    try {
      const process = await execProcess(this.#config!, exec, (path) =>
        readRootFile(this.#root.path, path, MAX_USER_FILE),
      )
      writeFileSync(file, JSON.stringify(process), { mode: 0o600 })
      const { openStdin, tty } = exec
      const started = await this.#spawn(['exec', '--detach', '--process', file], folder, {
        openStdin,
        tty,
        command: exec.args[0] ?? '',
      })
      const { child, streams, terminal } = started
      child.look()
      return {
        streams,
        pid: child.pid,
        ended: child.ended.then((exitCode) => ({ exitCode })),
        kill: async (signal) => child.kill(signal),
        resize: async (width, height) => terminal?.resize(width, height),
        release: () => {
          terminal?.close()
          for (const stream of Object.values(streams)) (stream as Socket).destroy()
        },
      }
    } catch (error) {
      Child.adoptStrays()
      throw error
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  }

  readonly archive = new HostArchive(() => ({
    // With a process there: the files as it sees them, with all of its mounts.
    root: this.#child?.alive ? `/proc/${this.#child.pid}/root` : this.#root.path,
    upper: join(sandboxFiles(this.#spec).writable, 'upper'),
    layers: dirname(this.#root.path),
  }))

  async kill(signal: number): Promise<void> {
    if (!this.#child) throw new CoracleError('NOT_RUNNING', 'the container is not running')
    this.#child.kill(signal)
  }

  async resize(width: number, height: number): Promise<void> {
    this.#terminal?.resize(width, height)
  }

  async release(): Promise<void> {
    if (this.#child?.alive) this.#child.kill(SIGKILL)
    await killCgroups(this.#spec)
    Child.look()
    this.#terminal?.close()
    await removeCgroups(this.#spec)
    this.#root.release()
  }

  get #bundle(): string {
    return join(this.#folder, 'bundle')
  }

  /** Runs a crun command that leaves a process to us. @param folder for files of this command alone */
  async #spawn(
    words: string[],
    folder: string,
    { openStdin, tty, command }: { openStdin: boolean; tty: boolean; command: string },
  ): Promise<{ streams: WorkloadStreams; child: Child; terminal: Terminal | undefined }> {
    const pidFile = join(folder, 'pid')
    const all = [...words, '--pid-file', pidFile]
    let streams: WorkloadStreams
    let terminal: Terminal | undefined
    if (tty) {
      using socket = new ConsoleSocket(join(folder, 'console.sock'))
      all.push('--console-socket', socket.path)
      await this.#crun(all, ['ignore', 'ignore', 'ignore'], folder, command)
      terminal = socket.receive()
      const { stream } = terminal
      streams = openStdin ? { stdin: stream, stdout: stream } : { stdout: stream }
    } else streams = await this.#withPipes(openStdin, (stdio) => this.#crun(all, stdio, folder, command))
    return { streams, child: new Child(Number(readFileSync(pidFile, 'utf8'))), terminal }
  }

  async #withPipes(
    openStdin: boolean,
    run: (stdio: ('ignore' | number)[]) => Promise<void>,
  ): Promise<WorkloadStreams> {
    // Pipes, not the socket pairs that Node would make: a process may open /dev/stdout by name.
    const [outEnd, outIn] = pipe()
    const [errEnd, errIn] = pipe()
    const input = openStdin ? pipe() : undefined
    const theirs: Fd[] = [outIn, errIn]
    const ours: Fd[] = [outEnd, errEnd]
    if (input) {
      theirs.push(input[0])
      ours.push(input[1])
    }
    try {
      await run([input?.[0].number ?? 'ignore', outIn.number, errIn.number])
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
  async #crun(words: string[], stdio: ('ignore' | number)[], folder: string, command: string): Promise<void> {
    const log = join(folder, 'crun.log')
    closeSync(openSync(log, 'w', 0o600))
    const common = ['--root', join(this.#folder, 'crun'), '--cgroup-manager=cgroupfs']
    const { argv, env } = await this.#command
    const all = [...argv.slice(1), ...common, '--log', log, '--log-format=json', ...words, this.#spec.id]
    const child = spawn(argv[0]!, all, { cwd: '/', env: { ...process.env, ...env }, stdio })
    const status = await new Promise<number | null>((resolve, reject) => {
      child.on('exit', resolve)
      child.on('error', (error) => reject(new CoracleError('HOST_TOOL', `cannot run crun: ${error.message}`)))
    })
    if (status !== 0) throw crunError(lastMessage(log), command)
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
