import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { Fd, LOCK_EX, LOCK_NB, LOCK_SH, O_CREAT, O_EXCL, O_RDONLY, O_RDWR } from '@coracle/sys'
import { CoracleError } from '../errors.js'
import { syncFolder } from '../durable.js'
import { savedFiles } from '../isolation/index.js'
import { invalid, seal, unseal } from '../vmm/snapshot/sealed.js'
import type { ContainerRecord } from './record.js'

const RECORD = 'snapshot.json'
const KIND = { magic: 'coracle-container', version: 1 }
const CREATING = '.creating-'
const REMOVING = '.removing-'
/** Made to be gone on from once, and then removed: nobody else sees them. */
const PASSING = '.passing-'

/** What is kept of a saved container beside its files. */
export interface SavedContainer {
  readonly name: string
  /** RFC 3339. */
  readonly created: string
  /** As it ran. */
  readonly container: ContainerRecord
}

/** A snapshot as it is listed. */
export interface SnapshotSummary {
  readonly name: string
  /** What it holds, or why it is of no use. */
  readonly saved: SavedContainer | CoracleError
  /** Bytes on the disk. */
  readonly bytes: number
}

type FileStamps = Record<string, { readonly size: number; readonly modified: string }>

/**
 * Saved containers, a folder each: `<root>/<name>/` with the files of {@link savedFiles} and `snapshot.json`, which
 * says what they are and how long, and when each was written last. A folder appears by rename when all of it is on the
 * disk, and goes by rename before it is emptied.
 *
 * Who makes one holds a shared lock on the store; what is half done while nobody does was left by a crash.
 */
export class Snapshots {
  readonly #root: string

  /** @param root `snapshots` in the state folder; it is made where it is missing */
  constructor(root: string) {
    this.#root = root
    mkdirSync(root, { recursive: true, mode: 0o700 })
  }

