import { mkdirSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { REPLACING, replaceFile } from '../durable.js'

const NAME = /^([0-9a-f]{64})\.json$/

/** A folder of records, `<id>.json` each. Written whole or not at all. */
export class JsonFolder<T extends { readonly version: 1 }> {
  readonly #folder: string

  constructor(folder: string) {
    this.#folder = folder
    mkdirSync(folder, { recursive: true, mode: 0o700 })
  }

  /** Whether crashes left something of records that were being written. */
  get isTorn(): boolean {
    return readdirSync(this.#folder).some((name) => name.endsWith(REPLACING))
  }

  /** Removes that. For who holds the lock under which records are written. */
  sweep(): void {
    for (const name of readdirSync(this.#folder))
      if (name.endsWith(REPLACING)) rmSync(join(this.#folder, name), { force: true })
  }

  ids(): string[] {
    return readdirSync(this.#folder).flatMap((name) => NAME.exec(name)?.[1] ?? [])
  }

  /** In no order. One that cannot be read (it is of another version, say) is left out. */
  list(): T[] {
    return this.ids().flatMap((id) => this.read(id) ?? [])
  }

  read(id: string): T | undefined {
    try {
      const record = JSON.parse(readFileSync(this.#path(id), 'utf8')) as T
      return record.version === 1 ? record : undefined
    } catch (error) {
      if (error instanceof SyntaxError || (error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw error
    }
  }

  write(id: string, record: T): void {
    replaceFile(this.#path(id), JSON.stringify(record))
  }

  remove(id: string): void {
    rmSync(this.#path(id), { force: true })
  }

  #path(id: string): string {
    return join(this.#folder, `${id}.json`)
  }
}
