import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { Fd, LOCK_EX, LOCK_NB, LOCK_SH, O_CREAT, O_RDWR } from '@coracle/sys'

const run = promisify(execFile)
const LOCKS = 'locks'
/** Made by a rename, so that one is whole or not there. */
const CREATING = 'new-'
const REMOVING = 'old-'
/** Milliseconds between two looks at a lock. */
const PAUSE = 100
const DAY = 86_400_000

/** How builds at the same time get at one cache (Dockerfile reference, "RUN --mount=type=cache"). */
export type CacheSharing = 'shared' | 'private' | 'locked'

export interface CacheRequest {
  readonly id: string
  readonly sharing: CacheSharing
  /** Of a new one's folder. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Puts content into a new one. */
  readonly fill?: (folder: string) => Promise<void>
}

/** A cache in use, until it is disposed of. */
export interface HeldCache extends Disposable {
  /** Its folder on this host. */
  readonly path: string
}

/** A cache, as it lies there. */
export interface KeptCache {
  /** Its folder's name. */
  readonly id: string
  /** The id that builds know it by. */
  readonly description: string
  /** RFC 3339. */
  readonly created: string
  readonly bytes: number
  readonly inUse: boolean
}

/**
 * The folders that `RUN --mount=type=cache` lasts in, between builds. A lock says who uses one, and the kernel frees it
 * when its holder dies; the locks' own files are never removed. What is in the folders was written by containers:
 * nothing here follows a link in them.
 */
export class BuildCaches {
  readonly #folder: string

  /** @param folder of its own, made where it is missing */
  constructor(folder: string) {
    this.#folder = folder
  }

  /** The cache of an id, made where there is none. Waits where one is `locked`. @throws the signal's reason */
  async take(request: CacheRequest, signal: AbortSignal): Promise<HeldCache> {
    const { id, sharing } = request
    mkdirSync(join(this.#folder, LOCKS), { recursive: true, mode: 0o700 })
    const key = createHash('sha256').update(id).digest('hex').slice(0, 32)
    for (let number = 0; ;) {
      const name = number === 0 ? key : `${key}-${number}`
      const lock = Fd.open(join(this.#folder, LOCKS, name), O_RDWR | O_CREAT)
      try {
        if (lock.lock((sharing === 'shared' ? LOCK_SH : LOCK_EX) | LOCK_NB)) {
          const path = join(this.#folder, name)
          if (!existsSync(path)) await this.#make(path, request)
          return { path: join(path, 'data'), [Symbol.dispose]: () => lock.close() }
        }
      } catch (error) {
        lock.close()
        throw error
      }
      lock.close()
      if (sharing === 'private') number++
      else await delay(PAUSE, undefined, { signal })
    }
  }

  async #make(path: string, { id, mode, uid, gid, fill }: CacheRequest): Promise<void> {
    const made = mkdtempSync(join(this.#folder, CREATING))
    try {
      const data = join(made, 'data')
      mkdirSync(data)
      await fill?.(data)
      chownSync(data, uid, gid)
      chmodSync(data, mode)
      writeFileSync(join(made, 'cache.json'), JSON.stringify({ id, created: new Date().toISOString() }))
      renameSync(made, path)
    } catch (error) {
      rmSync(made, { recursive: true, force: true })
      // Another build that shares it was faster.
      if (!existsSync(path)) throw error
    }
  }

  /** Every cache that is whole. */
  async list(): Promise<KeptCache[]> {
    return Promise.all(
      this.#names()
        .filter((name) => !name.startsWith(CREATING) && !name.startsWith(REMOVING))
        .map(async (name) => {
          const path = join(this.#folder, name)
          const { id, created } = readDescription(path)
          return { id: name, description: id, created, bytes: await sizeOf(path), inUse: this.#isInUse(name) }
        }),
    )
  }

  /** The folders of caches, of those half made and half removed too. */
  #names(): string[] {
    return existsSync(this.#folder) ? readdirSync(this.#folder).filter((name) => name !== LOCKS) : []
  }

  #isInUse(name: string): boolean {
    using lock = Fd.open(join(this.#folder, LOCKS, name), O_RDWR | O_CREAT)
    return !lock.lock(LOCK_EX | LOCK_NB)
  }

  /**
   * Removes the caches that no build uses now.
   * @param goes by when it was made (RFC 3339) @default all
   * @returns their ids, and the bytes that went
   */
  async prune(goes: (created: string) => boolean = () => true): Promise<{ ids: string[]; bytes: number }> {
    const ids: string[] = []
    let bytes = 0
    for (const name of this.#names()) {
      const path = join(this.#folder, name)
      if (name.startsWith(REMOVING)) {
        await rm(path, { recursive: true, force: true })
        continue
      }
      if (name.startsWith(CREATING)) {
        // Half made: somebody's, or of a process that died.
        if (Date.now() - statSync(path).mtimeMs > DAY) await rm(path, { recursive: true, force: true })
        continue
      }
      const lock = Fd.open(join(this.#folder, LOCKS, name), O_RDWR | O_CREAT)
      try {
        if (!lock.lock(LOCK_EX | LOCK_NB)) continue
        const { id, created } = readDescription(path)
        if (!goes(created)) continue
        const old = mkdtempSync(join(this.#folder, REMOVING))
        ids.push(id)
        bytes += await sizeOf(path)
        renameSync(path, join(old, 'cache'))
        await rm(old, { recursive: true, force: true })
      } finally {
        lock.close()
      }
    }
    return { ids, bytes }
  }
}

function readDescription(path: string): { id: string; created: string } {
  try {
    return JSON.parse(readFileSync(join(path, 'cache.json'), 'utf8')) as { id: string; created: string }
  } catch {
    return { id: 'a damaged one', created: new Date(0).toISOString() }
  }
}

async function sizeOf(path: string): Promise<number> {
  const { stdout } = await run('du', ['-s', '--block-size=1', '--', path]).catch(
    (error: { stdout?: string }) => error,
  )
  return Number(/^\d+/.exec(stdout ?? '')?.[0] ?? 0)
}
