import { CoracleError } from '../errors.js'
import type { Image, LoadOptions, Removal } from '../image/image.js'
import { canonicalName, parseReference } from '../image/reference.js'
import type { Pushed } from '../image/registry/push.js'
import type {
  Distribution,
  Pulled,
  PullOptions,
  PushOptions,
  Registry,
  RegistryOptions,
} from '../image/registry/registry.js'
import type { FoundImage } from '../image/registry/search.js'
import { type SavedImageRequest, saveImages } from '../image/save.js'
import type { ImageStore } from '../image/store.js'
import { decompress } from '../image/decompress.js'
import { changedConfig } from './build/change.js'
import { newName } from './commit.js'
import type { BuildCache } from './build/cache.js'
import type { Events } from './events.js'
import { type ImageHistory, historyOf } from './image-history.js'
import type { Snapshots } from './snapshots.js'
import type { ContainerStore } from './store.js'

/** What an engine needs of the images of this host. */
export type EngineImages = Pick<
  ImageStore,
  'load' | 'get' | 'list' | 'tag' | 'remove' | 'config' | 'compose' | 'lend'
>

/** What an engine needs of registries. */
export type EngineRegistry = Pick<Registry, 'pull' | 'push' | 'tags' | 'login' | 'describe' | 'search'>

/** What `import` is asked for. */
export interface ImportOptions {
  /** The new image's name, with a tag or without. */
  readonly name?: string
  readonly comment?: string
  /** Instructions of a Dockerfile. */
  readonly changes?: readonly string[]
  readonly signal?: AbortSignal
}

/** What an engine's images stand on. */
export interface ImagesInit {
  readonly images: EngineImages
  readonly registry: EngineRegistry
  readonly containers: ContainerStore
  readonly snapshots: Snapshots
  readonly buildCache: BuildCache
  readonly events: Events
}

/** Images as people have them: with events, and kept while a container or a snapshot needs them. */
export class Images {
  readonly #store: EngineImages
  readonly #registry: EngineRegistry
  readonly #containers: ContainerStore
  readonly #snapshots: Snapshots
  readonly #buildCache: BuildCache
  readonly #events: Events

  constructor({ images, registry, containers, snapshots, buildCache, events }: ImagesInit) {
    this.#store = images
    this.#registry = registry
    this.#containers = containers
    this.#snapshots = snapshots
    this.#buildCache = buildCache
    this.#events = events
  }

  list(): Image[] {
    return this.#store.list()
  }

  /** @throws CoracleError NO_SUCH_IMAGE */
  get(reference: string): Image {
    return this.#store.get(reference)
  }

  async load(source: AsyncIterable<Uint8Array>, options?: LoadOptions): Promise<Image[]> {
    const images = await this.#store.load(source, options)
    for (const { id, tags } of images) this.#events.emit('image', 'load', id, { name: tags[0] ?? id })
    return images
  }

