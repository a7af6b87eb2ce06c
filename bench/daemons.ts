import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { Agent, request as httpRequest } from 'node:http'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { sysroot } from '../src/debian/index.js'
import { Skip } from './bench.js'

export const CLI = fileURLToPath(new URL('../src/cli/main.js', import.meta.url))
/** Milliseconds for a daemon to listen. */
const STARTED = 60_000

/** A daemon with Docker's API, ours or the peer's, and its state in a folder that goes with it. */
export class Daemon implements AsyncDisposable {
  readonly folder: string
  readonly env: NodeJS.ProcessEnv
  /** What is asked of it for a plain container. */
  readonly isolation: string
  readonly #child: ChildProcess
  readonly #agent = new Agent({ keepAlive: true })
  readonly #clean: () => void

  private constructor(
    folder: string,
    env: NodeJS.ProcessEnv,
    words: readonly string[],
    clean = (): void => undefined,
  ) {
    this.folder = folder
    this.env = env
    this.#clean = clean
    this.isolation = words[0] === process.execPath ? 'process' : ''
    this.#child = spawn(words[0]!, words.slice(1), { env, stdio: ['ignore', 'ignore', 'inherit'] })
  }

  get socket(): string {
    return join(this.folder, 'api.sock')
  }

  /** @param insecure registries that are spoken to without TLS */
  static async ours(insecure: readonly string[] = []): Promise<Daemon> {
    const folder = newFolder()
    const state = join(folder, 'state')
    mkdirSync(state)
    writeFileSync(join(state, 'registries.json'), JSON.stringify({ 'insecure-registries': insecure }))
    const env = { ...process.env, CORACLE_ROOT: state, CORACLE_RUN: join(folder, 'run') }
    const words = [process.execPath, CLI, 'daemon', '--log-level', 'error', '-l', `unix://${folder}/api.sock`]
    return new Daemon(folder, env, words).#ready()
  }

  /** Debian's podman with crun. @param insecure as of {@link ours} */
  static async podman(insecure: readonly string[] = []): Promise<Daemon> {
    const folder = newFolder()
    const peer = await podmanSetup(folder, insecure)
    const words = [...peer.words, 'podman', 'system', 'service', '--time=0', `unix://${folder}/api.sock`]
    return new Daemon(folder, peer.env, words, () => peer.clean()).#ready()
  }

  async #ready(): Promise<this> {
    const until = Date.now() + STARTED
    for (;;) {
      const up = await new Promise<boolean>((resolve) => {
        const socket = connect(this.socket, () => resolve(true)).on('error', () => resolve(false))
        socket.on('connect', () => socket.end())
      })
      if (up) return this
      if (Date.now() > until || this.#child.exitCode !== null) {
        await this[Symbol.asyncDispose]()
        throw new Error('the daemon does not listen')
      }
      await delay(50)
    }
  }

  /** @returns the answer's body, whole. @throws Error for a status from 400 on */
  async call(method: string, path: string, body?: object | Buffer): Promise<string> {
    const bytes = body === undefined || Buffer.isBuffer(body) ? body : Buffer.from(JSON.stringify(body))
    const type = Buffer.isBuffer(body) ? 'application/x-tar' : 'application/json'
    return new Promise((resolve, reject) => {
      const request = httpRequest({
        socketPath: this.socket,
        agent: this.#agent,
        method,
        path,
        headers: bytes ? { 'Content-Type': type, 'Content-Length': bytes.length } : { 'Content-Length': 0 },
      })
      request.on('error', reject)
      request.on('response', (response) => {
        let text = ''
        response.setEncoding('utf8').on('data', (chunk: string) => (text += chunk))
        response.on('error', reject)
        response.on('end', () => {
          const failed = response.statusCode! >= 400 || /"error":/.test(text)
          if (failed) reject(new Error(`${method} ${path}: ${response.statusCode} ${text.slice(0, 400)}`))
          else resolve(text)
        })
      })
      request.end(bytes)
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#agent.destroy()
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      const ended = once(this.#child, 'exit')
      this.#child.kill('SIGTERM')
      await ended
    }
    this.#clean()
    rmSync(this.folder, { recursive: true, force: true })
  }
}

const newFolder = (): string => mkdtempSync(join(tmpdir(), 'coracle-bench-'))

/** How to run the peer's programs. */
export interface Peer {
  /** Put before a program and its arguments. */
  readonly words: readonly string[]
  readonly env: NodeJS.ProcessEnv
  clean(): void
}

/**
 * Podman and buildah out of Debian's packages, without an installation: in a mount namespace of their own their files
 * lie over the host's, where they expect them.
 * @param folder for their state
 */
export async function podmanSetup(folder: string, insecure: readonly string[] = []): Promise<Peer> {
  if (process.getuid?.() !== 0) throw new Skip('needs root')
  const { root } = await sysroot('podman')
  const file = (name: string, lines: readonly string[]): string => {
    writeFileSync(join(folder, name), lines.map((line) => `${line}\n`).join(''))
    return join(folder, name)
  }
  mkdirSync(join(folder, 'networks'))
  mkdirSync(join(folder, 'bin'))
  // What update-alternatives would have done.
  for (const name of ['iptables', 'ip6tables', 'iptables-save', 'iptables-restore', 'ip6tables-restore'])
    symlinkSync('/usr/sbin/xtables-nft-multi', join(folder, 'bin', name))
  const script = file('peer.sh', [
    'set -e',
    'mount --make-rprivate /',
    // crun refuses a host with cgroups of both versions.
    '[ ! -e /sys/fs/cgroup/unified/cgroup.procs ] || mount -t tmpfs tmpfs /sys/fs/cgroup/unified',
    `mount -t overlay overlay -o lowerdir=${root}/usr:/usr /usr`,
    `mount -t overlay overlay -o lowerdir=${root}/etc:/etc /etc`,
    'exec "$@"',
  ])
  const env = {
    ...process.env,
    PATH: `${folder}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`,
    CONTAINERS_STORAGE_CONF: file('storage.conf', [
      '[storage]',
      'driver = "overlay"',
      `graphroot = "${folder}/graph"`,
      `runroot = "${folder}/runroot"`,
    ]),
    CONTAINERS_CONF: file('containers.conf', [
      '[engine]',
      'cgroup_manager = "cgroupfs"',
      'events_logger = "file"',
      'runtime = "crun"',
      `tmp_dir = "${folder}/tmp"`,
      '[network]',
      'network_backend = "netavark"',
      `network_config_dir = "${folder}/networks"`,
      '[containers]',
      // A host may have none to spare.
      'default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]',
    ]),
    CONTAINERS_REGISTRIES_CONF: file('registries.conf', [
      'unqualified-search-registries = ["docker.io"]',
      ...insecure.flatMap((host) => ['[[registry]]', `location = "${host}"`, 'insecure = true']),
    ]),
  }
  return {
    words: ['unshare', '--mount', 'sh', script],
    env,
    clean: () => {
      for (const name of ['graph/overlay'])
        if (existsSync(join(folder, name))) spawn('umount', [join(folder, name)], { stdio: 'ignore' })
    },
  }
}
