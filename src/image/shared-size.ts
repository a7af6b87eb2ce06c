import type { Image } from './image.js'

/** By image id, the bytes of its layers that another of these images has too. */
export function sharedSizes(images: readonly Image[]): Map<string, number> {
  const users = new Map<string, number>()
  for (const { layers } of images)
    for (const { diffId } of layers) users.set(diffId, (users.get(diffId) ?? 0) + 1)
  return new Map(
    images.map(({ id, layers }) => [
      id,
      layers.reduce((sum, { diffId, used }) => sum + (users.get(diffId)! > 1 ? used : 0), 0),
    ]),
  )
}

/** Bytes of all the layers of these images, each once. */
export function layersSize(images: readonly Image[]): number {
  const layers = new Map(images.flatMap((image) => image.layers.map(({ diffId, used }) => [diffId, used])))
  return [...layers.values()].reduce((sum, size) => sum + size, 0)
}
