import { spawn } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Socket } from 'node:net'
import { type Fd, socketPair } from '@coracle/sys'
import { toolCommand } from '../../debian/index.js'
import { CoracleError } from '../../errors.js'
import { type Handover, sendHandover } from '../handover.js'
import { type ProcessIdentity, gone, identify } from '../liveness.js'
import { restoreError } from '../protocol.js'
import { boxConfig } from './config.js'
import { type BoxRoot, boxRoot } from './root.js'
import { type HostUser, allocateUser } from './uid.js'

/*
 * Runs a command in a mount namespace of its own in which cgroup v2 is hidden where v1 is in use: crun declines the
 * two side by side once a controller lives in v2, though it is to leave cgroups alone.
 */
const WRAPPER = `
[ ! -e /sys/fs/cgroup/unified/cgroup.procs ] || mount -t tmpfs tmpfs /sys/fs/cgroup/unified || exit 1
exec "$@"`

/** What else there is to say about a box that is to be started. */
export interface BoxOptions {
  /**
   * A descriptor that stays open for as long as crun is at work, also where we are killed: of the lock on what
   * `folder` is in, so that nobody cleans up beside crun.
   */
  readonly hold?: number
  /** @default {@link boxRoot} */
  readonly root?: BoxRoot
  /** @default the monitor of microVMs */
  readonly entry?: string
}

/** A process of a microVM in its sandbox, started and empty: it waits for a hand-over, and ends when its socket does. */
export class Box {
  /** As the host counts. */
  readonly identity: ProcessIdentity
  /** User and group on the host. */
  readonly userId: number
  readonly #socket: Fd
  readonly #user: Fd
  #template: string | undefined

  private constructor(identity: ProcessIdentity, socket: Fd, user: HostUser) {
    this.identity = identity
    this.userId = user.id
    this.#socket = socket
    this.#user = user.lock
  }

  /**
   * @param folder for files of the start alone; made and removed
   * @param log where the process and crun say what goes wrong, a descriptor
   * @throws CoracleError SANDBOX_FAILED, HOST_TOOL
   */
  static async start(folder: string, log: number, options: BoxOptions = {}): Promise<Box> {
    const { argv, env } = await toolCommand('crun')
    const user = allocateUser()
    const [ours, theirs] = socketPair()
    mkdirSync(folder, { recursive: true, mode: 0o700 })
    try {
      const config = boxConfig(options.root ?? boxRoot(), user.id, options.entry)
      writeFileSync(join(folder, 'config.json'), JSON.stringify(config))
      const pidFile = join(folder, 'pid')
      const words = [
        ...['--mount', '--propagation', 'private', '--', 'sh', '-c', WRAPPER, 'sh', ...argv],
        ...['--root', join(folder, 'crun'), '--cgroup-manager=disabled', 'run', '--detach'],
        ...['--bundle', folder, '--pid-file', pidFile, '--preserve-fds', '1', `box-${user.id}`],
      ]
      const status = await run('unshare', words, { ...process.env, ...env }, [
        'ignore',
        log,
        log,
        theirs.number,
        // crun closes it on its way into the box.
        ...(options.hold === undefined ? [] : [options.hold]),
      ])
      const identity = status === 0 ? identify(Number(readFileSync(pidFile, 'utf8'))) : undefined
      if (!identity) throw new CoracleError('SANDBOX_FAILED', 'the sandbox of a microVM did not start')
      return new Box(identity, ours, user)
    } catch (error) {
      ours.close()
      user.lock.close()
      throw error
    } finally {
      theirs.close()
      rmSync(folder, { recursive: true, force: true })
    }
  }

  /**
   * Has the process make a guest ready from a template, for a container that comes later.
   * @param handover `kvm`, `tools`, `template.state` and `template.memory`
   * @param template what is made ready, for whoever looks for just that
   * @throws CoracleError why it could not: the box is of no use then
   */
  async prepare(handover: Handover, template: string): Promise<void> {
    sendHandover(this.#socket, handover)
    const socket = new Socket({ fd: this.#socket.duplicate().release(), readable: true, writable: false })
    try {
      const answer = await firstLine(socket)
      if (answer === undefined) throw new CoracleError('SANDBOX_FAILED', 'it ended without a reason')
      const { error } = JSON.parse(answer) as { error?: { code: string; message: string } }
      if (error) throw restoreError(error)
      this.#template = template
    } finally {
      socket.destroy()
    }
  }

  /** What {@link prepare} has made ready. */
  get template(): string | undefined {
    return this.#template
  }

  get alive(): boolean {
    return identify(this.identity.pid)?.startTime === this.identity.startTime
  }

  /**
   * Hands over all that the process gets, and waits for its answer. The box is the process's own from then on: what
   * we hold of it is given back.
   * @returns the line that it answered, undefined where it ended without
   */
  async fill(handover: Handover): Promise<string | undefined> {
    try {
      handover.add('user', this.#user)
      sendHandover(this.#socket, handover)
    } catch (error) {
      await this.end()
      throw error
    }
    const socket = new Socket({ fd: this.#socket.release(), readable: true, writable: true })
    try {
      return await firstLine(socket)
    } finally {
      socket.destroy()
    }
  }

  /** Ends it, for one that was not filled. */
  async end(): Promise<void> {
    this.#socket.close()
    try {
      process.kill(this.identity.pid, 'SIGKILL')
    } catch {
      // It saw its socket close.
    }
    await gone([this.identity])
    this.#user.close()
  }
}

function run(
  program: string,
  words: readonly string[],
  env: NodeJS.ProcessEnv,
  stdio: ('ignore' | number)[],
): Promise<number | null> {
  const child = spawn(program, words, { cwd: '/', env, stdio, detached: true })
  return new Promise((resolve, reject) => {
    child.on('exit', resolve)
    child.on('error', (error) =>
      reject(new CoracleError('HOST_TOOL', `cannot start a sandbox with ${program}: ${error.message}`)),
    )
  })
}

/** A line longer than this is no answer. */
const MAX_ANSWER = 64 * 1024

function firstLine(socket: Socket): Promise<string | undefined> {
  return new Promise((resolve) => {
    let text = ''
    const over = (): void => resolve(undefined)
    socket.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk
      const end = text.indexOf('\n')
      if (end >= 0) resolve(text.slice(0, end))
      else if (text.length > MAX_ANSWER) over()
    })
    socket.on('error', over)
    socket.on('close', over)
  })
}
