import { mkdirSync, readFileSync, readdirSync, renameSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { Fd, LOCK_EX, LOCK_NB, O_CREAT, O_RDWR, SysError } from '@coracle/sys'
import { replaceInRoom, syncFolder } from '../durable.js'
import { CoracleError } from '../errors.js'
import { waitForLock } from '../isolation/file-lock.js'
import { generateName } from './name.js'
import type { ContainerRecord } from './record.js'

const RECORD = 'config.json'
const CREATING = '.creating-'
const REMOVING = '.removing-'

/**
 * The records of all containers: a folder each, `<root>/<id>/`, with `config.json` (the record), `lock`, and the
 * sandbox's own things. Shared by every process that hosts an engine; nothing is remembered between calls.
 *
 * A record is replaced by write, fsync and rename, and its end can be recorded on a full disk too. A folder appears by
 * rename with its record in it and goes by rename before it is emptied, so that a crash leaves a whole container or none.
 * Who changes a record holds the container's lock; who adds one or looks for a free name holds the store's.
 */
export class ContainerStore {
  readonly #root: string

  /** @param root `containers` in the state folder; it is made where it is missing */
  constructor(root: string) {
    this.#root = root
    mkdirSync(root, { recursive: true, mode: 0o700 })
  }

  directory(id: string): string {
    return join(this.#root, id)
  }

  /** All records, the newest first. One that cannot be read (it is of another version, say) is left out. */
  list(): ContainerRecord[] {
    return readdirSync(this.#root)
      .filter((entry) => /^[0-9a-f]{64}$/.test(entry))
      .map((id) => this.read(id))
      .filter((record) => record !== undefined)
      .sort((a, b) => (a.created < b.created ? 1 : -1))
  }

  /** The record as it is now, or undefined where the container is gone. */
  read(id: string): ContainerRecord | undefined {
    let text
    try {
      text = readFileSync(join(this.#root, id, RECORD), 'utf8')
    } catch {
      return undefined
    }
    try {
      const record = JSON.parse(text) as ContainerRecord
      return record.version === 1 && record.id === id ? record : undefined
    } catch {
      return undefined
    }
  }

  /** Under the store's lock. */
  add(record: ContainerRecord): void {
    const fresh = join(this.#root, CREATING + record.id)
    mkdirSync(fresh, { mode: 0o700 })
    try {
      replaceInRoom(join(fresh, RECORD), JSON.stringify(record))
      renameSync(fresh, this.directory(record.id))
    } catch (error) {
      rmSync(fresh, { recursive: true, force: true })
      throw error
    }
    syncFolder(this.#root)
  }

  /** Under the container's lock. */
  write(record: ContainerRecord): void {
    replaceInRoom(join(this.directory(record.id), RECORD), JSON.stringify(record))
  }

  /** Under the container's lock; the lock's file goes too. */
  remove(id: string): void {
    const doomed = join(this.#root, REMOVING + id)
    renameSync(this.directory(id), doomed)
    rmSync(doomed, { recursive: true, force: true })
  }

  /** Removes what processes that died left half made or half removed. Under the store's lock. */
  sweep(): void {
    for (const entry of readdirSync(this.#root))
      if (entry.startsWith(CREATING) || entry.startsWith(REMOVING))
        rmSync(join(this.#root, entry), { recursive: true, force: true })
  }

  /** Holds everybody else off from adding containers and choosing names, until disposed. */
  lockAll(signal?: AbortSignal): Promise<Disposable> {
    return waitForLock(join(this.#root, '.lock'), 'the list of containers', signal)
  }

  /**
   * Holds everybody else off from one container, until disposed.
   * @throws CoracleError NO_SUCH_CONTAINER where it is gone by the time the lock is free
   */
  async lock(id: string, signal?: AbortSignal): Promise<Disposable> {
    let lock
    try {
      lock = await waitForLock(join(this.directory(id), 'lock'), `container ${id.slice(0, 12)}`, signal)
    } catch (error) {
      if (error instanceof SysError && error.code === 'ENOENT') throw noSuchContainer(id)
      throw error
    }
    if (this.read(id)) return lock
    lock[Symbol.dispose]()
    throw noSuchContainer(id)
  }

  /** Like {@link lock}, but undefined at once where another holds it or the container is gone. */
  tryLock(id: string): Disposable | undefined {
    let fd
    try {
      fd = Fd.open(join(this.directory(id), 'lock'), O_RDWR | O_CREAT)
    } catch {
      return undefined
    }
    if (fd.lock(LOCK_EX | LOCK_NB) && this.read(id)) return fd
    fd.close()
    return undefined
  }

  /** @throws CoracleError NO_SUCH_CONTAINER, INVALID_ARGUMENT */
  find(reference: string): ContainerRecord {
    const record = this.read(this.resolve(reference))
    if (!record) throw noSuchContainer(reference)
    return record
  }

  /**
   * The id of a container by its name, its id or the start of one.
   * @throws CoracleError NO_SUCH_CONTAINER, INVALID_ARGUMENT
   */
  resolve(reference: string): string {
    const name = reference.replace(/^\//, '')
    if (/^[0-9a-f]{64}$/.test(name) && this.read(name)) return name
    const records = this.list()
    const named = records.find((record) => record.name === name)
    if (named) return named.id
    const matches = /^[0-9a-f]+$/.test(name) ? records.filter(({ id }) => id.startsWith(name)) : []
    if (matches.length > 1)
      throw new CoracleError('INVALID_ARGUMENT', `multiple containers have an id that starts with ${name}`)
    if (!matches[0]) throw noSuchContainer(reference)
    return matches[0].id
  }

  /**
   * A name that no container has: the one that is wanted, else a made one. Under the store's lock.
   * @throws CoracleError CONFLICT
   */
  freeName(wanted: string | undefined): string {
    const taken = new Map(this.list().map((record) => [record.name, record.id]))
    if (wanted !== undefined) {
      const owner = taken.get(wanted)
      if (owner === undefined) return wanted
      throw new CoracleError(
        'CONFLICT',
        `Conflict. The container name "/${wanted}" is already in use by container "${owner}". You have to remove (or rename) that container to be able to reuse that name.`,
      )
    }
    for (let attempt = 0; ; attempt++) {
      const name = generateName(attempt)
      if (!taken.has(name)) return name
    }
  }
}

/** @throws CoracleError NO_SUCH_CONTAINER, always */
export function noSuchContainer(reference: string): CoracleError {
  return new CoracleError('NO_SUCH_CONTAINER', `No such container: ${reference.slice(0, 128)}`)
}
