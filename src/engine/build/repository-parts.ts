import { posix } from 'node:path'
import { CoracleError } from '../../errors.js'
import { type BuildContext, type ContextEntry, MAX_BYTES, MAX_ENTRIES } from './context.js'
import type { Submodule } from './submodules.js'

/** Of one repository: all of them, and those within each other. */
const MAX_SUBMODULES = 256
const MAX_DEPTH = 16

/** The files of a repository and of its submodules: one bound for all of them together. */
export class RepositoryParts implements Disposable {
  readonly entries: ContextEntry[] = []
  readonly #parts: BuildContext[] = []
  readonly #origins = new Map<ContextEntry, BuildContext>()
  #submodules = 0
  /** Bytes that may still come. */
  room = MAX_BYTES

  /** Takes a part over. @param at its folder; empty for the whole @throws CoracleError IMAGE_TOO_LARGE */
  add(at: string, part: BuildContext): void {
    this.#parts.push(part)
    this.room -= part.length
    for (const found of part.below('')) {
      const entry = { ...found, name: posix.join(at, found.name) }
      this.entries.push(entry)
      this.#origins.set(entry, part)
    }
    if (this.entries.length > MAX_ENTRIES)
      throw new CoracleError('IMAGE_TOO_LARGE', `the repository has more than ${MAX_ENTRIES} files`)
  }

  /** Counts a submodule. @param depth of what it is in @throws CoracleError IMAGE_TOO_LARGE */
  enter({ path }: Submodule, depth: number): void {
    const refuse = (why: string): never => {
      throw new CoracleError('IMAGE_TOO_LARGE', `the submodule ${path.slice(0, 128)}: ${why}`)
    }
    if (depth >= MAX_DEPTH) refuse(`it is within ${MAX_DEPTH} others`)
    if (++this.#submodules > MAX_SUBMODULES) refuse(`there are more than ${MAX_SUBMODULES}`)
  }

  content(entry: ContextEntry): Iterable<Buffer> {
    return this.#origins.get(entry)!.content(entry)
  }

  [Symbol.dispose](): void {
    for (const part of this.#parts.splice(0)) part[Symbol.dispose]()
  }
}
