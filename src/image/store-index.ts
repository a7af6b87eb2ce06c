import { readFileSync, statSync } from 'node:fs'
import { CoracleError } from '../errors.js'
import { replaceFile } from '../durable.js'
import type { ImageRuntimeConfig } from './image.js'
import type { LayerFile } from './layer.js'

/** A layer of an image: its root layer and the digest of the blob that it came from. */
export interface LayerRecord extends LayerFile {
  readonly diffId: string
  readonly blob: string
}

/** What the store writes down of an image. */
export interface ImageRecord {
  /** Digest of the config blob. */
  readonly id: string
  /** Digest of the manifest blob. */
  readonly manifest: string
  readonly architecture: string
  readonly os: string
  readonly created: string
  readonly config: ImageRuntimeConfig
  /** Every blob that the image needs, config and manifest among them. */
  readonly blobs: readonly string[]
  /** All the layers of the config, lowest first. */
  readonly layers: readonly LayerRecord[]
}

/** All records and names, in one file, so that a change of both is one rename. */
export interface IndexContent {
  readonly version: 1
  readonly images: Record<string, ImageRecord>
  /** Image ids by complete name (see canonicalName). */
  readonly names: Record<string, string>
}

/** The file `index.json` of the store. Other processes change it too. */
export class StoreIndex {
  readonly #path: string
  #cached: { stamp: string; content: IndexContent } | undefined

  constructor(path: string) {
    this.#path = path
  }

  /** The content as it is now; not to be changed. @throws CoracleError INTERNAL for a damaged file */
  read(): IndexContent {
    const stat = statSync(this.#path, { bigint: true, throwIfNoEntry: false })
    if (!stat) return { version: 1, images: {}, names: {} }
    // Every change is a new file, so these tell any two contents apart.
    const stamp = `${stat.ino}:${stat.ctimeNs}:${stat.size}`
    if (this.#cached?.stamp === stamp) return this.#cached.content
    const content = parse(readFileSync(this.#path, 'utf8'), this.#path)
    this.#cached = { stamp, content }
    return content
  }

  /** The caller holds the store's lock, and has read since. */
  write(content: IndexContent): void {
    replaceFile(this.#path, `${JSON.stringify(content)}\n`, 0o644)
  }
}

function parse(text: string, path: string): IndexContent {
  let value: Partial<IndexContent> | null = null
  try {
    value = JSON.parse(text) as Partial<IndexContent> | null
  } catch {
    // Said below, as for any other content that is not ours.
  }
  if (value?.version !== 1 || typeof value.images !== 'object' || typeof value.names !== 'object')
    throw new CoracleError(
      'INTERNAL',
      `the list of images ${path} is damaged or of another version: move its folder away, and load the images again`,
    )
  return value as IndexContent
}
