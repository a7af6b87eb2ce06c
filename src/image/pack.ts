import { createHash } from 'node:crypto'
import { buffer } from 'node:stream/consumers'
import { pack, type Header } from 'tar-stream'
import { PLATFORM } from './contents.js'
import type { ImageRuntimeConfig } from './image.js'

/** One entry of a small archive that we make ourselves. */
export interface PackEntry extends Partial<Header> {
  readonly name: string
  readonly content?: Uint8Array | string
}

/** A tar of entries, held in memory. Owner root and time 0 unless an entry says otherwise: the same bytes every time. */
export async function packTar(entries: Iterable<PackEntry>): Promise<Buffer> {
  const tar = pack()
  const whole = buffer(tar)
  for (const { content, ...header } of entries) {
    const bytes = content === undefined ? undefined : Buffer.from(content as Uint8Array)
    const complete = { uid: 0, gid: 0, mtime: new Date(0), ...header }
    if (bytes && bytes.length > 0) tar.entry(complete, bytes)
    // An empty file waits for its end as any other; to the rest it means nothing.
    else tar.entry({ ...complete, size: 0 }).end(undefined)
  }
  tar.finalize()
  return whole
}

/** What becomes an image. */
export interface PackImage {
  /** Tars, plain, lowest first. */
  readonly layers: readonly Buffer[]
  readonly config: ImageRuntimeConfig
  /** RFC 3339. */
  readonly created: string
  /** The full name, such as `docker.io/library/busybox:latest`. */
  readonly name?: string
}

/** An OCI archive (image-spec image-layout.md, as a tar) of one image for this platform. */
export async function packImage(image: PackImage): Promise<Buffer> {
  const blobs = new Map<string, Uint8Array>()
  const put = (mediaType: string, bytes: Uint8Array): { mediaType: string; digest: string; size: number } => {
    const hex = createHash('sha256').update(bytes).digest('hex')
    blobs.set(`blobs/sha256/${hex}`, bytes)
    return {
      mediaType: `application/vnd.oci.image.${mediaType}`,
      digest: `sha256:${hex}`,
      size: bytes.length,
    }
  }
  const putJson = (mediaType: string, value: object): ReturnType<typeof put> =>
    put(mediaType, Buffer.from(JSON.stringify(value)))
  const layers = image.layers.map((layer) => put('layer.v1.tar', layer))
  const config = putJson('config.v1+json', {
    created: image.created,
    ...PLATFORM,
    config: image.config,
    rootfs: { type: 'layers', diff_ids: layers.map(({ digest }) => digest) },
  })
  const manifest = putJson('manifest.v1+json', {
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    config,
    layers,
  })
  const annotations =
    image.name === undefined ? {} : { annotations: { 'org.opencontainers.image.ref.name': image.name } }
  const index = { schemaVersion: 2, manifests: [{ ...manifest, platform: PLATFORM, ...annotations }] }
  return packTar([
    { name: 'oci-layout', content: JSON.stringify({ imageLayoutVersion: '1.0.0' }) },
    { name: 'index.json', content: JSON.stringify(index) },
    ...[...blobs].map(([name, content]) => ({ name, content })),
  ])
}
