import { patternOf } from '../engine/build/match.js'

/**
 * The rules of a .dockerignore (Dockerfile reference, ".dockerignore files"): the last one that matches a path, or a
 * folder above it, decides.
 */
export class DockerIgnore {
  readonly #rules: { expression: RegExp; excludes: boolean }[]
  readonly #hasExceptions: boolean

  constructor(text: string) {
    this.#rules = text
      .replace(/^\uFEFF/, '')
      .split(/\r?\n/)
      .filter((line) => !line.startsWith('#'))
      .map((line) => line.trim())
      .filter((line) => line !== '' && line !== '!')
      .map((line) => {
        const excludes = !line.startsWith('!')
        const path = (excludes ? line : line.slice(1).trim())
          .split('/')
          .filter((part) => part !== '' && part !== '.')
          .join('/')
        return { expression: patternOf(path, true), excludes }
      })
    this.#hasExceptions = this.#rules.some(({ excludes }) => !excludes)
  }

  /** Whether a path, relative to the context, is left out. */
  excludes(path: string): boolean {
    const parts = path.split('/')
    const above = parts.map((_, i) => parts.slice(0, i + 1).join('/'))
    let excluded = false
    for (const { expression, excludes } of this.#rules)
      if (above.some((each) => expression.test(each))) excluded = excludes
    return excluded
  }

  /** Whether nothing below a left out folder can come back. */
  get isFinal(): boolean {
    return !this.#hasExceptions
  }
}
