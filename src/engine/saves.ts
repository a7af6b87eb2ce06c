import { CoracleError } from '../errors.js'
import type { Sandbox } from '../isolation/sandbox.js'
import type { Created } from './creation.js'
import type { Events } from './events.js'
import { checkSavable } from './going-on.js'
import type { EngineImages } from './images.js'
import { refusePaused } from './pauses.js'
import type { ContainerRecord, CreateRequest } from './record.js'
import type { SavedContainer, SnapshotSummary, Snapshots } from './snapshots.js'
import type { ContainerStore } from './store.js'

/** What saves stand on. */
export interface SavesInit {
  readonly snapshots: Snapshots
  readonly containers: Pick<ContainerStore, 'list' | 'lockAll'>
  readonly images: Pick<EngineImages, 'get'>
  readonly events: Events
  /** The container's record, put right. @throws CoracleError NO_SUCH_CONTAINER */
  inspect(reference: string): Promise<ContainerRecord>
  /** @throws CoracleError NOT_RUNNING */
  running(id: string): Promise<Sandbox>
  create(asked: CreateRequest): Promise<Created>
  start(id: string): Promise<void>
  /** Also one that runs. */
  remove(id: string): Promise<void>
}

/** Containers that are saved while they run, and copies of them. */
export class Saves {
  readonly #init: SavesInit

  constructor(init: SavesInit) {
    this.#init = init
  }

  /**
   * Saves a running container, which goes on after it stood still for as long as that takes.
   * @param name @default the container's, with a number
   * @throws CoracleError NO_SUCH_CONTAINER, NOT_RUNNING, INVALID_ARGUMENT where it is no microVM on kvm,
   * SNAPSHOT_UNSUPPORTED, CONFLICT (the name); nothing stays then
   */
  async take(reference: string, name?: string, signal?: AbortSignal): Promise<SavedContainer> {
    const { record, save } = await this.#savable(reference, signal)
    const { snapshots, images, events } = this.#init
    const saved = await snapshots.create(name ?? snapshots.freeName(record.name), record, save)
    try {
      // It may have lost its container meanwhile, and with that what kept the image.
      images.get(record.imageId)
    } catch (error) {
      snapshots.remove(saved.name)
      throw error
    }
    events.container('snapshot', record, { snapshot: saved.name })
    return saved
  }

  /**
   * Starts a copy of a running container that goes on from where it is, under a name, addresses and an identity of its
   * own.
   * @param asked as of a creation with `from`
   * @throws CoracleError as {@link take}, and those of a start
   */
  async clone(
    reference: string,
    asked: Omit<CreateRequest, 'image' | 'from'>,
    signal?: AbortSignal,
  ): Promise<Created> {
    const { record, save } = await this.#savable(reference, signal)
    return this.#init.snapshots.passing(record, save, async (from) => {
      const created = await this.#init.create({ ...asked, image: '', from })
      try {
        await this.#init.start(created.id)
      } catch (error) {
        await this.#init.remove(created.id).catch(() => undefined)
        throw error
      }
      return created
    })
  }

  async #savable(
    reference: string,
    signal: AbortSignal | undefined,
  ): Promise<{ record: ContainerRecord; save: (folder: string) => Promise<void> }> {
    const record = await this.#init.inspect(reference)
    checkSavable(record)
    refusePaused(record, 'saving it')
    const sandbox = await this.#init.running(record.id)
    return { record, save: (folder) => sandbox.snapshot(folder, signal) }
  }

  /** By name; those that are of no use among them. */
  list(): SnapshotSummary[] {
    return this.#init.snapshots.list()
  }

  /** @throws CoracleError NO_SUCH_SNAPSHOT, SNAPSHOT_INVALID, SNAPSHOT_MISMATCH */
  read(name: string): SavedContainer {
    return this.#init.snapshots.read(name)
  }

  /**
   * Containers that have gone on from it keep what they have.
   * @throws CoracleError NO_SUCH_SNAPSHOT, CONFLICT where one is yet to go on from it, and `force` is not set
   */
  async remove(name: string, force = false): Promise<void> {
    const { containers, snapshots } = this.#init
    using _lock = await containers.lockAll()
    const folder = snapshots.folder(name)
    const user = containers
      .list()
      .find(({ spec, exits, state }) => spec.from === folder && exits === 0 && state.status !== 'running')
    if (user && !force)
      throw new CoracleError(
        'CONFLICT',
        `container ${user.name} is yet to go on from the snapshot ${name}: start or remove it first`,
      )
    snapshots.remove(name)
  }
}
