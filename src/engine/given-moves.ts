import { readFileSync } from 'node:fs'
import { replaceFile } from '../durable.js'

/** As many are remembered: who asks is whoever lost its connection over the move. */
const MOST = 1000

/** A container that another daemon has. */
export interface GivenMove {
  readonly move: string
  readonly container: string
}

/** Which containers were given away, in one file that is replaced as a whole. Nothing is remembered between calls. */
export class GivenMoves {
  readonly #path: string

  constructor(path: string) {
    this.#path = path
  }

  /** It is on the disk when this returns. Under the lock of the containers. */
  add(given: GivenMove): void {
    replaceFile(this.#path, JSON.stringify([...this.#read(), given].slice(-MOST)))
  }

  has(move: string): boolean {
    return this.#read().some((each) => each.move === move)
  }

  /** The ids of the containers. */
  containers(): Set<string> {
    return new Set(this.#read().map(({ container }) => container))
  }

  #read(): readonly GivenMove[] {
    try {
      return JSON.parse(readFileSync(this.#path, 'utf8')) as GivenMove[]
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
      throw error
    }
  }
}
