import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { replaceFile } from '../../durable.js'

/** Steps that are remembered at most; the oldest go first. */
const MAX_STEPS = 2000

/**
 * Which image a build's step came to: by what it started from and what it did. A file in the state folder, replaced as
 * a whole; of two builds that end at once one's steps may be forgotten, which costs time and nothing else.
 */
export class BuildCache {
  readonly #path: string

  constructor(state: string) {
    this.#path = join(state, 'build-cache.json')
  }

  /** The key of a step. @param parts JSON values */
  static key(...parts: readonly unknown[]): string {
    return createHash('sha256').update(JSON.stringify(parts)).digest('hex')
  }

  get(key: string): string | undefined {
    const steps = this.#read()
    return Object.hasOwn(steps, key) ? steps[key] : undefined
  }

  put(key: string, image: string): void {
    const steps = { ...this.#read(), [key]: image }
    const kept = Object.entries(steps).slice(-MAX_STEPS)
    replaceFile(this.#path, JSON.stringify(Object.fromEntries(kept)))
  }

  /** The ids of the images that steps came to. */
  images(): Set<string> {
    return new Set(Object.values(this.#read()))
  }

  /** Forgets the steps that came to certain images. */
  forget(image: (id: string) => boolean): void {
    const kept = Object.entries(this.#read()).filter(([, id]) => !image(id))
    replaceFile(this.#path, JSON.stringify(Object.fromEntries(kept)))
  }

  #read(): Record<string, string> {
    try {
      return JSON.parse(readFileSync(this.#path, 'utf8')) as Record<string, string>
    } catch {
      return {}
    }
  }
}