  /**
   * Makes an image of one layer from the files in an archive.
   * @param source a tar, plain or compressed
   * @throws CoracleError INVALID_ARGUMENT for the name or a change, IMAGE_ARCHIVE, IMAGE_TOO_LARGE
   */
  async import(source: AsyncIterable<Uint8Array>, options: ImportOptions): Promise<Image> {
    const { name, comment = '', changes = [], signal } = options
    const image = await this.#store.compose({
      base: undefined,
      layer: decompress(source, 'the archive', true),
      config: changedConfig({}, changes),
      history: [{ created: new Date().toISOString(), created_by: '', comment }],
      names: name === undefined ? [] : [newName(name)],
      signal,
    })
    this.#events.emit('image', 'import', image.id, { name: name ?? image.id })
    return image
  }

  /** An image's history, the newest line first, with the length of each line's layer in bytes. */
  history(reference: string): readonly ImageHistory[] {
    return historyOf(this.get(reference), this.#store)
  }

  /**
   * An archive of images, as `load` takes it.
   * @param references names keep their names in it, ids have none
   * @throws CoracleError NO_SUCH_IMAGE, before the first byte
   */
  save(references: readonly string[]): AsyncGenerator<Buffer> {
    const images = this.#store
    const loans: SavedImageRequest[] = []
    try {
      for (const reference of references) {
        const loan = images.lend(reference)
        loans.push({
          loan,
          names: images.get(reference).id.includes(reference)
            ? []
            : [canonicalName(parseReference(reference))],
        })
      }
    } catch (error) {
      for (const { loan } of loans) loan[Symbol.dispose]()
      throw error
    }
    return (async function* () {
      try {
        yield* saveImages(loans)
      } finally {
        for (const { loan } of loans) loan[Symbol.dispose]()
      }
    })()
  }

  /**
   * Removes images that no container needs.
   * @param wanted of those without a name, or of all
   * @returns what went, and the bytes of their layers
   */
  async prune(wanted: (image: Image) => boolean): Promise<{ removals: Removal[]; bytes: number }> {
    const removals: Removal[] = []
    let bytes = 0
    const used = new Set([
      ...this.#containers.list().map(({ imageId }) => imageId),
      ...this.#snapshots.images().keys(),
    ])
    for (const image of this.list()) {
      if (used.has(image.id) || !wanted(image)) continue
      try {
        removals.push(...(await this.remove(image.id, true)))
        bytes += image.size
      } catch (error) {
        // In use since, or gone.
        if (!(error instanceof CoracleError)) throw error
      }
    }
    return { removals, bytes }
  }

  /** @see Registry.pull */
  async pull(name: string, options?: PullOptions): Promise<Pulled> {
    const pulled = await this.#registry.pull(name, options)
    this.#events.emit('image', 'pull', name, { name })
    return pulled
  }

  /** @see Registry.tags */
  remoteTags(name: string, options?: RegistryOptions): Promise<string[]> {
    return this.#registry.tags(name, options)
  }

  /** @see Registry.push */
  async push(name: string, options?: PushOptions): Promise<Pushed> {
    const pushed = await this.#registry.push(name, options)
    this.#events.emit('image', 'push', name, { name })
    return pushed
  }

  /** @see Registry.describe */
  describe(name: string, options?: RegistryOptions): Promise<Distribution> {
    return this.#registry.describe(name, options)
  }

  /** @see Registry.search */
  search(term: string, limit: number, signal?: AbortSignal): Promise<FoundImage[]> {
    return this.#registry.search(term, limit, signal)
  }

  /** Shows credentials to a registry. @throws CoracleError REGISTRY_DENIED, REGISTRY_FAILED */
  login(server: string, options: RegistryOptions): Promise<void> {
    return this.#registry.login(server, options)
  }

  tag(reference: string, name: string): void {
    this.#store.tag(reference, name)
    this.#events.emit('image', 'tag', this.get(name).id, { name })
  }

  /** @throws CoracleError NO_SUCH_IMAGE, CONFLICT where a container needs it */
  async remove(reference: string, force = false): Promise<Removal[]> {
    using _lock = await this.#containers.lockAll()
    const users = new Map(this.#containers.list().map((record) => [record.imageId, record]))
    const saved = this.#snapshots.images()
    const removals = this.#store.remove(reference, {
      force,
      inUse: ({ id }) => {
        const user = users.get(id)
        if (user) return `container ${user.id.slice(0, 12)} is using it`
        const snapshot = saved.get(id)
        return snapshot && `snapshot ${snapshot} is using it`
      },
    })
    for (const removal of removals) {
      const [action, name] = 'Deleted' in removal ? ['delete', removal.Deleted] : ['untag', removal.Untagged]
      this.#events.emit('image', action, name, { name })
    }
    return removals
  }

  /** Tells the images that are no more than steps, which builds may take up again; of now. */
  buildSteps(): (image: Image) => boolean {
    const steps = this.#buildCache.images()
    return (image) => image.tags.length === 0 && steps.has(image.id)
  }
}
