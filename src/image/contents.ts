import { basename } from 'node:path'
import { badArchive, printable, tooLarge } from './archive-error.js'
import type { Archive, StagedBlob } from './archive.js'
import {
  isIndexType,
  parseConfig,
  parseIndex,
  parseManifest,
  parseSavedImages,
  type Descriptor,
  type ParsedConfig,
} from './document.js'
import type { ImageLimits } from './limits.js'
import { canonicalName, isDigest, parseReference } from './reference.js'

/** The platform whose images run here. */
export const PLATFORM = { os: 'linux', architecture: 'amd64' } as const
/** Whether images of a platform, as a client words it, are those that run here. */
export const isOwnPlatform = (text: string | undefined): boolean =>
  /^(linux|amd64|linux\/(amd64|x86_64))?$/.test(text ?? '')

const PLATFORM_NAME = `${PLATFORM.os}/${PLATFORM.architecture}`
const INDEX_DEPTH = 4

/** An image in an archive, all its documents checked; its layers are still blobs. */
export interface FoundImage {
  readonly config: ParsedConfig
  readonly configBlob: StagedBlob
  /** Undefined in a docker-archive, which has none. */
  readonly manifestBlob: StagedBlob | undefined
  /** As many as the config's diffIds, in the same order. */
  readonly layers: readonly StagedBlob[]
  /** Complete names. */
  readonly names: readonly string[]
}

/**
 * Finds the images for this platform in an archive.
 * @throws CoracleError IMAGE_ARCHIVE, IMAGE_TOO_LARGE
 */
export async function findImages(archive: Archive, limits: ImageLimits): Promise<FoundImage[]> {
  const finder = new Finder(archive, limits)
  const saved = archive.find('manifest.json')
  const index = archive.find('index.json')
  if (saved) await finder.savedImages(saved)
  else if (index) await finder.layout(index)
  else if (archive.find('repositories'))
    throw badArchive(
      'repositories',
      'the archive is of a Docker before 1.10: save the image again with a newer one',
    )
  else throw badArchive('archive', 'neither manifest.json (docker save) nor index.json (OCI layout) is in it')
  if (finder.images.length === 0)
    throw badArchive(
      'archive',
      finder.passed.size > 0
        ? `no image for ${PLATFORM_NAME} is in it, but for ${[...finder.passed].slice(0, 8).map(printable).join(', ')}`
        : 'no image is in it',
    )
  return finder.images
}

class Finder {
  readonly images: FoundImage[] = []
  /** Platforms of images that were passed over. */
  readonly passed = new Set<string>()
  readonly #archive: Archive
  readonly #limits: ImageLimits

  constructor(archive: Archive, limits: ImageLimits) {
    this.#archive = archive
    this.#limits = limits
  }

  async savedImages(file: StagedBlob): Promise<void> {
    for (const image of parseSavedImages(await this.#read(file, 'manifest.json'))) {
      const layers = image.Layers.map((path) => this.#named(path))
      await this.#take({
        configBlob: this.#named(image.Config),
        manifestBlob: undefined,
        layers,
        names: image.RepoTags.map((tag) => canonicalName(reference(tag, 'manifest.json'))),
        where: image.Config,
      })
    }
  }

  async layout(file: StagedBlob): Promise<void> {
    for (const descriptor of parseIndex(await this.#read(file, 'index.json'), 'index.json'))
      await this.#descend(descriptor, namesOf(descriptor), 0)
  }

  /** @returns whether it gave an image for this platform */
  async #descend(descriptor: Descriptor, names: string[], depth: number): Promise<boolean> {
    const { platform } = descriptor
    if (platform && (platform.os !== PLATFORM.os || platform.architecture !== PLATFORM.architecture)) {
      this.passed.add(`${platform.os}/${platform.architecture}`)
      return false
    }
    const where = `blob ${descriptor.digest}`
    const bytes = await this.#read(this.#blob(descriptor, 'the index'), where)
    if (isIndexType(descriptor.mediaType)) {
      if (depth === INDEX_DEPTH) throw badArchive(where, 'its indexes are nested too deeply')
      // One image of a list is for this platform; the best come first.
      for (const entry of parseIndex(bytes, where))
        if (await this.#descend(entry, names, depth + 1)) return true
      return false
    }
    const manifest = parseManifest(bytes, where)
    return this.#take({
      configBlob: this.#blob(manifest.config, where),
      manifestBlob: this.#blob(descriptor, 'the index'),
      layers: () => manifest.layers.map((layer) => this.#blob(layer, where)),
      names: names.flatMap((name) => [
        name,
        canonicalName({ ...parseReference(name), digest: descriptor.digest }),
      ]),
      where,
    })
  }

  async #take(found: {
    configBlob: StagedBlob
    manifestBlob: StagedBlob | undefined
    layers: StagedBlob[] | (() => StagedBlob[])
    names: string[]
    where: string
  }): Promise<boolean> {
    const { configBlob, manifestBlob, names, where } = found
    const config = parseConfig(await this.#read(configBlob, `config ${configBlob.digest}`), where)
    if (config.os !== PLATFORM.os || config.architecture !== PLATFORM.architecture) {
      this.passed.add(`${config.os}/${config.architecture}`)
      return false
    }
    // Only now: an archive of several platforms may hold the layers of one.
    const layers = typeof found.layers === 'function' ? found.layers() : found.layers
    if (layers.length !== config.diffIds.length)
      throw badArchive(where, `${layers.length} layers, but the config tells of ${config.diffIds.length}`)
    if (layers.length > this.#limits.layers)
      throw tooLarge(where, `${layers.length} layers, at most ${this.#limits.layers} are accepted`)
    this.images.push({ config, configBlob, manifestBlob, layers, names })
    return true
  }

  async #read(file: StagedBlob, name: string): Promise<Buffer> {
    return this.#archive.read(file, name, this.#limits.document)
  }

  /** A file whose name may be its digest (`<hex>.json`, `blobs/sha256/<hex>`), which then must be true. */
  #named(path: string): StagedBlob {
    const file = this.#archive.get(path, 'manifest.json')
    const claimed = `sha256:${basename(path, '.json')}`
    const isClaim = isDigest(claimed) && (path.endsWith('.json') || path.startsWith('blobs/'))
    if (isClaim && file.digest !== claimed) throw badArchive(path, `its content is another, ${file.digest}`)
    return file
  }

  #blob(descriptor: Descriptor, neededBy: string): StagedBlob {
    const { digest, size } = descriptor
    const file = this.#archive.get(`blobs/sha256/${digest.slice('sha256:'.length)}`, neededBy)
    if (file.size !== size)
      throw badArchive(`blob ${digest}`, `${file.size} bytes, but ${neededBy} says ${size}`)
    if (file.digest !== digest) throw badArchive(`blob ${digest}`, `its content is another, ${file.digest}`)
    return file
  }
}

/**
 * The names that an index gives an image. `org.opencontainers.image.ref.name` is often no more than a tag, which
 * without a repository names nothing.
 */
function namesOf(descriptor: Descriptor): string[] {
  const full = descriptor.annotations['io.containerd.image.name']
  const name = descriptor.annotations['org.opencontainers.image.ref.name']
  const text = full ?? (name && /[:/]/.test(name) ? name : undefined)
  return text === undefined ? [] : [canonicalName(reference(text, 'index.json'))]
}

function reference(text: string, where: string): ReturnType<typeof parseReference> {
  try {
    return parseReference(text)
  } catch (error) {
    throw badArchive(where, (error as Error).message, { cause: error })
  }
}