  /** @throws CoracleError INVALID_ARGUMENT for what is no name */
  folder(name: string): string {
    const plain = name.startsWith(PASSING) ? name.slice(PASSING.length) : name
    if (!/^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$/.test(plain))
      throw new CoracleError(
        'INVALID_ARGUMENT',
        `invalid snapshot name (${name.slice(0, 64)}): only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, up to 128 characters`,
      )
    return join(this.#root, name)
  }

  /** All that users made, by name. */
  list(): SnapshotSummary[] {
    return readdirSync(this.#root)
      .filter((name) => !name.startsWith('.'))
      .sort()
      .flatMap((name) => {
        const folder = join(this.#root, name)
        try {
          return [{ name, saved: this.#look(name), bytes: bytesOf(folder) }]
        } catch {
          // It went meanwhile.
          return []
        }
      })
  }

  /** The ids of the images that snapshots need, with a snapshot that does. */
  images(): Map<string, string> {
    const images = new Map<string, string>()
    for (const name of readdirSync(this.#root)) {
      if (name.startsWith('.') && !name.startsWith(PASSING)) continue
      const saved = this.#look(name)
      if (!(saved instanceof CoracleError)) images.set(saved.container.imageId, name)
    }
    return images
  }

  /** Whether there is one of this name, whole or not. */
  has(name: string): boolean {
    return existsSync(this.folder(name))
  }

  /**
   * One that is whole, as far as that can be told without reading all of it.
   * @throws CoracleError NO_SUCH_SNAPSHOT, SNAPSHOT_INVALID, SNAPSHOT_MISMATCH
   */
  read(name: string): SavedContainer {
    const folder = this.folder(name)
    const path = join(folder, RECORD)
    if (!existsSync(folder))
      throw new CoracleError('NO_SUCH_SNAPSHOT', `No such snapshot: ${name.slice(0, 128)}`)
    if (!existsSync(path)) throw invalid(name, 'its record is gone')
    using file = Fd.open(path, O_RDONLY)
    const { saved, files } = unseal(file, name, KIND).raw as { saved: SavedContainer; files: FileStamps }
    for (const [kind, path] of Object.entries(savedFiles(folder))) {
      const [is, was] = [stampOf(path), files[kind]]
      if (is === undefined) throw invalid(name, `its ${kind} is gone`)
      if (is.size !== was?.size || is.modified !== was.modified)
        throw invalid(name, `its ${kind} was changed or cut after it was made`)
    }
    return { ...saved, name }
  }

  /** A name that is free, for a snapshot of this container. */
  freeName(container: string): string {
    for (let number = 1; ; number++) {
      const name = `${container.slice(0, 120)}-${number}`
      if (!this.has(name)) return name
    }
  }

  /**
   * Makes one.
   * @param fill puts the files of {@link savedFiles} into an empty folder, on the disk
   * @throws CoracleError CONFLICT where there is one of this name, what `fill` throws; nothing stays then
   */
  async create(
    name: string,
    container: ContainerRecord,
    fill: (folder: string) => Promise<void>,
  ): Promise<SavedContainer> {
    const folder = this.folder(name)
    const taken = (): CoracleError =>
      new CoracleError('CONFLICT', `there is a snapshot ${name} already: remove it, or choose another name`)
    if (existsSync(folder)) throw taken()
    using _making = this.#lock(LOCK_SH)
    const temporary = join(this.#root, `${CREATING}${randomBytes(8).toString('hex')}`)
    mkdirSync(temporary, { mode: 0o700 })
    try {
      await fill(temporary)
      const saved = { name, created: new Date().toISOString(), container }
      const files = Object.fromEntries(
        Object.entries(savedFiles(temporary)).map(([kind, path]) => [kind, stampOf(path)]),
      )
      writeWhole(join(temporary, RECORD), seal(KIND.magic, KIND.version, { saved, files }))
      syncFolder(temporary)
      renameNew(temporary, folder, taken)
      syncFolder(this.#root)
      return saved
    } catch (error) {
      rmSync(temporary, { recursive: true, force: true })
      throw error
    }
  }

  /**
   * Has `work` go on from one that is removed afterwards.
   * @param fill as of {@link create}
   */
  async passing<T>(
    container: ContainerRecord,
    fill: (folder: string) => Promise<void>,
    work: (name: string) => Promise<T>,
  ): Promise<T> {
    using _using = this.#lock(LOCK_SH)
    const name = `${PASSING}${randomBytes(8).toString('hex')}`
    await this.create(name, container, fill)
    try {
      return await work(name)
    } finally {
      this.remove(name)
    }
  }

  /** Containers that have gone on from it keep what they have. @throws CoracleError NO_SUCH_SNAPSHOT */
  remove(name: string): void {
    const doomed = join(this.#root, `${REMOVING}${randomBytes(8).toString('hex')}`)
    try {
      renameSync(this.folder(name), doomed)
    } catch (error) {
      if ((error as { code?: string }).code !== 'ENOENT') throw error
      throw new CoracleError('NO_SUCH_SNAPSHOT', `No such snapshot: ${name.slice(0, 128)}`, { cause: error })
    }
    rmSync(doomed, { recursive: true, force: true })
  }

  /** Removes what processes that died left half made, half removed, or in passing. */
  sweep(): void {
    using lock = this.#lock(LOCK_EX | LOCK_NB)
    if (!lock) return
    for (const name of readdirSync(this.#root))
      if ([CREATING, REMOVING, PASSING].some((each) => name.startsWith(each)))
        rmSync(join(this.#root, name), { recursive: true, force: true })
  }

  #look(name: string): SavedContainer | CoracleError {
    try {
      return this.read(name)
    } catch (error) {
      if (error instanceof CoracleError) return error
      throw error
    }
  }

  /** @returns undefined where another's stands against it */
  #lock(operation: number): Fd | undefined {
    const fd = Fd.open(join(this.#root, '.lock'), O_RDWR | O_CREAT)
    if (fd.lock(operation)) return fd
    fd.close()
    return undefined
  }
}

function stampOf(path: string): FileStamps[string] | undefined {
  const found = statSync(path, { bigint: true, throwIfNoEntry: false })
  return found && { size: Number(found.size), modified: String(found.mtimeNs) }
}

const bytesOf = (folder: string): number =>
  readdirSync(folder).reduce((sum, name) => sum + statSync(join(folder, name)).blocks * 512, 0)

function writeWhole(path: string, bytes: Uint8Array): void {
  using file = Fd.open(path, O_RDWR | O_CREAT | O_EXCL)
  for (let done = 0; done < bytes.length;) done += file.pwrite(bytes.subarray(done), done)
  file.sync()
}

function renameNew(from: string, to: string, taken: () => CoracleError): void {
  try {
    renameSync(from, to)
  } catch (error) {
    const { code } = error as { code?: string }
    throw code === 'ENOTEMPTY' || code === 'EEXIST' ? taken() : error
  }
}
