import { createHash } from 'node:crypto'
import { createWriteStream } from 'node:fs'
import { Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { CoracleError } from '../errors.js'
import { PLATFORM } from './contents.js'
import type { StagedBlob } from './archive.js'
import { parseConfig } from './document.js'
import type { Image } from './image.js'
import { stageBytes, type Intake } from './intake.js'
import type { ImageStore } from './store.js'

/** One line of an image's history (OCI image-spec config.md, `history`). */
export interface HistoryEntry {
  /** RFC 3339. */
  readonly created: string
  readonly created_by: string
  readonly comment?: string
  readonly author?: string
  /** No layer belongs to it. */
  readonly empty_layer?: boolean
}

/** An image's `config` as it stands in its document: with what the store makes no use of. */
export type RawConfig = Record<string, unknown>

/** What becomes a new image. */
export interface Composition {
  /** The image below; undefined for none. */
  readonly base: Image | undefined
  /** A layer's tar, plain. */
  readonly layer?: AsyncIterable<Uint8Array>
  /** In place of the base's. */
  readonly config: RawConfig
  /** The lines that are added, in their order; a layer belongs to the last. */
  readonly history: readonly [...HistoryEntry[], HistoryEntry]
  readonly author?: string
  /** Complete names. */
  readonly names?: readonly string[]
  readonly signal?: AbortSignal | undefined
}

/**
 * Makes an image of another one, a layer and a configuration, and takes it into the store.
 * @throws CoracleError IMAGE_ARCHIVE for what is no layer, IMAGE_TOO_LARGE
 */
export async function composeImage(store: ImageStore, composition: Composition): Promise<Image> {
  const { base, layer, config, history, author, names = [], signal } = composition
  return store.take(async (intake) => {
    const below = base ? baseOf(store, intake, base) : { layers: [], diffIds: [], history: [] }
    const layers = [...below.layers]
    const diffIds = [...below.diffIds]
    if (layer) {
      const blob = await stageLayer(intake, layer)
      signal?.throwIfAborted()
      layers.push(blob)
      diffIds.push(blob.digest)
    }
    for (const [i, diffId] of diffIds.entries()) await intake.convert(diffId, layers[i]!, signal)
    const document = Buffer.from(
      JSON.stringify({
        ...PLATFORM,
        created: history.at(-1)!.created,
        ...(author === undefined ? {} : { author }),
        config,
        rootfs: { type: 'layers', diff_ids: diffIds },
        history: [
          ...below.history,
          ...history.map((line, i) =>
            layer && i === history.length - 1 ? line : { ...line, empty_layer: true },
          ),
        ],
      }),
    )
    const configBlob = stageBytes(intake.staging, document)
    const found = {
      config: parseConfig(document, 'config'),
      configBlob,
      manifestBlob: undefined,
      layers,
      names,
    }
    const [image] = await intake.commit([found], signal)
    return image!
  })
}

/** The base's blobs, held for as long as the intake lasts, and its history. */
function baseOf(
  store: ImageStore,
  intake: Intake,
  base: Image,
): { layers: StagedBlob[]; diffIds: string[]; history: unknown[] } {
  const document = store.config(base) as { rootfs: { diff_ids: string[] }; history?: unknown[] }
  const layers = store.layerBlobs(base).map((digest) => {
    const blob = intake.borrow(digest)
    if (blob) return blob
    throw new CoracleError('NO_SUCH_IMAGE', `image ${base.id} was removed meanwhile`)
  })
  return { layers, diffIds: document.rootfs.diff_ids, history: document.history ?? [] }
}

/** Writes a plain tar into the staging folder: its digest is its diffID. */
async function stageLayer(intake: Intake, layer: AsyncIterable<Uint8Array>): Promise<StagedBlob> {
  const path = intake.staging.path()
  const hash = createHash('sha256')
  let size = 0
  const count = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      size += chunk.length
      if (size > intake.limits.bytes)
        return done(
          new CoracleError('IMAGE_TOO_LARGE', `a layer is larger than ${intake.limits.bytes} bytes`),
        )
      hash.update(chunk)
      done(null, chunk)
    },
  })
  await pipeline(layer, count, createWriteStream(path, { flags: 'wx' }))
  return { path, size, digest: `sha256:${hash.digest('hex')}` }
}
