import { readFile } from 'node:fs/promises'
import { parseManifest } from '../document.js'
import type { Loan } from '../store.js'
import { Slots, together } from '../together.js'
import { splitRepository } from './config.js'
import type { Repository } from './repository.js'

/** Blobs sent side by side. */
const UPLOADS = 4

/** What a push is doing with one of the image's layers. */
export interface PushProgress {
  /** Digest of the layer's blob. */
  readonly layer: string
  readonly phase: 'wait' | 'exists' | 'upload' | 'mounted' | 'done'
  readonly current?: number
  readonly total?: number
  /** The repository that had it. */
  readonly from?: string
}

/** What a registry has after a push. */
export interface Pushed {
  readonly digest: string
  /** Bytes of the manifest. */
  readonly size: number
}

/**
 * Sends an image: first its blobs, those alone that the registry has not, then its manifest under each tag.
 * @param domain the registry's name in references
 * @throws CoracleError REGISTRY_DENIED, REGISTRY_FAILED
 */
export async function pushImage(
  loan: Loan,
  repository: Repository,
  domain: string,
  tags: readonly string[],
  onProgress: (progress: PushProgress) => void,
  signal?: AbortSignal,
): Promise<Pushed> {
  const bytes = await readFile(loan.manifest.path)
  const manifest = parseManifest(bytes, `manifest ${loan.manifest.digest}`)
  const layers = [...new Set(manifest.layers.map(({ digest }) => digest))]
  for (const layer of layers) onProgress({ layer, phase: 'wait' })
  const slots = new Slots(UPLOADS)
  const send = async (digest: string, either: AbortSignal): Promise<void> => {
    const report = (progress: Omit<PushProgress, 'layer'>): void => {
      if (digest !== manifest.config.digest) onProgress({ layer: digest, ...progress })
    }
    if (await repository.has(digest, either)) return report({ phase: 'exists' })
    const blob = loan.blobs.get(digest)!
    const others = loan
      .repositories(digest)
      .map(splitRepository)
      .filter((other) => other.domain === domain && other.path !== repository.endpoint.repository)
      .map(({ path }) => path)
    const { mountedFrom } = await repository.upload(
      blob,
      others,
      (current) => report({ phase: 'upload', current, total: blob.size }),
      either,
    )
    report(mountedFrom === undefined ? { phase: 'done' } : { phase: 'mounted', from: mountedFrom })
  }
  await together(
    [...layers, manifest.config.digest].map(
      (digest) => (either: AbortSignal) =>
        slots.run(async () => {
          either.throwIfAborted()
          await send(digest, either)
        }),
    ),
    signal,
  )
  const { mediaType } = JSON.parse(bytes.toString('utf8')) as { mediaType?: unknown }
  const type = typeof mediaType === 'string' ? mediaType : 'application/vnd.oci.image.manifest.v1+json'
  for (const tag of tags) await repository.putManifest(tag, bytes, type, signal)
  return { digest: loan.manifest.digest, size: bytes.length }
}
