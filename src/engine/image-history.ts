import type { HistoryEntry } from '../image/compose.js'
import type { Image } from '../image/image.js'
import type { ImageStore } from '../image/store.js'

/** One line of an image's history. */
export interface ImageHistory {
  /** The image's own id for its newest line; those below are not known by theirs. */
  readonly id: string | undefined
  /** RFC 3339. */
  readonly created: string
  readonly createdBy: string
  readonly comment: string
  readonly tags: readonly string[]
  /** Bytes of its layer, 0 where none belongs to it. */
  readonly size: number
}

/** The newest line first. */
export function historyOf(image: Image, images: Pick<ImageStore, 'config'>): ImageHistory[] {
  const document = images.config(image) as {
    history?: readonly Partial<HistoryEntry>[]
    rootfs?: { diff_ids?: readonly string[] }
  }
  const sizes = new Map(image.layers.map(({ diffId, used }) => [diffId, used]))
  const history = document.history ?? []
  const layers = [...(document.rootfs?.diff_ids ?? [])]
  // Layers that the history does not tell of lie below those it does: an image that was put together by hand.
  const untold = Math.max(0, layers.length - history.filter((line) => !line.empty_layer).length)
  const all = [...Array.from({ length: untold }, (): Partial<HistoryEntry> => ({})), ...history]
  const lines = all.map((line): Omit<ImageHistory, 'id' | 'tags'> => ({
    created: line.created ?? image.created,
    createdBy: line.created_by ?? '',
    comment: line.comment ?? '',
    size: line.empty_layer ? 0 : (sizes.get(layers.shift() ?? '') ?? 0),
  }))
  return lines
    .reverse()
    .map((line, i) => ({ ...line, id: i === 0 ? image.id : undefined, tags: i === 0 ? image.tags : [] }))
}
