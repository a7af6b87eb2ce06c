import { createHash } from 'node:crypto'
import { linkSync, statSync, unlinkSync, writeFileSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { readBlob, type StagedBlob } from './archive.js'
import type { FoundImage } from './contents.js'
import type { Image } from './image.js'
import { Budget, convertLayer, readLayerFile, type LayerFile } from './layer.js'
import type { ImageLimits } from './limits.js'
import type { Staging } from './staging.js'
import type { ImageRecord, IndexContent } from './store-index.js'
import { Slots, together } from './together.js'

/** Layers converted side by side: decompression has threads of its own, the rest is this thread's. */
const PARALLEL = 2

/** A root layer in the staging folder. */
export interface StagedLayer {
  readonly path: string
  readonly file: LayerFile
}

/** What an intake needs of its store. */
export interface IntakeStore {
  readonly limits: ImageLimits
  index(): IndexContent
  blobPath(digest: string): string
  layerPath(diffId: string): string
  /** Moves files to their places and names them. */
  commit(
    blobs: ReadonlyMap<string, StagedBlob>,
    layers: ReadonlyMap<string, StagedLayer>,
    change: (index: IndexContent) => void,
  ): void
  image(id: string): Image
}

/**
 * Images on their way into the store: their blobs lie in a staging folder, their layers are converted there, and one
 * commit makes all of it the store's. Whatever was not committed goes with the folder.
 */
export class Intake {
  readonly staging: Staging
  readonly #store: IntakeStore
  readonly #budget: Budget
  readonly #slots = new Slots(PARALLEL)
  readonly #layers = new Map<string, StagedLayer>()

  constructor(store: IntakeStore, staging: Staging) {
    this.staging = staging
    this.#store = store
    this.#budget = new Budget(store.limits.bytes)
  }

  get limits(): ImageLimits {
    return this.#store.limits
  }

  /** Links a blob that an image of the store has into the staging folder: it stays, even if the image goes. */
  borrow(digest: string): StagedBlob | undefined {
    const known = Object.values(this.#store.index().images).some(({ blobs }) => blobs.includes(digest))
    if (!known) return undefined
    const path = this.staging.path()
    if (!link(this.#store.blobPath(digest), path)) return undefined
    return { path, digest, size: statSync(path).size }
  }

  /**
   * Makes a layer's root layer, or takes the store's own where it has it already.
   * @param onBytes called with the bytes of the blob so far
   * @throws CoracleError IMAGE_ARCHIVE, IMAGE_TOO_LARGE
   */
  async convert(
    diffId: string,
    blob: StagedBlob,
    signal?: AbortSignal,
    onBytes: (bytes: number) => void = () => undefined,
  ): Promise<void> {
    await this.#slots.run(async () => {
      signal?.throwIfAborted()
      const path = this.staging.path()
      const file =
        (await this.#borrowLayer(diffId, blob, path)) ??
        (await convertLayer(watch(readBlob(blob), onBytes), {
          path,
          diffId,
          budget: this.#budget,
          limits: this.#store.limits,
          signal,
        }))
      this.#layers.set(diffId, { path, file })
    })
  }

  /** Converts the layers of all these images. @param onBytes called with the bytes of a layer's blob so far */
  async convertAll(
    images: readonly FoundImage[],
    signal: AbortSignal | undefined,
    onBytes: (diffId: string, bytes: number, total: number) => void,
  ): Promise<void> {
    const wanted = new Map<string, { diffId: string; blob: StagedBlob }>()
    for (const { layers, config } of images)
      layers.forEach((blob, i) => {
        const diffId = config.diffIds[i]!
        wanted.set(`${diffId} ${blob.digest}`, { diffId, blob })
      })
    await together(
      [...wanted.values()].map(
        ({ diffId, blob }) =>
          (either: AbortSignal) =>
            this.convert(diffId, blob, either, (bytes) => onBytes(diffId, bytes, blob.size)),
      ),
      signal,
    )
  }

  /** Makes images whose layers are all converted the store's. @throws the signal's reason */
  async commit(found: readonly FoundImage[], signal?: AbortSignal): Promise<Image[]> {
    const blobs = new Map<string, StagedBlob>()
    const records = found.map((image) => {
      const manifest = image.manifestBlob ?? writeManifest(image, this.staging)
      for (const blob of [image.configBlob, manifest, ...image.layers]) blobs.set(blob.digest, blob)
      return recordOf(image, manifest, this.#layers)
    })
    await Promise.all([...blobs.values()].map(({ path }) => syncFile(path)))
    signal?.throwIfAborted()
    this.#store.commit(blobs, this.#layers, (index) => {
      records.forEach((record, i) => {
        index.images[record.id] = record
        for (const name of found[i]!.names) index.names[name] = record.id
      })
    })
    return [...new Set(records.map(({ id }) => id))].map((id) => this.#store.image(id))
  }

  /**
   * Links a layer that is in the store to a path of ours: it stays, even if its image is removed meanwhile.
   * Only where an image has this very blob as this layer; else that the one unpacks to the other is not shown yet.
   */
  async #borrowLayer(diffId: string, blob: StagedBlob, path: string): Promise<LayerFile | undefined> {
    const records = Object.values(this.#store.index().images)
    const shown = records.some(({ layers }) =>
      layers.some((layer) => layer.diffId === diffId && layer.blob === blob.digest),
    )
    if (!shown || !link(this.#store.layerPath(diffId), path)) return undefined
    const file = await readLayerFile(path)
    if (!file) unlinkSync(path)
    return file
  }
}

/** @returns false where there is no such file */
function link(from: string, to: string): boolean {
  try {
    linkSync(from, to)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false
    throw error
  }
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
  return stageBytes(staging, Buffer.from(text))
}

/** Writes a small document into the staging folder. */
export function stageBytes(staging: Staging, bytes: Buffer): StagedBlob {
  const path = staging.path()
  writeFileSync(path, bytes, { flag: 'wx' })
  return { path, size: bytes.length, digest: `sha256:${createHash('sha256').update(bytes).digest('hex')}` }
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
