import { spawn, type ChildProcess } from 'node:child_process'
import { type Dirent, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { MNT_DETACH, mount, unmount } from '@coracle/sys'
import { busyboxImage } from '../../src/image/busybox.js'
import { ImageStore } from '../../src/image/store.js'

const CLI = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url))

/** How a command of ours ended. */
export interface Result {
  status: number | null
  signal: NodeJS.Signals | null
  stdout: Buffer
  stderr: string
}

/**
 * A place of its own to run the command line in: state and run folders apart from the machine's, removed at the end.
 * The cache is the machine's, since set-up filled it.
 */
export class Host {
  readonly #folder = mkdtempSync(join(tmpdir(), 'coracle-e2e-'))
  readonly state = join(this.#folder, 'state')
  readonly run = join(this.#folder, 'run')
  readonly env: NodeJS.ProcessEnv = { ...process.env, CORACLE_ROOT: this.state, CORACLE_RUN: this.run }

  #isMounted = false

  private constructor() {
    delete this.env['DOCKER_HOST']
  }

  /**
   * A host whose store has the embedded busybox image.
   * @param size of the disk that its state is on, such as `24m` @default no disk of its own
   */
  static async create(size?: string): Promise<Host> {
    const host = new Host()
    if (size !== undefined) host.#mountState(size)
    await busyboxImage(await ImageStore.open(join(host.state, 'images')))
    return host
  }

  #mountState(size: string): void {
    mkdirSync(this.state)
    mount('none', this.state, 'tmpfs', 0, `size=${size}`)
    this.#isMounted = true
  }

  /** Starts `coracle ARGUMENTS…` in a process group of its own. */
  spawn(...words: string[]): ChildProcess {
    return spawn(process.execPath, [CLI, ...words], { env: this.env, stdio: 'pipe', detached: true })
  }

  /** Runs `coracle ARGUMENTS…` to its end. @param stdin what it reads; none: its stdin is empty */
  coracle(words: string[], stdin: Buffer | string = ''): Promise<Result> {
    const child = this.spawn(...words)
    const result = collect(child)
    child.stdin!.on('error', () => {})
    child.stdin!.end(stdin)
    return result
  }

  remove(): void {
    if (this.#isMounted) unmount(this.state, MNT_DETACH)
    rmSync(this.#folder, { recursive: true, force: true })
  }
}

/** Gathers all that a child prints until its streams close. */
export function collect(child: ChildProcess): Promise<Result> {
  const stdout: Buffer[] = []
  const stderr: Buffer[] = []
  child.stdout!.on('data', (chunk: Buffer) => stdout.push(chunk))
  child.stderr!.on('data', (chunk: Buffer) => stderr.push(chunk))
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (status, signal) =>
      resolve({ status, signal, stdout: Buffer.concat(stdout), stderr: Buffer.concat(stderr).toString() }),
    )
  })
}

/**
 * What a run could leave on the host: mounts, cgroups, network namespaces and interfaces, and processes whose
 * command line or environment names `mark`.
 */
export function leftovers(mark: string): string[] {
  const found: string[] = []
  for (const line of readFileSync('/proc/mounts', 'utf8').split('\n'))
    if (line.includes(mark)) found.push(`mount ${line}`)
  for (const pid of readdirSync('/proc').filter(
    (name) => /^\d+$/.test(name) && Number(name) !== process.pid,
  )) {
    try {
      const text = readFileSync(`/proc/${pid}/cmdline`, 'utf8') + readFileSync(`/proc/${pid}/environ`, 'utf8')
      if (text.includes(mark)) found.push(`process ${pid} ${readFileSync(`/proc/${pid}/cmdline`, 'utf8')}`)
    } catch {
      // It ended while we looked.
    }
  }
  return found
}

/** The paths of the cgroups, of version 1 and 2, that belong to the containers `ids`. */
export function cgroups(ids: readonly string[], at = '/sys/fs/cgroup'): string[] {
  let entries: Dirent[]
  try {
    entries = readdirSync(at, { withFileTypes: true })
  } catch {
    // It was removed while we looked: those of other tests come and go.
    return []
  }
  return entries
    .filter((entry) => entry.isDirectory())
    .flatMap(({ name }) => {
      const path = join(at, name)
      return [...(ids.some((id) => name.includes(id)) ? [path] : []), ...cgroups(ids, path)]
    })
}

/** The network interfaces whose alias names `mark`: those of others, made side by side, do not count. */
export function interfaces(mark: string): string[] {
  return readdirSync('/sys/class/net').filter((name) => {
    try {
      return readFileSync(`/sys/class/net/${name}/ifalias`, 'utf8').includes(mark)
    } catch {
      return false
    }
  })
}
