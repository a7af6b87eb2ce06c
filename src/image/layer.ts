import { createHash } from 'node:crypto'
import { open } from 'node:fs/promises'
import { badArchive, tooLarge } from './archive-error.js'
import { decompress } from './decompress.js'
import { EROFS_BLOCK, EROFS_GRANULE, erofsLabel, ErofsWriter } from './erofs.js'
import type { Inode } from './inode.js'
import type { ImageLimits } from './limits.js'
import { TarReader, type TarEntry, type TarHandler } from './tar.js'
import { LayerTree } from './tree.js'

/** The first part of an image's label: its number changes when the same layer would give other bytes. */
const FORMAT = 'coracle1'

/** What there is to know of a root layer's file. It is written in the file's own label. */
export interface LayerFile {
  /** Length in bytes, a multiple of 2 MiB. */
  readonly size: number
  /** Bytes in use. */
  readonly used: number
  /** The layer changes nothing. */
  readonly empty: boolean
  /** The layer hides all layers below it. */
  readonly opaque: boolean
}

/** Bytes that several layers may have together. */
export class Budget {
  #left: number
  constructor(readonly bytes: number) {
    this.#left = bytes
  }
  /** @throws CoracleError IMAGE_TOO_LARGE */
  take(bytes: number, where: string): void {
    this.#left -= bytes
    if (this.#left < 0) throw tooLarge(where, `it unpacks to more than ${this.bytes} bytes`)
  }
}

/** Takes a tar's entries into a tree and their contents into an image. */
class LayerBuilder implements TarHandler {
  readonly tree: LayerTree
  readonly #writer: ErofsWriter
  readonly #budget: Budget
  #entry = ''
  #file: Inode | undefined

  constructor(writer: ErofsWriter, budget: Budget, limits: ImageLimits) {
    this.tree = new LayerTree(limits)
    this.#writer = writer
    this.#budget = budget
  }

  entry(entry: TarEntry): void {
    this.#entry = entry.name
    this.#file = this.tree.add(entry)
    if (this.#file) this.#file.block = this.#writer.begin()
  }

  data(bytes: Buffer): void {
    if (this.#file) this.#writer.write(bytes)
  }

  hole(length: number): void {
    // What was stored was counted as it was read.
    this.#budget.take(length, this.#entry)
    if (this.#file) this.#writer.skip(length)
  }

  end(): void {
    if (this.#file) this.#writer.end()
    this.#file = undefined
  }
}

/** What {@link convertLayer} needs besides the layer's bytes. */
export interface LayerConversion {
  /** The file to write: made anew, synchronised when the promise resolves, removed by the caller on failure. */
  readonly path: string
  /** What the config says of the uncompressed bytes. */
  readonly diffId: string
  readonly budget: Budget
  readonly limits: ImageLimits
  readonly signal?: AbortSignal | undefined
}

/**
 * Makes a root layer of a layer's blob in one pass: decompresses, checks the digest, and writes every file's content
 * straight into an EROFS image. The same layer always gives the same bytes.
 * @param source the blob as it came: tar, plain or gzip or zstd
 * @throws CoracleError IMAGE_ARCHIVE, IMAGE_TOO_LARGE
 */
export async function convertLayer(
  source: AsyncIterable<Uint8Array>,
  conversion: LayerConversion,
): Promise<LayerFile> {
  const { diffId, budget, limits, signal } = conversion
  const name = `layer ${diffId}`
  const file = await open(conversion.path, 'wx', 0o444)
  try {
    const writer = new ErofsWriter(file.fd)
    const builder = new LayerBuilder(writer, budget, limits)
    const reader = new TarReader(builder, limits.entries)
    const hash = createHash('sha256')
    for await (const chunk of decompress(source, name)) {
      signal?.throwIfAborted()
      budget.take(chunk.length, name)
      hash.update(chunk)
      reader.write(chunk)
    }
    reader.end()
    const digest = hash.digest()
    if (`sha256:${digest.toString('hex')}` !== diffId)
      throw badArchive(name, `its content is another, sha256:${digest.toString('hex')}`)
    builder.tree.finish()
    const { empty, opaque } = builder.tree
    const label = `${FORMAT}${empty ? ',e' : ''}${opaque ? ',o' : ''}`
    const used = writer.finish(builder.tree.root, digest, label)
    const size = Math.ceil(used / EROFS_GRANULE) * EROFS_GRANULE
    await file.truncate(size)
    await file.sync()
    return { size, used, empty, opaque }
  } finally {
    await file.close()
  }
}

/** Reads back what {@link convertLayer} said; undefined for a file of another format. */
export async function readLayerFile(path: string): Promise<LayerFile | undefined> {
  const file = await open(path, 'r')
  try {
    const block = Buffer.alloc(EROFS_BLOCK)
    await file.read(block, 0, EROFS_BLOCK, 0)
    const flags = erofsLabel(block)?.split(',') ?? []
    if (flags[0] !== FORMAT) return undefined
    const { size } = await file.stat()
    const used = block.readUInt32LE(1024 + 36) * EROFS_BLOCK
    return { size, used, empty: flags.includes('e'), opaque: flags.includes('o') }
  } finally {
    await file.close()
  }
}
