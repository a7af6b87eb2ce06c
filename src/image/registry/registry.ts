import { CoracleError } from '../../errors.js'
import { isIndexType, parseConfig, parseIndex, parseManifest } from '../document.js'
import { DEFAULT_LIMITS } from '../limits.js'
import type { Image } from '../image.js'
import { canonicalName, familiarName, parseReference, type Reference } from '../reference.js'
import type { ImageStore } from '../store.js'
import type { RegistryAuth } from './auth.js'
import { HUB, endpointsOf, splitRepository, type Endpoint, type RegistryConfig } from './config.js'
import { DEFAULT_PATIENCE, type Patience } from './failure.js'
import { isOwnPlatform } from '../contents.js'
import { pullImage, resolveManifest, type PullProgress } from './pull.js'
import { pushImage, type PushProgress, type Pushed } from './push.js'
import { Repository, type RawManifest } from './repository.js'
import { type FoundImage, searchRegistry } from './search.js'
import { Transport } from './transport.js'

/** What all that goes to a registry takes. */
export interface RegistryOptions {
  readonly auth?: RegistryAuth
  readonly signal?: AbortSignal
}

export interface PullOptions extends RegistryOptions {
  /** `os/architecture`; empty for this host's. */
  readonly platform?: string
  readonly onProgress?: (progress: PullProgress) => void
  /** Called once the registry knows the image. */
  readonly onResolved?: () => void
}

/** What came of a pull. */
export interface Pulled {
  readonly image: Image
  /** Digest of the manifest or index that the reference named. */
  readonly digest: string
  /** The name stood for another image, or for none. */
  readonly changed: boolean
}

export interface PushOptions extends RegistryOptions {
  readonly onProgress?: (progress: PushProgress) => void
}

/** What a registry says of an image. */
export interface Distribution {
  readonly mediaType: string
  readonly digest: string
  readonly size: number
  readonly platforms: readonly { readonly os: string; readonly architecture: string }[]
}

/** Moves images between the store and registries. Each call speaks for one user alone: nothing is kept between. */
export class Registry {
  readonly #store: ImageStore
  readonly #config: () => RegistryConfig
  readonly #patience: Patience

  /** @param config read anew for each call */
  constructor(store: ImageStore, config: () => RegistryConfig, patience: Partial<Patience> = {}) {
    this.#store = store
    this.#config = config
    this.#patience = { ...DEFAULT_PATIENCE, ...patience }
  }

