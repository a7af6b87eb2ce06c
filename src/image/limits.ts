/** What an archive may cost at most. A stranger made it, and a few kilobytes can inflate without end. */
export interface ImageLimits {
  /** Bytes of the archive as read after its own decompression, and again of all layers unpacked. */
  readonly bytes: number
  /** Entries of one layer, or of the archive. */
  readonly entries: number
  /** Bytes of names, link targets and extended attributes of one layer: what is held in memory. */
  readonly metadata: number
  /** Bytes of a manifest, an index or a config. */
  readonly document: number
  /** Layers of one image. */
  readonly layers: number
}

export const DEFAULT_LIMITS: ImageLimits = {
  bytes: 64 * 2 ** 30,
  entries: 1_000_000,
  metadata: 256 * 2 ** 20,
  document: 4 * 2 ** 20,
  layers: 127,
}
