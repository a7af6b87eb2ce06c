import { mkdirSync, statSync } from 'node:fs'
import { CoracleError } from '../errors.js'
import { copyUp } from '../volume/copy-up.js'
import { ANONYMOUS_LABEL, type VolumeRecord, type VolumeRequest } from '../volume/record.js'
import type { VolumeStore } from '../volume/store.js'
import type { Events } from './events.js'
import type { MountPoint, PlannedMount } from './mounts.js'
import type { ContainerRecord } from './record.js'
import type { ContainerStore } from './store.js'

/** Puts an image's content into a volume's folder. Tests pass another. */
export type CopyUp = typeof copyUp

/** A volume, and what it is used for. */
export interface VolumeState {
  readonly record: VolumeRecord
  /** Its folder, as Docker shows it. */
  readonly mountpoint: string
  /** Containers that have it, running or not. */
  readonly users: readonly string[]
}

/** Volumes as containers have them. */
export class Volumes {
  readonly #store: VolumeStore
  readonly #containers: ContainerStore
  readonly #events: Events
  readonly #copyUp: CopyUp

  constructor(store: VolumeStore, containers: ContainerStore, events: Events, copy: CopyUp = copyUp) {
    this.#store = store
    this.#containers = containers
    this.#events = events
    this.#copyUp = copy
  }

  /** Clears away what crashed processes left. */
  async open(): Promise<void> {
    using _lock = await this.#store.lock()
    await this.#store.sweep()
  }

  /** All of them, by name. */
  list(): VolumeState[] {
    const users = this.#users()
    return this.#store.list().map((record) => this.#state(record, users))
  }

  /** @throws CoracleError NO_SUCH_VOLUME */
  get(name: string): VolumeState {
    return this.#state(this.#store.get(name), this.#users())
  }

  /** @see VolumeStore.size */
  size(volume: VolumeState): Promise<number> {
    return this.#store.size(volume.record)
  }

  /** Makes a volume, or finds one of that name. @throws as {@link VolumeStore.create} */
  async create(request: VolumeRequest): Promise<VolumeState> {
    using _lock = await this.#store.lock()
    return this.#state(this.#make(request), this.#users())
  }

  /**
   * @param force one that is not there is no error
   * @throws CoracleError NO_SUCH_VOLUME, CONFLICT where a container has it
   */
  async remove(name: string, force = false): Promise<void> {
    try {
      await this.#remove(name)
    } catch (error) {
      if (!(force && error instanceof CoracleError && error.code === 'NO_SUCH_VOLUME')) throw error
    }
  }

  /** Removes the volumes that no container has and that are `wanted`. @returns their names, and the bytes that went */
  async prune(wanted: (record: VolumeRecord) => boolean): Promise<{ names: string[]; bytes: number }> {
    const names: string[] = []
    let bytes = 0
    for (const volume of this.list()) {
      if (volume.users.length > 0 || !wanted(volume.record)) continue
      try {
        const size = await this.size(volume)
        await this.#remove(volume.record.name)
        bytes += Math.max(0, size)
        names.push(volume.record.name)
      } catch (error) {
        // In use since, or gone.
        if (!(error instanceof CoracleError)) throw error
      }
    }
    this.#events.emit('volume', 'prune', '', { reclaimed: String(bytes) })
    return { names, bytes }
  }

  /**
   * Makes or finds what a new container is to have mounted, and calls `known` when it is there: the container is
   * written down in it.
   * @throws CoracleError INVALID_ARGUMENT for a source that is not there
   */
  async settle(planned: readonly PlannedMount[], known: (mounts: MountPoint[]) => void): Promise<void> {
    using _lock = await this.#store.lock()
    for (const mount of planned) if (mount.type === 'bind') findSource(mount, mount.createSource === true)
    const made: string[] = []
    try {
      known(
        planned.map(({ labels, driverOptions, createSource: _, ...point }) => {
          if (point.type !== 'volume') return point
          const record = this.#make(
            {
              ...(point.name === undefined ? {} : { name: point.name }),
              ...(labels && { labels }),
              ...(driverOptions && { options: driverOptions }),
            },
            made,
          )
          return { ...point, name: record.name, source: this.#store.data(record) }
        }),
      )
    } catch (error) {
      for (const name of made) void this.#store.remove(name).emptied.catch(() => undefined)
      throw error
    }
  }

