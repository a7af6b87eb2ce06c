import { createReadStream } from 'node:fs'
import { familiarName } from './reference.js'
import type { Loan } from './store.js'
import { OWN_ENTRY, TAR_END, tarHeader, tarPadding } from './tar-writer.js'

/** What is written of one image. */
export interface SavedImageRequest {
  readonly loan: Loan
  /** Complete names that the archive gives it. */
  readonly names: readonly string[]
}

/**
 * An archive of images that `load` and Docker take: an OCI layout (image-spec image-layout.md) with the manifest.json of
 * `docker save` beside it. Blobs that images share are in it once.
 */
export async function* saveImages(images: readonly SavedImageRequest[]): AsyncGenerator<Buffer> {
  const written = new Set<string>()
  const path = (digest: string): string => `blobs/sha256/${digest.replace('sha256:', '')}`
  const saved: object[] = []
  const manifests: object[] = []
  for (const { loan, names } of images) {
    for (const { digest, size, path: file } of loan.blobs.values()) {
      if (written.has(digest)) continue
      written.add(digest)
      yield header(path(digest), size)
      for await (const chunk of createReadStream(file)) yield chunk as Buffer
      yield tarPadding(size)
    }
    const manifest = JSON.parse(await text(loan.manifest.path)) as {
      mediaType: string
      layers: { digest: string }[]
    }
    saved.push({
      Config: path(loan.id),
      RepoTags: names.map(familiarName),
      Layers: manifest.layers.map(({ digest }) => path(digest)),
    })
    const { digest, size } = loan.manifest
    const descriptor = { mediaType: manifest.mediaType, digest, size }
    if (names.length === 0) manifests.push(descriptor)
    for (const name of names)
      manifests.push({
        ...descriptor,
        annotations: {
          'io.containerd.image.name': name,
          'org.opencontainers.image.ref.name': name.slice(name.lastIndexOf(':') + 1),
        },
      })
  }
  yield* document('oci-layout', { imageLayoutVersion: '1.0.0' })
  yield* document('index.json', {
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.index.v1+json',
    manifests,
  })
  yield* document('manifest.json', saved)
  yield TAR_END
}

function* document(name: string, value: object): Generator<Buffer> {
  const bytes = Buffer.from(JSON.stringify(value))
  yield header(name, bytes.length)
  yield bytes
  yield tarPadding(bytes.length)
}

const header = (name: string, size: number): Buffer => tarHeader({ ...OWN_ENTRY, name, size })

async function text(path: string): Promise<string> {
  const chunks: Buffer[] = []
  for await (const chunk of createReadStream(path)) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks).toString('utf8')
}
