import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import type { Image } from '../image/image.js'
import { parseReference } from '../image/reference.js'
import { splitRepository } from '../image/registry/config.js'
import { authFor } from '../image/registry/credentials.js'
import { Staging, sweepStaging } from '../image/staging.js'
import { Builder, type BuildRequest } from './build/builder.js'
import type { BuildCache } from './build/cache.js'
import { BuildCaches, type KeptCache } from './build/caches.js'
import { BuildContext } from './build/context.js'
import { type RunEngine, type RunStep, runStep } from './build/run-step.js'
import type { Events } from './events.js'
import type { Images, ImagesInit } from './images.js'

/** What builds stand on. */
export interface BuildsInit extends Pick<ImagesInit, 'registry' | 'buildCache' | 'events'> {
  readonly images: ImagesInit['images']
  /** The images as people have them. */
  readonly known: Images
  readonly engine: RunEngine
  /** Folder of what lasts, and one on a tmpfs. */
  readonly state: string
  readonly run: string
  /** Keeps everybody off who sweeps. */
  readonly lock: () => Promise<Disposable>
}

/** What a build left for others: the image of a step, or a cache of RUNs. */
export interface KeptOfBuild extends KeptCache {
  readonly kind: 'step' | 'cache'
}

/** Builds of images, and what lasts between them: steps, and the caches of RUNs. */
export class Builds {
  readonly #init: BuildsInit
  readonly #steps: BuildCache
  readonly #caches: BuildCaches
  readonly #events: Events
  readonly #scratch: string
  readonly #memory: string

  constructor(init: BuildsInit) {
    this.#init = init
    this.#steps = init.buildCache
    this.#events = init.events
    this.#caches = new BuildCaches(join(init.state, 'build-caches'))
    this.#scratch = join(init.state, 'builds')
    this.#memory = join(init.run, 'builds')
  }

  /** Removes what builds left whose process died. Under the lock. */
  sweep(): void {
    for (const folder of [this.#scratch, this.#memory]) {
      mkdirSync(folder, { recursive: true, mode: 0o700 })
      sweepStaging(folder)
    }
  }

  /**
   * Builds an image. @see Builder
   * @param context a tar from a client
   * @param say gets what a user reads
   */
  async build(
    request: BuildRequest,
    context: AsyncIterable<Uint8Array>,
    say: (text: string) => void,
    signal: AbortSignal,
  ): Promise<Image> {
    const { images, registry, engine } = this.#init
    const [scratch, memory] = await this.#stage()
    using _scratch = scratch
    using _memory = memory
    using read = await BuildContext.read(context, scratch.folder, { signal })
    const host = {
      images,
      cache: this.#steps,
      caches: this.#caches,
      scratch: scratch.folder,
      memory: memory.folder,
      pull: async (name: string) => {
        const { domain } = splitRepository(parseReference(name).repository)
        await registry.pull(name, { signal, auth: authFor(request.auths ?? {}, domain) })
      },
      run: (step: RunStep) =>
        runStep(engine, step, (layer) =>
          images.compose({ base: step.base, layer, config: step.config, history: step.history, signal }),
        ),
    }
    const image = await new Builder(host, request, read, say, signal).build()
    for (const name of request.tags) this.#events.emit('image', 'tag', image.id, { name })
    return image
  }

  async #stage(): Promise<readonly [Staging, Staging]> {
    using _lock = await this.#init.lock()
    return [new Staging(this.#scratch), new Staging(this.#memory)]
  }

  /** What builds left here for those to come. An image's bytes are of the layers that no other image before it has. */
  async kept(): Promise<KeptOfBuild[]> {
    const { known } = this.#init
    const images = known.list()
    const isStep = known.buildSteps()
    const seen = new Set(
      images.flatMap((image) => (isStep(image) ? [] : image.layers.map(({ diffId }) => diffId))),
    )
    const steps = images
      .filter(isStep)
      .reverse()
      .map(({ id, layers, created }): KeptOfBuild => {
        const own = layers.filter(({ diffId }) => !seen.has(diffId))
        for (const { diffId } of own) seen.add(diffId)
        const bytes = own.reduce((sum, { used }) => sum + used, 0)
        return {
          id,
          kind: 'step',
          description: known.history(id)[0]?.createdBy ?? '',
          bytes,
          created,
          inUse: false,
        }
      })
    return [...steps, ...(await this.#caches.list()).map((each) => ({ ...each, kind: 'cache' as const }))]
  }

  /**
   * Forgets the steps of builds, and removes the caches that no build uses now.
   * @param goes by when it was made (RFC 3339) @default all
   * @returns what went: ids of caches, and of images that were no more than a step; and their bytes
   */
  async prune(goes: (created: string) => boolean = () => true): Promise<{ ids: string[]; bytes: number }> {
    const { known } = this.#init
    const { ids, bytes } = await this.#caches.prune(goes)
    const stay = new Set(known.list().flatMap(({ id, created }) => (goes(created) ? [] : [id])))
    const isStep = known.buildSteps()
    this.#steps.forget((id) => !stay.has(id))
    const { removals, bytes: freed } = await known.prune((image) => isStep(image) && !stay.has(image.id))
    const deleted = removals.flatMap((removal) => ('Deleted' in removal ? [removal.Deleted] : []))
    return { ids: [...ids, ...deleted], bytes: bytes + freed }
  }
}
