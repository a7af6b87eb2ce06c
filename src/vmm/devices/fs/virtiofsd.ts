import { type ChildProcess, spawn } from 'node:child_process'
import { rmSync, statSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { CoracleError } from '../../../errors.js'
import { toolCommand } from '../../../debian/index.js'

const LISTENING = 'Waiting for vhost-user socket connection'
/** Lines of virtiofsd's that an error quotes. */
const QUOTED = 5

export interface VirtiofsdOptions {
  /** The folder to share; absolute. Nothing outside it can be reached through the share, whatever links say. */
  readonly folder: string
  /** Where it listens: a Unix socket, made by virtiofsd and removed with it. */
  readonly socket: string
  /** @default false */
  readonly readOnly?: boolean
  /** Hears what virtiofsd has to say, line by line. */
  readonly log?: (line: string) => void
}

/** The words of virtiofsd's command line, but for where it listens. */
export function virtiofsdArguments({
  folder,
  readOnly = false,
}: Pick<VirtiofsdOptions, 'folder' | 'readOnly'>): string[] {
  return [
    ...['--shared-dir', folder, '--sandbox', 'namespace', '--log-level', 'info'],
    // The guest hears of changes on the host within a second; its own are through at once.
    ...['--cache', 'auto', '--inode-file-handles=never', '--announce-submounts', '--xattr'],
    ...(readOnly ? ['--readonly'] : []),
  ]
}

/**
 * A virtiofsd of Debian's for one folder and one guest: the other end of a device of the kind `fs`, or of QEMU's
 * `vhost-user-fs-pci`. It runs in namespaces of its own with the folder as its root, under its own seccomp filter.
 * It ends when its guest's VMM closes the connection, and with {@link Symbol.asyncDispose}.
 */
export class Virtiofsd implements AsyncDisposable {
  readonly socket: string
  readonly #child: ChildProcess
  readonly #exited: Promise<void>

  private constructor(socket: string, child: ChildProcess, exited: Promise<void>) {
    this.socket = socket
    this.#child = child
    this.#exited = exited
  }

  /**
   * Settles once it listens.
   * @throws CoracleError INVALID_ARGUMENT for what is no folder, HOST_TOOL where virtiofsd does not start
   */
  static async start({ folder, socket, readOnly = false, log }: VirtiofsdOptions): Promise<Virtiofsd> {
    if (statSync(folder, { throwIfNoEntry: false })?.isDirectory() !== true)
      throw new CoracleError('INVALID_ARGUMENT', `${folder} is no folder: only folders can be shared`)
    const { argv, env } = await toolCommand('virtiofsd')
    const words = [...argv.slice(1), ...virtiofsdArguments({ folder, readOnly }), '--socket-path', socket]
    const child = spawn(argv[0]!, words, {
      env: { ...process.env, ...env },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    const said: string[] = []
    const exited = new Promise<void>((resolve) => {
      child.on('error', (error) => {
        said.push(error.message)
        resolve()
      })
      child.on('exit', () => resolve())
    })
    const listening = new Promise<boolean>((resolve) => {
      const lines = createInterface({ input: child.stderr! })
      lines.on('line', (line) => {
        log?.(line)
        if (said.push(line) > QUOTED) said.shift()
        if (line.includes(LISTENING)) resolve(true)
      })
      lines.on('close', () => resolve(false))
    })
    if (await listening) return new Virtiofsd(socket, child, exited)
    await exited
    throw new CoracleError(
      'HOST_TOOL',
      `virtiofsd cannot share ${folder}: ${said.join('; ') || 'it said nothing'}`,
    )
  }

  /** Settles when it has ended. */
  get exited(): Promise<void> {
    return this.#exited
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGTERM')
    await this.#exited
    for (const path of [this.socket, `${this.socket}.pid`]) rmSync(path, { force: true })
  }
}
