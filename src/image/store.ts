import {
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import { open } from 'node:fs/promises'
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { CoracleError } from '../errors.js'
import { paths } from '../paths.js'
import { readArchive, readBlob, type StagedBlob } from './archive.js'
import { findImages, type FoundImage } from './contents.js'
import { syncFolder } from './durable.js'
import type { Image, LoadOptions, LoadProgress, Removal, RemoveOptions } from './image.js'
import { Budget, convertLayer, readLayerFile, type LayerFile } from './layer.js'
import { DEFAULT_LIMITS, type ImageLimits } from './limits.js'
import { FileLock } from './lock.js'
import { canonicalName, familiarName, isDigest, parseReference } from './reference.js'
import { Staging, sweepStaging } from './staging.js'
import { StoreIndex, type ImageRecord, type IndexContent } from './store-index.js'

/** Layers converted side by side: decompression has threads of its own, the rest is this thread's. */
const PARALLEL = 2
const PROGRESS_INTERVAL = 50
const HINT = '"coracle images" lists what is here, "coracle load -i FILE" takes an archive in'

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
      rmSync(join(root, 'index.json.tmp'), { force: true })
      store.#collect()
    })
    return store
  }

  /**
   * Takes in an archive: docker-archive (`docker save`) or OCI layout, as it is or gzip or zstd compressed.
   * All of it or nothing. @throws CoracleError IMAGE_ARCHIVE, IMAGE_TOO_LARGE; the signal's reason
   */
  async load(source: AsyncIterable<Uint8Array>, options: LoadOptions = {}): Promise<Image[]> {
    try {
      return await this.#load(source, options)
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code !== 'ENOSPC' && code !== 'EDQUOT') throw error
      throw new CoracleError(
        'IMAGE_TOO_LARGE',
        `no space for the image in ${this.root}: free some, or put CORACLE_ROOT on a larger disk`,
        { cause: error },
      )
    }
  }

  async #load(source: AsyncIterable<Uint8Array>, options: LoadOptions): Promise<Image[]> {
    const { signal } = options
    const report = throttle(options.onProgress)
    using staging = this.#locked(() => new Staging(join(this.root, 'tmp')))
    const archive = await readArchive(source, staging, {
      limits: this.#limits,
      signal,
      onBytes: (current) => report({ phase: 'read', current }),
    })
    const found = await findImages(archive, this.#limits)
    const blobs = new Map<string, StagedBlob>()
    const wanted = new Map<string, WantedLayer>()
    for (const image of found) {
      for (const blob of [image.configBlob, ...image.layers]) blobs.set(blob.digest, blob)
      image.layers.forEach((blob, i) => {
        const diffId = image.config.diffIds[i]!
        wanted.set(`${diffId} ${blob.digest}`, { diffId, blob })
      })
    }
    const layers = await this.#convert(wanted, { staging, signal, report })
    const records = found.map((image) => {
      const manifest = image.manifestBlob ?? writeManifest(image, staging)
      blobs.set(manifest.digest, manifest)
      return recordOf(image, manifest, layers)
    })
    await Promise.all([...blobs.values()].map(({ path }) => syncFile(path)))
    signal?.throwIfAborted()
    this.#commit(blobs, layers, (index) => {
      records.forEach((record, i) => {
        index.images[record.id] = record
        for (const name of found[i]!.names) index.names[name] = record.id
      })
    })
    const index = this.#index.read()
    return [...new Set(records.map(({ id }) => id))].map((id) => this.#image(index, id))
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

  /** Makes the root layers that are wanted, or takes the store's own where it has them already. */
  async #convert(
    wanted: ReadonlyMap<string, WantedLayer>,
    context: { staging: Staging; signal: AbortSignal | undefined; report: (progress: LoadProgress) => void },
  ): Promise<Map<string, StagedLayer>> {
    const { staging, signal, report } = context
    const budget = new Budget(this.#limits.bytes)
    const layers = new Map<string, StagedLayer>()
    const queue = [...wanted.values()]
    const failure = new AbortController()
    const work = async (): Promise<void> => {
      for (let next = queue.shift(); next; next = queue.shift()) {
        const { diffId, blob } = next
        const path = staging.path()
        const known = await this.#borrow(next, path)
        if (known) {
          layers.set(diffId, { path, file: known })
          continue
        }
        const source = watch(readBlob(blob), (current) =>
          report({ phase: 'convert', current, total: blob.size, layer: diffId }),
        )
        const signals = signal ? [signal, failure.signal] : [failure.signal]
        const file = await convertLayer(source, {
          path,
          diffId,
          budget,
          limits: this.#limits,
          signal: AbortSignal.any(signals),
        })
        layers.set(diffId, { path, file })
      }
    }
    let first: { error: unknown } | undefined
    await Promise.all(
      Array.from({ length: PARALLEL }, () =>
        work().catch((error: unknown) => {
          first ??= { error }
          failure.abort()
        }),
      ),
    )
    if (first) throw first.error
    return layers
  }

  /**
   * Links a layer that is in the store to a path of ours: it stays, even if its image is removed meanwhile.
   * Only where an image has this very blob as this layer; else that the one unpacks to the other is not shown yet.
   */
  async #borrow({ diffId, blob }: WantedLayer, path: string): Promise<LayerFile | undefined> {
    const records = Object.values(this.#index.read().images)
    const shown = records.some(({ layers }) =>
      layers.some((layer) => layer.diffId === diffId && layer.blob === blob.digest),
    )
    if (!shown) return undefined
    try {
      linkSync(this.#layerPath(diffId), path)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw error
    }
    const file = await readLayerFile(path)
    if (!file) unlinkSync(path)
    return file
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
      layers: effective(record.layers).map(({ diffId, size }) => ({
        diffId,
        size,
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

/** A layer that an image in the archive has. */
interface WantedLayer {
  readonly diffId: string
  readonly blob: StagedBlob
}

/** A root layer in the staging folder. */
interface StagedLayer {
  readonly path: string
  readonly file: LayerFile
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

function recordOf(
  image: FoundImage,
  manifest: StagedBlob,
  layers: ReadonlyMap<string, StagedLayer>,
): ImageRecord {
  const { architecture, os, created, config, diffIds } = image.config
  return {
    id: image.configBlob.digest,
    manifest: manifest.digest,
    architecture,
    os,
    created,
    config,
    blobs: [...new Set([image.configBlob, manifest, ...image.layers].map(({ digest }) => digest))],
    layers: diffIds.map((diffId, i) => ({
      diffId,
      blob: image.layers[i]!.digest,
      ...layers.get(diffId)!.file,
    })),
  }
}

/** Writes the manifest that a docker-archive lacks, so that every image can be saved and pushed alike. */
function writeManifest(image: FoundImage, staging: Staging): StagedBlob {
  const describe = (mediaType: string, { digest, size }: StagedBlob): object => ({ mediaType, digest, size })
  const text = JSON.stringify({
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    config: describe('application/vnd.oci.image.config.v1+json', image.configBlob),
    layers: image.layers.map((layer, i) => {
      // A layer whose digest is its diffID is not compressed; docker-archives know no other compression than gzip.
      const suffix = layer.digest === image.config.diffIds[i] ? '' : '+gzip'
      return describe(`application/vnd.oci.image.layer.v1.tar${suffix}`, layer)
    }),
  })
  const path = staging.path()
  writeFileSync(path, text)
  return {
    path,
    size: Buffer.byteLength(text),
    digest: `sha256:${createHash('sha256').update(text).digest('hex')}`,
  }
}

async function syncFile(path: string): Promise<void> {
  const file = await open(path, 'r')
  try {
    await file.sync()
  } finally {
    await file.close()
  }
}

/** Passes chunks on and tells how many bytes they were so far. */
async function* watch(
  source: AsyncIterable<Buffer>,
  onBytes: (bytes: number) => void,
): AsyncGenerator<Buffer> {
  let bytes = 0
  for await (const chunk of source) {
    onBytes((bytes += chunk.length))
    yield chunk
  }
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
