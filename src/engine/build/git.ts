import { type ChildProcess, spawn } from 'node:child_process'
import { lookup } from 'node:dns/promises'
import { chownSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { isIP } from 'node:net'
import { join } from 'node:path'
import { CoracleError } from '../../errors.js'
import { type HostUser, allocateUser } from '../../isolation/box/uid.js'
import { literalOf, whyNotTo } from './reach.js'

export interface GitOptions {
  /** The build is on the host's network: it may reach all that the host does. */
  readonly anywhere: boolean
  /** Folder for what is fetched, where we are not root. */
  readonly scratch: string
  readonly signal: AbortSignal
  /** Milliseconds that one command may take. @default half an hour */
  readonly limit?: number
  /** @default git, by PATH */
  readonly program?: string
}

const LIMIT = 30 * 60_000
/** Bytes that a server may tell of its refs. */
const MAX_REFS = 64 * 1024 ** 2
/** Bytes of what git says that are kept. */
const MAX_WORDS = 64 * 1024
/** Bytes of one file, in the blocks of 512 of `ulimit -f`, and of a process, in KiB. */
const MAX_FILE = (8 * 1024 ** 3) / 512
const MAX_MEMORY = 8 * 1024 ** 2
/** A shell's status for a program that is not there. */
const NOT_FOUND = 127
/** On a disk, and to be reached by a user who may not look into our folders. */
const FOLDER = '/var/tmp'
/** `http.curloptResolve` (git-config(1)), which holds a name to the address that was looked at. */
const LEAST = [2, 37] as const

const CONFIG = Object.entries({
  'core.hooksPath': '/dev/null',
  'core.bigFileThreshold': '32m',
  'credential.helper': '',
  'fetch.recurseSubmodules': 'false',
  // Objects stay in the one file that came.
  'fetch.unpackLimit': '1',
  'gc.auto': '0',
  'http.followRedirects': 'false',
  'http.lowSpeedLimit': '1',
  'http.lowSpeedTime': '60',
  'maintenance.auto': 'false',
  'protocol.version': '2',
  'tar.umask': '0022',
}).flatMap(([name, value]) => ['-c', `${name}=${value}`])

/** Runs git over a folder of its own. */
export class Git implements Disposable {
  readonly folder: string
  /** Where it goes: what a name stood for was looked at once. */
  readonly address: string
  readonly #url: URL
  readonly #options: GitOptions
  readonly #pin: readonly string[]
  readonly #user: HostUser | undefined

  private constructor(url: URL, options: GitOptions, address: string, pin: readonly string[]) {
    this.#url = url
    this.#options = options
    this.address = address
    this.#pin = pin
    if (process.getuid?.() === 0) {
      const user = (this.#user = allocateUser())
      this.folder = join(FOLDER, `coracle-git-${user.id}`)
      // Of one that was killed, since the user is free.
      rmSync(this.folder, { recursive: true, force: true })
      mkdirSync(this.folder, { mode: 0o700 })
      chownSync(this.folder, user.id, user.id)
    } else this.folder = mkdtempSync(join(options.scratch, 'git-'))
  }

  static async open(url: URL, options: GitOptions): Promise<Git> {
    const { address, pin } = await pinned(url, options.anywhere)
    const git = new Git(url, options, address, pin)
    try {
      const [, major = 0, minor = 0] = /(\d+)\.(\d+)/.exec(await git.run(['--version'])) ?? []
      if (Number(major) < LEAST[0] || (Number(major) === LEAST[0] && Number(minor) < LEAST[1]))
        throw new CoracleError(
          'HOST_TOOL',
          `ADD of a repository needs git ${LEAST.join('.')} or newer on this host`,
        )
      return git
    } catch (error) {
      git[Symbol.dispose]()
      throw error
    }
  }

  fail(why: string): never {
    throw failure(this.#url, why)
  }

  /** @returns what it printed */
  run(words: readonly string[]): Promise<string> {
    return this.stream(words, async (output) => {
      const chunks: Buffer[] = []
      let length = 0
      for await (const chunk of output as AsyncIterable<Buffer>) {
        if ((length += chunk.length) > MAX_REFS) this.fail('the server does not come to an end')
        chunks.push(chunk)
      }
      return Buffer.concat(chunks).toString('utf8')
    })
  }

  /** @param take of what it prints; what it makes is disposed of where git fails in the end */
  async stream<T extends Disposable | string>(
    words: readonly string[],
    take: (output: AsyncIterable<Uint8Array>) => Promise<T>,
  ): Promise<T> {
    const { signal, limit = LIMIT } = this.#options
    signal.throwIfAborted()
    const child = this.#spawn(words)
    let said = ''
    child.stderr!.setEncoding('utf8').on('data', (text: string) => (said = (said + text).slice(-MAX_WORDS)))
    let late = false
    const kill = (): void => {
      try {
        // Its helpers, too.
        if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
      } catch {
        // They have ended.
      }
    }
    const timer = setTimeout(() => {
      late = true
      kill()
    }, limit)
    signal.addEventListener('abort', kill)
    const ended = new Promise<number | null>((resolve, reject) =>
      child.on('error', reject).on('close', resolve),
    )
    ended.catch(() => undefined)
    try {
      let taken: T | undefined
      let failed: unknown
      try {
        taken = await take(child.stdout!)
      } catch (error) {
        failed = error
        kill()
      }
      const status = await ended
      if (status === 0 && taken !== undefined) return taken
      if (typeof taken === 'object') taken[Symbol.dispose]()
      signal.throwIfAborted()
      if (late) this.fail(`it took more than ${Math.round(limit / 1000)} s`)
      if (status === NOT_FOUND)
        throw new CoracleError(
          'HOST_TOOL',
          'ADD of a repository is done by git, and this host has none: install it (apt-get install git)',
        )
      // Else it is what git said, or what came of that.
      if (failed !== undefined && status === null) throw failed as Error
      return this.fail(reasonIn(said))
    } finally {
      clearTimeout(timer)
      signal.removeEventListener('abort', kill)
    }
  }

  #spawn(words: readonly string[]): ChildProcess {
    const { program = 'git' } = this.#options
    const limited = `ulimit -f ${MAX_FILE}; ulimit -v ${MAX_MEMORY}; command -v "$0" >/dev/null || exit ${NOT_FOUND}; exec "$0" "$@"`
    return spawn('/bin/sh', ['-c', limited, program, ...CONFIG, ...this.#pin, ...words], {
      cwd: this.folder,
      detached: true,
      // Nobody else gets its user while it lives, also where we do not.
      stdio: ['ignore', 'pipe', 'pipe', this.#user?.lock.number ?? 'ignore'],
      ...(this.#user && { uid: this.#user.id, gid: this.#user.id }),
      env: {
        PATH: process.env['PATH'],
        HOME: this.folder,
        LC_ALL: 'C',
        GIT_DIR: this.folder,
        GIT_CONFIG_NOSYSTEM: '1',
        GIT_CONFIG_GLOBAL: '/dev/null',
        GIT_ALLOW_PROTOCOL: 'https:http:git',
        GIT_PROTOCOL_FROM_USER: '0',
        GIT_TERMINAL_PROMPT: '0',
        GIT_ASKPASS: '/bin/false',
        GIT_LFS_SKIP_SMUDGE: '1',
      },
    })
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true, force: true })
    this.#user?.lock[Symbol.dispose]()
  }
}

/** The address for git, and what holds it to what its name stood for. @throws CoracleError BUILD_FAILED */
async function pinned(url: URL, anywhere: boolean): Promise<{ address: string; pin: string[] }> {
  if (anywhere) return { address: url.href, pin: [] }
  const host = literalOf(url)
  const found = await lookup(host, { all: true }).catch((error: NodeJS.ErrnoException) => {
    throw failure(url, error.code ?? error.message)
  })
  for (const { address } of found) {
    const why = whyNotTo(address)
    if (why !== undefined) throw failure(url, why)
  }
  const [first] = found
  if (!first) throw failure(url, 'there is no such host')
  const ip = first.family === 6 ? `[${first.address}]` : first.address
  if (url.protocol === 'git:')
    return { address: `git://${ip}${url.port && `:${url.port}`}${url.pathname}`, pin: [] }
  if (isIP(host) !== 0) return { address: url.href, pin: [] }
  const port = url.port || (url.protocol === 'https:' ? '443' : '80')
  return { address: url.href, pin: ['-c', `http.curloptResolve=${host}:${port}:${ip}`] }
}

const failure = (url: URL, why: string): CoracleError =>
  new CoracleError('BUILD_FAILED', `cannot fetch ${url.href.slice(0, 256)}: ${why}`)

/** The last line of git's own; a server's words are among them, so they are shown as plain text. */
function reasonIn(said: string): string {
  const lines = said.split(/[\r\n]+/).filter((line) => line.trim() !== '')
  const line = lines.findLast((each) => /^(fatal|error):/.test(each)) ?? lines.at(-1) ?? 'git failed'
  return line
    .replace(/^(fatal|error): /, '')
    .replace(/[^\x20-\x7e]/g, '?')
    .slice(0, 256)
}
