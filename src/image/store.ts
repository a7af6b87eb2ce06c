import {
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs'
import { join } from 'node:path'
import { CoracleError, isNoSpace } from '../errors.js'
import { paths } from '../paths.js'
import { readArchive, type StagedBlob } from './archive.js'
import { composeImage, type Composition } from './compose.js'
import { findImages } from './contents.js'
import { syncFolder, sweepReplaced } from '../durable.js'
import type { Image, LoadOptions, LoadProgress, Removal, RemoveOptions } from './image.js'
import { Intake, type StagedLayer } from './intake.js'
import type { LayerFile } from './layer.js'
import { DEFAULT_LIMITS, type ImageLimits } from './limits.js'
import { FileLock } from './lock.js'
import { canonicalName, familiarName, isDigest, parseReference } from './reference.js'
import { Staging, sweepStaging } from './staging.js'
import { StoreIndex, type IndexContent } from './store-index.js'

const PROGRESS_INTERVAL = 50
const HINT =
  '"coracle images" lists what is here, "coracle pull" fetches one from a registry, "coracle load -i FILE" takes an archive in'

/*
 * The folder:
 *
 *   lock                  flock'ed by whoever changes anything below, for moments
 *   index.json            records and names (store-index.ts); what it does not name is garbage
 *   blobs/sha256/<hex>    configs, manifests and layers as they came
 *   layers/<hex>.erofs    root layers by diffID
 *   tmp/<random>/         what is on its way in (staging.ts)
 *
 * An image comes in by: files synchronised in the staging folder; renamed to their places; then named by a new
 * index.json. A crash before the last step leaves garbage, which the next opening removes.
 */

/** The images of this host: blobs, root layers, records and names, under one folder. Shared between processes. */
export class ImageStore {
  readonly #index: StoreIndex
  readonly #limits: ImageLimits

  private constructor(
    readonly root: string,
    limits: ImageLimits,
  ) {
    this.#index = new StoreIndex(join(root, 'index.json'))
    this.#limits = limits
  }

  /**
   * Opens or makes the store, and removes what loads that crashed left behind.
   * @param root `images` in `paths.state`
   * @throws CoracleError INTERNAL for a damaged store
   */
  static async open(
    root = join(paths.state, 'images'),
    limits: Partial<ImageLimits> = {},
  ): Promise<ImageStore> {
    const store = new ImageStore(root, { ...DEFAULT_LIMITS, ...limits })
    for (const folder of ['blobs/sha256', 'layers', 'tmp']) mkdirSync(join(root, folder), { recursive: true })
    store.#locked(() => {
      sweepStaging(join(root, 'tmp'))
      sweepReplaced(join(root, 'index.json'))
      store.#collect()
    })
    return store
  }

  /**
   * Takes in an archive: docker-archive (`docker save`) or OCI layout, as it is or gzip or zstd compressed.
   * All of it or nothing. @throws CoracleError IMAGE_ARCHIVE, IMAGE_TOO_LARGE; the signal's reason
   */
  async load(source: AsyncIterable<Uint8Array>, options: LoadOptions = {}): Promise<Image[]> {
    const { signal } = options
    const report = throttle(options.onProgress)
    return this.take(async (intake) => {
      const archive = await readArchive(source, intake.staging, {
        limits: this.#limits,
        signal,
        onBytes: (current) => report({ phase: 'read', current }),
      })
      const found = await findImages(archive, this.#limits)
      await intake.convertAll(found, signal, (layer, current, total) =>
        report({ phase: 'convert', current, total, layer }),
      )
      return intake.commit(found, signal)
    })
  }

  /**
   * Takes images in by `work`, which fills the intake and commits it; what it leaves uncommitted is removed.
   * @throws CoracleError IMAGE_TOO_LARGE where the disk is full; what `work` throws
   */
  async take<T>(work: (intake: Intake) => Promise<T>): Promise<T> {
    try {
      return await this.#take(work)
    } catch (error) {
      if (!isNoSpace(error)) throw error
      throw new CoracleError(
        'IMAGE_TOO_LARGE',
        `no space for the image in ${this.root}: free some, or put CORACLE_ROOT on a larger disk`,
        { cause: error },
      )
    }
  }

  async #take<T>(work: (intake: Intake) => Promise<T>): Promise<T> {
    using staging = this.#locked(() => new Staging(join(this.root, 'tmp')))
    return await work(
      new Intake(
        {
          limits: this.#limits,
          index: () => this.#index.read(),
          blobPath: (digest) => this.#blobPath(digest),
          layerPath: (diffId) => this.#layerPath(diffId),
          commit: (blobs, layers, change) => this.#commit(blobs, layers, change),
          image: (id) => this.#image(this.#index.read(), id),
        },
        staging,
      ),
    )
  }

  /** Makes an image of another one, a layer and a configuration. @see composeImage */
  compose(composition: Composition): Promise<Image> {
    return composeImage(this, composition)
  }

  /**
   * Lends an image's blobs for reading: they stay until the loan is disposed of, even if the image is removed.
   * @throws CoracleError NO_SUCH_IMAGE
   */
  lend(reference: string): Loan {
    return this.#locked(() => {
      const index = this.#index.read()
      const { id } = this.#resolve(index, reference)
      const record = index.images[id]!
      const staging = new Staging(join(this.root, 'tmp'))
      const blobs = new Map(
        record.blobs.map((digest) => {
          const path = staging.path()
          linkSync(this.#blobPath(digest), path)
          return [digest, { path, digest, size: statSync(path).size }] as const
        }),
      )
      return {
        id,
        manifest: blobs.get(record.manifest)!,
        blobs,
        repositories: (digest) => {
          const ids = Object.values(index.images).filter((other) => other.blobs.includes(digest))
          return [...new Set(ids.flatMap((other) => namesOf(index, other.id)).map(repositoryOf))]
        },
        [Symbol.dispose]: () => staging[Symbol.dispose](),
      }
    })
  }

  /**
   * @param reference a name (`busybox`, `busybox:latest`, `busybox@sha256:…`), an id or the start of one
   * @throws CoracleError NO_SUCH_IMAGE
   */
  get(reference: string): Image {
    const index = this.#index.read()
    return this.#image(index, this.#resolve(index, reference).id)
  }

  /** All images, the newest first. */
  list(): Image[] {
    const index = this.#index.read()
    return Object.keys(index.images)
      .map((id) => this.#image(index, id))
      .sort((a, b) => Date.parse(b.created) - Date.parse(a.created) || (a.id < b.id ? -1 : 1))
  }

  /** The whole config document of an image, with what the store makes no use of (history, author). */
  config(image: Image): Record<string, unknown> {
    return JSON.parse(readFileSync(this.#blobPath(image.id), 'utf8')) as Record<string, unknown>
  }

  /** The digests of an image's layers as blobs, lowest first: as many as its config has diffIds. */
  layerBlobs(image: Image): string[] {
    return this.#index.read().images[image.id]?.layers.map(({ blob }) => blob) ?? []
  }

  /**
   * Gives an image another name; the name leaves the image that had it.
   * @throws CoracleError NO_SUCH_IMAGE, INVALID_ARGUMENT
   */
  tag(reference: string, name: string): void {
    const target = parseReference(name)
    if (target.digest !== undefined)
      throw new CoracleError(
        'INVALID_ARGUMENT',
        `invalid image name ${name}: a new name has a tag, no digest`,
      )
    this.#locked(() => {
      const index = structuredClone(this.#index.read())
      index.names[canonicalName(target)] = this.#resolve(index, reference).id
      this.#index.write(index)
    })
  }

  /**
   * Docker's removal: a name goes; with the last name the image goes, and each layer that no other image has.
   * @throws CoracleError NO_SUCH_IMAGE, CONFLICT
   */
  remove(reference: string, options: RemoveOptions = {}): Removal[] {
    return this.#locked(() => {
      const index = structuredClone(this.#index.read())
      const { id, name } = this.#resolve(index, reference)
      const names = namesOf(index, id)
      const leaving = name === undefined ? names : companions(name, names)
      if (name === undefined && !options.force) {
        const repositories = new Set(names.map(repositoryOf))
        if (repositories.size > 1)
          throw new CoracleError(
            'CONFLICT',
            `cannot remove image ${reference}: it has names in several repositories (${names.map(familiarName).join(', ')}); remove it by name, or use --force`,
          )
      }
      const last = leaving.length === names.length
      const reason = last ? options.inUse?.(this.#image(index, id)) : undefined
      if (reason !== undefined)
        throw new CoracleError('CONFLICT', `cannot remove image ${reference}: ${reason}`)
      for (const gone of leaving) Reflect.deleteProperty(index.names, gone)
      if (last) Reflect.deleteProperty(index.images, id)
      this.#index.write(index)
      if (last) this.#collect()
      const removals: Removal[] = leaving.map((gone) => ({ Untagged: familiarName(gone) }))
      return last ? [...removals, { Deleted: id }] : removals
    })
  }

  /** Runs `work`, which must not await, while no other process or instance changes the store. */
  #locked<T>(work: () => T): T {
    using lock = new FileLock(join(this.root, 'lock'))
    lock.take()
    return work()
  }

  #commit(
    blobs: ReadonlyMap<string, StagedBlob>,
    layers: ReadonlyMap<string, StagedLayer>,
    change: (index: IndexContent) => void,
  ): void {
    this.#locked(() => {
      // A file that is there stays: containers may have it mapped, and share its pages.
      const settle = (from: string, to: string): void => {
        if (!existsSync(to)) renameSync(from, to)
      }
      for (const [digest, { path }] of blobs) settle(path, this.#blobPath(digest))
      for (const [diffId, { path }] of layers) settle(path, this.#layerPath(diffId))
      syncFolder(join(this.root, 'blobs/sha256'))
      syncFolder(join(this.root, 'layers'))
      const index = structuredClone(this.#index.read())
      change(index)
      this.#index.write(index)
    })
  }

  /** Removes blobs and layers that no image has. The caller holds the lock. */
  #collect(): void {
    const records = Object.values(this.#index.read().images)
    const blobs = new Set(records.flatMap((record) => record.blobs).map(hex))
    const layers = new Set(
      records.flatMap((record) => record.layers).map(({ diffId }) => `${hex(diffId)}.erofs`),
    )
    for (const [folder, kept] of [
      ['blobs/sha256', blobs],
      ['layers', layers],
    ] as const)
      for (const name of readdirSync(join(this.root, folder)))
        if (!kept.has(name)) rmSync(join(this.root, folder, name), { force: true, recursive: true })
  }

  #resolve(index: IndexContent, reference: string): { id: string; name?: string } {
    const ids = Object.keys(index.images)
    const digits = reference.startsWith('sha256:') ? reference.slice(7) : reference
    if (/^[0-9a-f]{64}$/.test(digits) && ids.includes(`sha256:${digits}`)) return { id: `sha256:${digits}` }
    const isId = /^[0-9a-f]{1,64}$/.test(digits)
    if (digits === reference && !(isId && digits.length === 64)) {
      const name = canonicalName(parseReference(reference))
      const id = Object.hasOwn(index.names, name) ? index.names[name] : undefined
      if (id !== undefined) return { id, name }
    }
    const matches = isId ? ids.filter((id) => id.startsWith(`sha256:${digits}`)) : []
    if (matches.length > 1)
      throw new CoracleError(
        'INVALID_ARGUMENT',
        `${reference} is the start of several image ids: give more of it`,
      )
    if (matches[0] === undefined)
      throw new CoracleError('NO_SUCH_IMAGE', `no such image: ${reference}; ${HINT}`)
    return { id: matches[0] }
  }

  #image(index: IndexContent, id: string): Image {
    const record = index.images[id]
    if (!record) throw new CoracleError('NO_SUCH_IMAGE', `no such image: ${id}; ${HINT}`)
    const names = namesOf(index, id).map(familiarName).sort()
    return {
      id,
      tags: names.filter((name) => !name.includes('@')),
      digests: names.filter((name) => name.includes('@')),
      architecture: record.architecture,
      os: record.os,
      created: record.created,
      size: record.layers.reduce((sum, { used }) => sum + used, 0),
      config: record.config,
      layers: effective(record.layers).map(({ diffId, size, used }) => ({
        diffId,
        size,
        used,
        path: this.#layerPath(diffId),
      })),
    }
  }

  #blobPath(digest: string): string {
    return join(this.root, 'blobs/sha256', hex(digest))
  }

  #layerPath(diffId: string): string {
    return join(this.root, 'layers', `${hex(diffId)}.erofs`)
  }
}

