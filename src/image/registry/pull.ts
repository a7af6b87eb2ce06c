import { readFile } from 'node:fs/promises'
import type { FoundImage } from '../contents.js'
import { PLATFORM } from '../contents.js'
import { tooLarge } from '../archive-error.js'
import { isIndexType, parseConfig, parseIndex, parseManifest, type Descriptor } from '../document.js'
import type { Image } from '../image.js'
import { stageBytes, type Intake } from '../intake.js'
import { canonicalName, type Reference } from '../reference.js'
import { Slots, together } from '../together.js'
import { registryError } from './failure.js'
import type { RawManifest, Repository } from './repository.js'

/** Blobs fetched side by side. */
const DOWNLOADS = 4
/** Indexes in indexes. */
const INDEX_DEPTH = 3
const PLATFORM_NAME = `${PLATFORM.os}/${PLATFORM.architecture}`
const SCHEMA_1 = 'application/vnd.docker.distribution.manifest.v1'

/** What a pull is doing with one of the image's layers. */
export interface PullProgress {
  /** Digest of the layer's blob. */
  readonly layer: string
  readonly phase: 'wait' | 'exists' | 'download' | 'downloaded' | 'convert' | 'done'
  /** Bytes so far and in all, of the blob. */
  readonly current?: number
  readonly total?: number
}

/** A reference, resolved: the manifest for this platform. */
export interface Resolved {
  /** What the reference names: the manifest, or an index that leads to it. */
  readonly top: RawManifest
  readonly manifest: RawManifest
}

/**
 * Asks a registry what a reference means.
 * @throws CoracleError REGISTRY_NOT_FOUND, REGISTRY_DENIED, REGISTRY_FAILED, IMAGE_ARCHIVE
 */
export async function resolveManifest(
  repository: Repository,
  reference: Reference,
  limit: number,
  signal?: AbortSignal,
): Promise<Resolved> {
  const top = await repository.manifest(reference.digest ?? reference.tag ?? 'latest', limit, signal)
  let manifest = top
  for (let depth = 0; isIndexType(typeOf(manifest)); depth++) {
    const where = `index ${manifest.digest}`
    if (depth === INDEX_DEPTH)
      throw registryError(repository.endpoint.host, 'its indexes are nested too deeply')
    const next = choose(parseIndex(manifest.bytes, where), reference)
    if (next.size > limit) throw tooLarge(`manifest ${next.digest}`, `${next.size} bytes`)
    manifest = await repository.manifest(next.digest, limit, signal)
    if (manifest.bytes.length !== next.size)
      throw registryError(where, `it gives another size for ${next.digest} than that has`)
  }
  if (typeOf(manifest).startsWith(SCHEMA_1))
    throw registryError(
      canonicalName(reference),
      'its manifest is of the old schema 1: push it again with a newer client',
    )
  return { top, manifest }
}

/** The document says itself what it is, or else its Content-Type does. */
function typeOf({ bytes, mediaType }: RawManifest): string {
  try {
    const value = JSON.parse(bytes.toString('utf8')) as { mediaType?: unknown } | null
    if (typeof value?.mediaType === 'string') return value.mediaType
  } catch {
    // Whoever parses it next says so.
  }
  return mediaType
}

/** The entry of an index for this platform. @throws CoracleError REGISTRY_NOT_FOUND */
function choose(entries: readonly Descriptor[], reference: Reference): Descriptor {
  const fits = entries.find(
    ({ platform }) => platform?.os === PLATFORM.os && platform.architecture === PLATFORM.architecture,
  )
  const chosen = fits ?? entries.find(({ platform }) => platform === undefined)
  if (chosen) return chosen
  const others = entries.flatMap(({ platform }) =>
    platform && platform.os !== 'unknown' ? [`${platform.os}/${platform.architecture}`] : [],
  )
  throw registryError(
    canonicalName(reference),
    `there is no image for ${PLATFORM_NAME}, but for ${[...new Set(others)].slice(0, 8).join(', ') || 'nothing'}`,
    'REGISTRY_NOT_FOUND',
  )
}

/**
 * Fetches the image of a manifest into the store: what the store has already is neither fetched nor converted.
 * @param names complete names that the image gets
 * @throws CoracleError REGISTRY_NOT_FOUND, REGISTRY_DENIED, REGISTRY_FAILED, IMAGE_ARCHIVE, IMAGE_TOO_LARGE
 */
export async function pullImage(
  intake: Intake,
  repository: Repository,
  raw: RawManifest,
  names: readonly string[],
  onProgress: (progress: PullProgress) => void,
  signal?: AbortSignal,
): Promise<Image> {
  const { limits, staging } = intake
  const where = `manifest ${raw.digest}`
  const manifest = parseManifest(raw.bytes, where)
  const { layers } = manifest
  if (layers.length > limits.layers)
    throw tooLarge(where, `${layers.length} layers, at most ${limits.layers} are accepted`)
  if (manifest.config.size > limits.document)
    throw tooLarge(`config ${manifest.config.digest}`, `${manifest.config.size} bytes`)
  const bytes = [...new Map(layers.map(({ digest, size }) => [digest, size])).values()]
  if (bytes.reduce((sum, size) => sum + size, 0) > limits.bytes)
    throw tooLarge(where, `its layers are more than ${limits.bytes} bytes`)

  const configBlob =
    intake.borrow(manifest.config.digest) ??
    (await repository.download(manifest.config, staging.path(), () => undefined, signal))
  const config = parseConfig(await readFile(configBlob.path), `config ${configBlob.digest}`)
  if (config.os !== PLATFORM.os || config.architecture !== PLATFORM.architecture)
    throw registryError(
      names[0] ?? where,
      `it is an image for ${config.os}/${config.architecture}, and ${PLATFORM_NAME} is needed`,
    )
  if (layers.length !== config.diffIds.length)
    throw registryError(where, `${layers.length} layers, but its config tells of ${config.diffIds.length}`)

  const slots = new Slots(DOWNLOADS)
  const work = new Map(
    layers.map((layer, i) => [
      `${layer.digest} ${config.diffIds[i]!}`,
      { layer, diffId: config.diffIds[i]! },
    ]),
  )
  const once = new Set<string>()
  for (const { digest } of layers) {
    if (!once.has(digest)) onProgress({ layer: digest, phase: 'wait' })
    once.add(digest)
  }
  const blobs = await together(
    [...work.values()].map(({ layer, diffId }) => async (either: AbortSignal) => {
      const { digest, size } = layer
      const report = (phase: PullProgress['phase'], current?: number): void =>
        onProgress({ layer: digest, phase, ...(current === undefined ? {} : { current, total: size }) })
      const known = intake.borrow(digest)
      const blob =
        known ??
        (await slots.run(async () => {
          either.throwIfAborted()
          return repository.download(layer, staging.path(), (have) => report('download', have), either)
        }))
      if (blob.size !== size) throw registryError(where, `a wrong size for ${digest}`)
      if (!known) report('downloaded')
      let converted = false
      await intake.convert(diffId, blob, either, (have) => {
        converted = true
        report('convert', have)
      })
      report(known && !converted ? 'exists' : 'done')
      return blob
    }),
    signal,
  )
  const byDigest = new Map(blobs.map((blob) => [blob.digest, blob]))
  const found: FoundImage = {
    config,
    configBlob,
    manifestBlob: stageBytes(staging, raw.bytes),
    layers: layers.map(({ digest }) => byDigest.get(digest)!),
    names,
  }
  const [image] = await intake.commit([found], signal)
  return image!
}
