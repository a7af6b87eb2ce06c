import { spawn } from 'node:child_process'
import type { Socket } from 'node:net'
import { CoracleError } from '../errors.js'
import { programFile } from '../programs.js'

/** In place of a specification's path: the monitor waits for one on its stdin. */
export const TO_COME = '-'

/** What a monitor needs of the environment; tools that watch Node programs by NODE_OPTIONS are not let in. */
export const KEPT = /^(PATH|HOME|LANG|TMPDIR|XDG_.*|CORACLE_.*)$/

/** A monitor's process as its starter has it. */
export interface MonitorProcess {
  /** Takes one line that tells whether its control socket answers. */
  readonly ready: Socket
  /** Rejects where there is no such process. */
  readonly failed: Promise<never>
}

/** An empty monitor, until it is told what it is for. */
interface Spare {
  readonly process: MonitorProcess
  readonly stdin: Socket
  readonly pid: number
  readonly alive: () => boolean
}

/**
 * Runs a monitor in a PID namespace of its own, with a session of its own: it is the first process there, so the kernel
 * kills all that it started when it ends; it makes itself a mount namespace. Without the rights to do so (not root), or
 * with a container that shares the host's processes (a PID namespace can only be entered from one above it), it has
 * none, and `reap` has more to look for.
 * @param log descriptor for what it has to say itself
 */
function spawnMonitor(
  path: string,
  log: number | 'ignore',
  stdin: 'ignore' | 'pipe',
  sharesProcesses = false,
): ReturnType<typeof spawn> {
  const node = [process.execPath, '--no-warnings', programFile('monitor'), path]
  const alone = ['unshare', '--pid', '--fork', '--kill-child', '--']
  const isRoot = process.getuid?.() === 0
  const command = [...(isRoot && !sharesProcesses ? alone : []), ...node, ...(isRoot ? ['--namespaces'] : [])]
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => KEPT.test(name)))
  const child = spawn(command[0]!, command.slice(1), {
    cwd: '/',
    detached: true,
    env,
    stdio: [stdin, log, log, 'pipe'],
  })
  child.unref()
  return child
}

function processOf(child: ReturnType<typeof spawn>): MonitorProcess {
  const failed = new Promise<never>((_, reject) => {
    child.on('error', (error) =>
      reject(new CoracleError('HOST_TOOL', `cannot start the sandbox's monitor: ${error.message}`)),
    )
  })
  failed.catch(() => undefined)
  return { ready: child.stdio[3] as Socket, failed }
}

/** Starts a monitor of its own for a specification. @param sharesProcesses in the host's PID namespace */
export const startMonitor = (specPath: string, log: number, sharesProcesses = false): MonitorProcess =>
  processOf(spawnMonitor(specPath, log, 'ignore', sharesProcesses))

/** Gives a monitor for a specification: {@link startMonitor}, or one that waits. */
export type MonitorSource = (specPath: string, log: number) => MonitorProcess

/**
 * Monitors that are started and empty, so that a container waits for no Node. They are no containers: nobody counts
 * them, and they end with the pool, by the pipe on their stdin, also when its process is killed.
 */
export class MonitorPool implements Disposable {
  readonly #size: number
  readonly #spares: Spare[] = []
  #closed = false

  /** @param size that are kept; 0 keeps none */
  constructor(size: number) {
    this.#size = size
    this.#fill()
  }

  /** Those that wait. */
  get idle(): number[] {
    return this.#spares.filter(({ alive }) => alive()).map(({ pid }) => pid)
  }

  /** One that waits, else a fresh one. It opens the log of the sandbox itself. */
  readonly take: MonitorSource = (specPath, log) => {
    let spare: Spare | undefined
    while ((spare = this.#spares.shift()) && !spare.alive());
    if (!spare) {
      this.#fill()
      return startMonitor(specPath, log)
    }
    const { process, stdin } = spare
    stdin.end(`${specPath}\n`)
    // The run that took it comes first.
    process.ready.once('close', () => this.#fill())
    return process
  };

  [Symbol.dispose](): void {
    this.#closed = true
    for (const { stdin } of this.#spares.splice(0)) stdin.destroy()
  }

  #fill(): void {
    while (!this.#closed && this.#spares.length < this.#size) {
      const child = spawnMonitor(TO_COME, 'ignore', 'pipe')
      const stdin = child.stdin as unknown as Socket
      let alive = true
      const dead = (): void => void (alive = false)
      child.on('exit', dead).on('error', dead)
      stdin.on('error', dead)
      stdin.unref()
      ;(child.stdio[3] as Socket).on('error', dead).unref()
      this.#spares.push({ process: processOf(child), stdin, pid: child.pid ?? 0, alive: () => alive })
    }
  }
}