  /**
   * Fetches an image; what the store has of it is not fetched again.
   * @param name as the user writes it, with a tag or a digest, else `latest` is meant
   * @throws CoracleError INVALID_ARGUMENT, REGISTRY_NOT_FOUND, REGISTRY_DENIED, REGISTRY_FAILED, IMAGE_ARCHIVE,
   *   IMAGE_TOO_LARGE; the signal's reason
   */
  async pull(name: string, options: PullOptions = {}): Promise<Pulled> {
    const { signal, onProgress = () => undefined } = options
    const reference = parseReference(name)
    checkPlatform(options.platform)
    return this.#anywhere(reference, options, async (repository) => {
      const resolved = await resolveManifest(repository, reference, DEFAULT_LIMITS.document, signal)
      options.onResolved?.()
      const { top, manifest } = resolved
      const before = this.#known(canonicalName(reference))
      const byDigest = canonicalName({ repository: reference.repository, digest: top.digest })
      const names = [...new Set([canonicalName(reference), byDigest])]
      const image = await this.#store.take((intake) =>
        pullImage(intake, repository, manifest, names, onProgress, signal),
      )
      const same = before?.id === image.id && before.digests.includes(familiarName(byDigest))
      return { image, digest: top.digest, changed: !same }
    })
  }

  /** The tags of a repository. @throws CoracleError as {@link pull} */
  async tags(name: string, options: RegistryOptions = {}): Promise<string[]> {
    return this.#anywhere(parseReference(name), options, (repository) => repository.tags(options.signal))
  }

  /**
   * Sends the image of a name to that name's registry.
   * @throws CoracleError NO_SUCH_IMAGE, INVALID_ARGUMENT, REGISTRY_DENIED, REGISTRY_FAILED
   */
  async push(name: string, options: PushOptions = {}): Promise<Pushed> {
    const { signal, onProgress = () => undefined } = options
    const reference = parseReference(name)
    const { tag, repository: complete } = reference
    if (tag === undefined || reference.digest !== undefined)
      throw new CoracleError('INVALID_ARGUMENT', `cannot push ${name}: give a tag, no digest`)
    using loan = this.#store.lend(canonicalName(reference))
    return await this.#with(async (transport) => {
      // A push goes to the registry itself, which comes last.
      const endpoint = endpointsOf(complete, this.#config()).at(-1)!
      const repository = await this.#open(endpoint, transport, options)
      const { domain } = splitRepository(complete)
      return await pushImage(loan, repository, domain, [tag], onProgress, signal)
    })
  }

  /**
   * Shows credentials to a registry.
   * @param server `host[:port]`, also as an address; empty for Docker Hub
   * @throws CoracleError REGISTRY_DENIED, REGISTRY_FAILED, INVALID_ARGUMENT
   */
  async login(server: string, options: RegistryOptions): Promise<void> {
    const domain = serverName(server)
    await this.#with(async (transport) => {
      const endpoint = endpointsOf(`${domain}/login`, this.#config()).at(-1)!
      await (await this.#open(endpoint, transport, options)).login(options.signal)
    })
  }

  /** What the registry says of a name. @throws CoracleError as {@link pull} */
  async describe(name: string, options: RegistryOptions = {}): Promise<Distribution> {
    const reference = parseReference(name)
    const { signal } = options
    return this.#anywhere(reference, options, async (repository) => {
      const wanted = reference.digest ?? reference.tag ?? 'latest'
      const top = await repository.manifest(wanted, DEFAULT_LIMITS.document, signal)
      const { mediaType, digest, bytes } = top
      const described = { mediaType, digest, size: bytes.length }
      if (isIndexType(mediaType)) {
        const entries = parseIndex(bytes, `index ${digest}`)
        return { ...described, platforms: entries.flatMap(({ platform }) => (platform ? [platform] : [])) }
      }
      return { ...described, platforms: await this.#platformsOf(repository, top, signal) }
    })
  }

  /**
   * Images by a word, of the registry that it begins with or of Docker Hub.
   * @param limit 1 to 100
   * @throws CoracleError INVALID_ARGUMENT, REGISTRY_FAILED, NOT_IMPLEMENTED where the registry has no search
   */
  async search(term: string, limit: number, signal?: AbortSignal): Promise<FoundImage[]> {
    const [, server = '', words = term] = /^([^/]*[.:][^/]*|localhost)\/(.*)$/.exec(term) ?? []
    const domain = serverName(server)
    return this.#with((transport) => searchRegistry(transport, domain, words, limit, signal))
  }

  async #platformsOf(
    repository: Repository,
    manifest: RawManifest,
    signal: AbortSignal | undefined,
  ): Promise<Distribution['platforms']> {
    const { config } = parseManifest(manifest.bytes, `manifest ${manifest.digest}`)
    const bytes = await repository.smallBlob(config, DEFAULT_LIMITS.document, signal)
    const { os, architecture } = parseConfig(bytes, `config ${config.digest}`)
    return [{ os, architecture }]
  }

  #known(name: string): Image | undefined {
    try {
      return this.#store.get(name)
    } catch (error) {
      if (error instanceof CoracleError && error.code === 'NO_SUCH_IMAGE') return undefined
      throw error
    }
  }

  /** Tries a repository's endpoints: where a mirror fails, whatever the cause, the next one is asked. */
  async #anywhere<T>(
    { repository: complete }: Reference,
    options: RegistryOptions,
    work: (repository: Repository) => Promise<T>,
  ): Promise<T> {
    return this.#with(async (transport) => {
      for (const endpoint of endpointsOf(complete, this.#config())) {
        try {
          return await work(await this.#open(endpoint, transport, options))
        } catch (error) {
          if (!endpoint.mirror || options.signal?.aborted) throw error
        }
      }
      throw new CoracleError('INTERNAL', `${complete} has no endpoint`)
    })
  }

  #open(
    endpoint: Endpoint,
    transport: Transport,
    { auth = {}, signal }: RegistryOptions,
  ): Promise<Repository> {
    // The credentials are those for the registry; a mirror of it is somebody else.
    return Repository.open(endpoint, transport, endpoint.mirror ? {} : auth, this.#patience, signal)
  }

  async #with<T>(work: (transport: Transport) => Promise<T>): Promise<T> {
    const transport = new Transport(this.#config(), this.#patience)
    try {
      return await work(transport)
    } finally {
      transport.close()
    }
  }
}

/** A registry's name as it stands in references. @throws CoracleError INVALID_ARGUMENT */
export function serverName(server: string): string {
  const name = server
    .replace(/^https?:\/\//, '')
    .split('/', 1)[0]!
    .toLowerCase()
  if (['', 'docker.io', 'index.docker.io', 'registry-1.docker.io', 'registry.hub.docker.com'].includes(name))
    return HUB
  if (!/^(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::\d{1,5})?$/.test(name))
    throw new CoracleError('INVALID_ARGUMENT', `${JSON.stringify(server.slice(0, 256))} is no registry`)
  return name
}

/** @throws CoracleError INVALID_ARGUMENT for a platform that this host does not run */
function checkPlatform(platform: string | undefined): void {
  if (isOwnPlatform(platform)) return
  throw new CoracleError(
    'INVALID_ARGUMENT',
    `platform ${JSON.stringify(platform!.slice(0, 64))}: images for linux/amd64 run here, no others`,
  )
}