/** An image's blobs, lent for reading. */
export interface Loan extends Disposable {
  readonly id: string
  readonly manifest: StagedBlob
  /** By digest: config, manifest and layers. */
  readonly blobs: ReadonlyMap<string, StagedBlob>
  /** The repositories whose images in the store have this blob, complete names. */
  repositories(digest: string): string[]
}

/** @throws CoracleError INTERNAL: a digest becomes a path here */
function hex(digest: string): string {
  if (!isDigest(digest)) throw new CoracleError('INTERNAL', `${JSON.stringify(digest)} is no digest`)
  return digest.slice('sha256:'.length)
}

const namesOf = (index: IndexContent, id: string): string[] =>
  Object.keys(index.names).filter((name) => index.names[name] === id)

const repositoryOf = (name: string): string => parseReference(name).repository

/** The names that go with `name`: with a repository's last tag, its digests. */
function companions(name: string, names: string[]): string[] {
  const repository = repositoryOf(name)
  const same = names.filter((other) => repositoryOf(other) === repository)
  const tags = same.filter((other) => !other.includes('@'))
  return tags.length === 1 && tags[0] === name ? same : [name]
}

/**
 * The layers that make a difference: not the empty ones, nothing below one that hides all, and of a layer that
 * occurs twice the topmost (overlayfs refuses the same folder twice, and the lower one shows nowhere).
 */
function effective<T extends LayerFile & { readonly diffId: string }>(layers: readonly T[]): T[] {
  const from = layers.findLastIndex(({ opaque }) => opaque)
  return layers
    .slice(Math.max(from, 0))
    .filter(({ empty }) => !empty)
    .filter(({ diffId }, i, all) => all.findLastIndex((other) => other.diffId === diffId) === i)
}

/** Lets through what is a step's last word, and of the rest one in a while. */
function throttle(onProgress: LoadOptions['onProgress']): (progress: LoadProgress) => void {
  let last = 0
  return (progress) => {
    const now = performance.now()
    if (!onProgress || (now - last < PROGRESS_INTERVAL && progress.current !== progress.total)) return
    last = now
    onProgress(progress)
  }
}
