import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chmodSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { CoracleError } from '../errors.js'
import { replaceFile, syncFolder } from '../durable.js'
import { waitForLock } from '../isolation/file-lock.js'
import {
  ANONYMOUS_LABEL,
  type VolumeRecord,
  type VolumeRequest,
  checkDriver,
  checkVolumeName,
  deviceOf,
} from './record.js'

const RECORD = 'volume.json'
const DATA = '_data'
const CREATING = '.creating-'
const REMOVING = '.removing-'
const run = promisify(execFile)

/**
 * The volumes of this host: a folder each, `<root>/<name>/`, with `volume.json` and `_data`. Nothing is remembered
 * between calls. Who makes or removes volumes, or writes down that a container has one, holds the {@link lock}: so
 * one that was found for a container cannot go before the container is known.
 */
export class VolumeStore {
  readonly #root: string

  /** @param root `volumes` in the state folder; it is made where it is missing */
  constructor(root: string) {
    this.#root = root
    mkdirSync(root, { recursive: true, mode: 0o711 })
  }

  /** Holds everybody else off from making and removing volumes, until disposed. Taken after any lock of containers. */
  lock(): Promise<Disposable> {
    return waitForLock(join(this.#root, '.lock'), 'the list of volumes')
  }

  /** What containers see of it: a folder of the host. */
  data({ name, options }: VolumeRecord): string {
    return deviceOf(options) ?? this.mountpoint(name)
  }

  /** Its own folder for data, as Docker shows it. */
  mountpoint(name: string): string {
    return join(this.#root, name, DATA)
  }

  /** All of them, by name. One whose record cannot be read is left out, and left alone. */
  list(): VolumeRecord[] {
    return readdirSync(this.#root)
      .filter((name) => !name.startsWith('.'))
      .sort()
      .flatMap((name) => this.#read(name) ?? [])
  }

  /** @throws CoracleError NO_SUCH_VOLUME */
  get(name: string): VolumeRecord {
    const record = name.includes('/') || name.startsWith('.') ? undefined : this.#read(name)
    if (!record) throw new CoracleError('NO_SUCH_VOLUME', `get ${name.slice(0, 128)}: no such volume`)
    return record
  }

  /**
   * Makes a volume, or finds it made.
   * @returns whether it is new
   * @throws CoracleError INVALID_ARGUMENT, NOT_IMPLEMENTED, CONFLICT where it is there with other options
   */
  create({ name, driver, labels = {}, options = {} }: VolumeRequest): {
    record: VolumeRecord
    isNew: boolean
  } {
    checkDriver(driver)
    deviceOf(options)
    if (name !== undefined) {
      checkVolumeName(name)
      const found = this.#read(name)
      if (found) {
        const given = Object.keys(options).length > 0
        if (given && JSON.stringify(sorted(options)) !== JSON.stringify(sorted(found.options)))
          throw new CoracleError('CONFLICT', `the volume ${name} is there already, with other options`)
        return { record: found, isNew: false }
      }
    }
    const record: VolumeRecord = {
      version: 1,
      name: name ?? randomBytes(32).toString('hex'),
      created: new Date().toISOString(),
      labels: name === undefined ? { ...labels, [ANONYMOUS_LABEL]: '' } : labels,
      options,
    }
    const fresh = join(this.#root, CREATING + record.name)
    rmSync(fresh, { recursive: true, force: true })
    mkdirSync(join(fresh, DATA), { recursive: true, mode: 0o755 })
    // For whoever runs in a container, whatever our umask.
    chmodSync(join(fresh, DATA), 0o755)
    replaceFile(join(fresh, RECORD), JSON.stringify(record))
    try {
      renameSync(fresh, join(this.#root, record.name))
    } catch (error) {
      rmSync(fresh, { recursive: true, force: true })
      const { code } = error as NodeJS.ErrnoException
      throw new CoracleError(
        'CONFLICT',
        `cannot make the volume ${record.name} (${code}): there is a folder of that name without a record`,
      )
    }
    syncFolder(this.#root)
    return { record, isNew: true }
  }

  /**
   * Removes a volume that nobody uses, its data with it; not what an option `device` names.
   * @returns when it is out of sight: `emptied` settles when its data are gone too
   * @throws CoracleError NO_SUCH_VOLUME
   */
  remove(name: string): { emptied: Promise<void> } {
    this.get(name)
    const doomed = join(this.#root, `${REMOVING}${name}-${randomBytes(4).toString('hex')}`)
    renameSync(join(this.#root, name), doomed)
    syncFolder(this.#root)
    return { emptied: empty(doomed) }
  }

  /** Removes what processes that died left half made or half removed. Under the lock. */
  async sweep(): Promise<void> {
    for (const name of readdirSync(this.#root))
      if (name.startsWith(CREATING) || name.startsWith(REMOVING)) await empty(join(this.#root, name))
  }

  /** Bytes on disk that its data take; −1 where it cannot be known. */
  async size(record: VolumeRecord): Promise<number> {
    try {
      const { stdout } = await run('du', ['-s', '--block-size=1', '--', this.data(record)])
      return Number(/^\d+/.exec(stdout)?.[0] ?? -1)
    } catch (error) {
      // Files may have gone while it looked; it counted the others.
      const counted = /^\d+/.exec((error as { stdout?: string }).stdout ?? '')
      return counted ? Number(counted[0]) : -1
    }
  }

  /**
   * Calls `work` with the folder whose content is to become the volume's, which it makes, while nobody else does so. It
   * appears as the volume's when `work` is done.
   * @param inPlace the volume is in use: `work` gets the volume's own folder
   * @param work makes the folder, and all of it is on disk when it settles. @returns false for no content
   */
  async fill(
    record: VolumeRecord,
    inPlace: boolean,
    work: (folder: string) => Promise<boolean>,
  ): Promise<void> {
    using _lock = await waitForLock(join(this.#root, record.name, 'lock'), `volume ${record.name}`)
    const data = this.data(record)
    if (readdirSync(data).length > 0) return
    if (inPlace || data !== this.mountpoint(record.name)) {
      await work(data)
      return
    }
    const fresh = join(this.#root, record.name, '_new')
    await empty(fresh)
    if (!(await work(fresh))) return
    renameSync(fresh, data)
    syncFolder(join(this.#root, record.name))
  }

  #read(name: string): VolumeRecord | undefined {
    try {
      const record = JSON.parse(readFileSync(join(this.#root, name, RECORD), 'utf8')) as VolumeRecord
      return record.version === 1 && record.name === name ? record : undefined
    } catch {
      return undefined
    }
  }
}

const sorted = (record: Readonly<Record<string, string>>): [string, string][] => Object.entries(record).sort()

/**
 * Removes a folder that a container filled: rm(1) goes through trees of any depth by descriptors, and into no other
 * file system.
 */
async function empty(folder: string): Promise<void> {
  await run('rm', ['-rf', '--one-file-system', '--', folder])
}
