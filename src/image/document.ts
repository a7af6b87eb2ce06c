import { badArchive } from './archive-error.js'
import type { ImageRuntimeConfig } from './image.js'
import { isDigest } from './reference.js'

/*
 * The JSON documents of an image, checked by hand: OCI image-spec 1.1 (image-index.md, manifest.md, config.md) and the
 * manifest.json of `docker save`. What is not understood is left alone, as the specification wants.
 */

type Json = Record<string, unknown>

const isObject = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
const isText = (value: unknown): value is string => typeof value === 'string'
const isTexts = (value: unknown): value is string[] => Array.isArray(value) && value.every(isText)

/** @param where the document's name, for errors */
function parse(bytes: Buffer, where: string): unknown {
  try {
    return JSON.parse(bytes.toString('utf8')) as unknown
  } catch (error) {
    throw badArchive(where, 'it is no JSON', { cause: error })
  }
}

export interface Platform {
  readonly architecture: string
  readonly os: string
}

/** OCI content descriptor. */
export interface Descriptor {
  readonly mediaType: string
  readonly digest: string
  readonly size: number
  readonly platform?: Platform
  readonly annotations: Readonly<Record<string, string>>
}

const INDEX_TYPES = [
  'application/vnd.oci.image.index.v1+json',
  'application/vnd.docker.distribution.manifest.list.v2+json',
]

export const isIndexType = (mediaType: string): boolean => INDEX_TYPES.includes(mediaType)

function descriptor(value: unknown, where: string): Descriptor {
  if (!isObject(value)) throw badArchive(where, 'a descriptor that is no object')
  const { digest, size, mediaType, platform, annotations } = value
  if (!isDigest(digest))
    throw badArchive(
      where,
      `a descriptor without a sha256 digest (it says ${JSON.stringify(digest)?.slice(0, 80)})`,
    )
  if (!Number.isSafeInteger(size) || (size as number) < 0)
    throw badArchive(where, `no valid size for ${digest}`)
  return {
    digest,
    size: size as number,
    mediaType: isText(mediaType) ? mediaType : '',
    ...(isObject(platform) && isText(platform['architecture']) && isText(platform['os'])
      ? { platform: { architecture: platform['architecture'], os: platform['os'] } }
      : {}),
    annotations: isObject(annotations)
      ? Object.fromEntries(
          Object.entries(annotations).filter((pair): pair is [string, string] => isText(pair[1])),
        )
      : {},
  }
}

/** The descriptors of an image index (or Docker's manifest list). @throws CoracleError IMAGE_ARCHIVE */
export function parseIndex(bytes: Buffer, where: string): Descriptor[] {
  const value = parse(bytes, where)
  if (!isObject(value) || value['schemaVersion'] !== 2 || !Array.isArray(value['manifests']))
    throw badArchive(where, 'it is no image index (schemaVersion 2 with manifests)')
  return value['manifests'].map((entry) => descriptor(entry, where))
}

export interface Manifest {
  readonly config: Descriptor
  readonly layers: readonly Descriptor[]
}

/** @throws CoracleError IMAGE_ARCHIVE */
export function parseManifest(bytes: Buffer, where: string): Manifest {
  const value = parse(bytes, where)
  if (!isObject(value) || value['schemaVersion'] !== 2 || !Array.isArray(value['layers']))
    throw badArchive(where, 'it is no image manifest (schemaVersion 2 with layers)')
  return {
    config: descriptor(value['config'], where),
    layers: value['layers'].map((entry) => descriptor(entry, where)),
  }
}

/** One image of `docker save`'s manifest.json. Config and Layers are paths in the archive. */
export interface SavedImage {
  readonly Config: string
  readonly RepoTags: readonly string[]
  readonly Layers: readonly string[]
}

/** @throws CoracleError IMAGE_ARCHIVE */
export function parseSavedImages(bytes: Buffer): SavedImage[] {
  const where = 'manifest.json'
  const value = parse(bytes, where)
  if (!Array.isArray(value) || value.length === 0) throw badArchive(where, 'it is no list of images')
  return value.map((entry: unknown) => {
    if (!isObject(entry) || !isText(entry['Config']) || !isTexts(entry['Layers']))
      throw badArchive(where, 'an image without Config and Layers')
    const tags = entry['RepoTags'] ?? []
    if (!isTexts(tags)) throw badArchive(where, 'RepoTags is no list of names')
    return { Config: entry['Config'], RepoTags: tags, Layers: entry['Layers'] }
  })
}

/** What the engine needs of an image's config. */
export interface ParsedConfig {
  readonly architecture: string
  readonly os: string
  readonly created: string
  readonly config: ImageRuntimeConfig
  readonly diffIds: readonly string[]
}

/** @throws CoracleError IMAGE_ARCHIVE */
export function parseConfig(bytes: Buffer, where: string): ParsedConfig {
  const value = parse(bytes, where)
  if (!isObject(value)) throw badArchive(where, 'it is no image config')
  const { architecture, os, created, rootfs, config } = value
  if (!isText(architecture) || !isText(os)) throw badArchive(where, 'the config names no architecture and os')
  if (!isObject(rootfs) || rootfs['type'] !== 'layers' || !Array.isArray(rootfs['diff_ids']))
    throw badArchive(where, 'the config has no rootfs of layers')
  const diffIds: unknown[] = rootfs['diff_ids']
  if (!diffIds.every(isDigest)) throw badArchive(where, 'a diff_id that is no sha256 digest')
  return {
    architecture,
    os,
    created: isText(created) && !Number.isNaN(Date.parse(created)) ? created : '1970-01-01T00:00:00Z',
    config: runtimeConfig(config ?? {}, where),
    diffIds,
  }
}

function runtimeConfig(value: unknown, where: string): ImageRuntimeConfig {
  if (!isObject(value)) throw badArchive(where, 'its config part is no object')
  const take = (key: keyof ImageRuntimeConfig, what: string, valid: (field: unknown) => boolean): Json => {
    const field = value[key]
    if (field === undefined || field === null) return {}
    if (!valid(field)) throw badArchive(where, `${key} is not ${what}`)
    return { [key]: field }
  }
  const command = (field: unknown): boolean => isTexts(field) && !field.some((text) => text.includes('\0'))
  const keys = (field: unknown): boolean => isObject(field) && Object.values(field).every(isObject)
  return {
    ...take('User', 'a text', isText),
    ...take('Env', 'a list of texts', command),
    ...take('Entrypoint', 'a list of texts', command),
    ...take('Cmd', 'a list of texts', command),
    ...take('WorkingDir', 'a text', isText),
    ...take('Labels', 'an object of texts', (field) => isObject(field) && Object.values(field).every(isText)),
    ...take('StopSignal', 'a text', isText),
    ...take('ExposedPorts', 'an object', keys),
    ...take('Volumes', 'an object', keys),
    ...take('Healthcheck', 'a health check', isHealthcheck),
  }
}

const HEALTH_NUMBERS = ['Interval', 'Timeout', 'StartPeriod', 'StartInterval', 'Retries'] as const

function isHealthcheck(field: unknown): boolean {
  if (!isObject(field)) return false
  const { Test: test = [] } = field
  return (
    isTexts(test ?? []) &&
    HEALTH_NUMBERS.every((name) => field[name] === undefined || Number.isSafeInteger(field[name]))
  )
}
