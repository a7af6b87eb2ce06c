import { CoracleError } from '../../errors.js'

/** Bytes in a state. */
export function saveBytes(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('base64')
}

/**
 * Reads a saved state. It comes from a file that anybody may have edited, so nothing is taken for what it should be:
 * every method checks, and throws {@link CoracleError} SNAPSHOT_INVALID with the place in the state.
 */
export class Saved {
  readonly #value: unknown
  readonly #path: string

  /** @param value parsed JSON @param path for messages */
  constructor(value: unknown, path = 'state') {
    this.#value = value
    this.#path = path
  }

  /** A member of an object. */
  get(name: string): Saved {
    const value = this.#value
    if (typeof value !== 'object' || value === null || Array.isArray(value)) return this.#fail('no object')
    return new Saved(
      Object.hasOwn(value, name) ? (value as Record<string, unknown>)[name] : undefined,
      `${this.#path}.${name}`,
    )
  }

  /** The items of a list. @param count how many there must be, or at most are with `upTo` */
  list(count: number, upTo = false): Saved[] {
    const value = this.#value
    if (!Array.isArray(value)) return this.#fail('no list')
    if (upTo ? value.length > count : value.length !== count)
      return this.#fail(`${value.length} items in place of ${count}`)
    return value.map((each: unknown, i) => new Saved(each, `${this.#path}[${i}]`))
  }

  /** A whole number from 0 to `max`. */
  number(max = Number.MAX_SAFE_INTEGER): number {
    const value = this.#value
    if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 && value <= max) return value
    return this.#fail(`no number up to ${max}`)
  }

  /** A u64, which is saved as decimal digits. */
  u64(): bigint {
    const value = this.#value
    if (typeof value !== 'string' || !/^\d{1,20}$/.test(value)) return this.#fail('no u64')
    const number = BigInt(value)
    return number < 1n << 64n ? number : this.#fail('no u64')
  }

  boolean(): boolean {
    return typeof this.#value === 'boolean' ? this.#value : this.#fail('neither true nor false')
  }

  string(longest = 4096): string {
    const value = this.#value
    return typeof value === 'string' && value.length <= longest ? value : this.#fail('no text')
  }

  /** Of {@link saveBytes}; `size` bytes, or what there is up to `max`. */
  bytes(size: number | { readonly max: number }): Uint8Array {
    const bytes = Buffer.from(this.string(2 ** 26), 'base64')
    const fits = typeof size === 'number' ? bytes.length === size : bytes.length <= size.max
    return fits ? new Uint8Array(bytes) : this.#fail(`${bytes.length} bytes`)
  }

  /** Undefined for null. */
  optional(): Saved | undefined {
    return this.#value === null ? undefined : this
  }

  /** As it is, for a device's own {@link VirtioDevice.restore}. */
  get raw(): unknown {
    return this.#value
  }

  /** @throws CoracleError SNAPSHOT_INVALID */
  #fail(what: string): never {
    throw new CoracleError('SNAPSHOT_INVALID', `the snapshot is damaged: ${this.#path} is ${what}`)
  }
}