  /** Brings the image's content into the container's volumes, once in the container's life. */
  async populate(id: string): Promise<void> {
    const isWaiting = ({ mounts }: ContainerRecord): boolean => mounts?.some((each) => each.copyUp) === true
    const before = this.#containers.read(id)
    if (!before || !isWaiting(before)) return
    using _lock = await this.#containers.lock(id)
    const record = this.#containers.read(id)!
    for (const { copyUp: wanted, name, destination } of record.mounts ?? []) {
      if (!wanted || name === undefined) continue
      const volume = this.get(name)
      const inPlace = volume.users.length > 1
      await this.#store.fill(volume.record, inPlace, (folder) =>
        this.#copyUp(record.spec.layers, destination, folder),
      )
    }
    const mounts = (record.mounts ?? []).map(({ copyUp: _, ...mount }) => mount)
    this.#containers.write({ ...record, mounts })
  }

  /** Before a run: its sources are there still. @throws CoracleError INVALID_ARGUMENT */
  prepare({ id, mounts = [] }: ContainerRecord): void {
    for (const mount of mounts) {
      if (mount.type === 'tmpfs') continue
      findSource(mount, false)
      if (mount.name !== undefined)
        this.#events.emit('volume', 'mount', mount.name, {
          container: id,
          destination: mount.destination,
          driver: 'local',
          propagation: mount.propagation,
          'read/write': String(!mount.readOnly),
        })
    }
  }

  /** A run is over. */
  release({ id, mounts = [] }: ContainerRecord): void {
    for (const { name } of mounts)
      if (name !== undefined) this.#events.emit('volume', 'unmount', name, { container: id, driver: 'local' })
  }

  /** The container is gone: its volumes that nobody named go too, unless another container has them. */
  async forget({ mounts = [] }: ContainerRecord): Promise<void> {
    for (const { name, anonymous } of mounts)
      if (anonymous && name !== undefined)
        await this.#remove(name).catch((error: unknown) => {
          if (!(error instanceof CoracleError)) throw error
        })
  }

  #make(request: VolumeRequest, made?: string[]): VolumeRecord {
    const { record, isNew } = this.#store.create(request)
    if (isNew) {
      made?.push(record.name)
      this.#events.emit('volume', 'create', record.name, { driver: 'local' })
    }
    return record
  }

  async #remove(name: string): Promise<void> {
    let emptied
    {
      using _lock = await this.#store.lock()
      const { record, users } = this.get(name)
      if (users.length > 0)
        throw new CoracleError('CONFLICT', `remove ${name}: volume is in use - [${users.join(', ')}]`)
      emptied = this.#store.remove(record.name).emptied
    }
    this.#events.emit('volume', 'destroy', name, { driver: 'local' })
    await emptied
  }

  #users(): Map<string, string[]> {
    const users = new Map<string, string[]>()
    for (const { id, mounts = [] } of this.#containers.list())
      for (const name of new Set(mounts.flatMap((mount) => mount.name ?? [])))
        users.set(name, [...(users.get(name) ?? []), id])
    return users
  }

  #state(record: VolumeRecord, users: ReadonlyMap<string, string[]>): VolumeState {
    const { name } = record
    return { record, mountpoint: this.#store.mountpoint(name), users: users.get(name) ?? [] }
  }
}

/** Whether nobody named it. */
export const isAnonymous = ({ labels }: VolumeRecord): boolean => Object.hasOwn(labels, ANONYMOUS_LABEL)

/** @param make a folder is made where there is nothing */
function findSource({ source, type }: MountPoint, make: boolean): void {
  if (statSync(source, { throwIfNoEntry: false })) return
  const missing = (): CoracleError =>
    new CoracleError(
      'INVALID_ARGUMENT',
      `invalid mount config for type "${type}": bind source path does not exist: ${source}`,
    )
  if (!make) throw missing()
  try {
    mkdirSync(source, { recursive: true, mode: 0o755 })
  } catch {
    throw missing()
  }
}
