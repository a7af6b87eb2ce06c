import { CoracleError, type ErrorCode } from '../../errors.js'
import { printable } from '../archive-error.js'

/** What a registry does wrong, or cannot do. @param where the registry's or the image's name */
export const registryError = (
  where: string,
  why: string,
  code: ErrorCode = 'REGISTRY_FAILED',
  options?: ErrorOptions,
): CoracleError => new CoracleError(code, `${printable(where)}: ${why}`, options)

/** A failure that may not happen again: the connection broke, or the registry said "later". */
export class Transient extends Error {
  override readonly name = 'Transient'
  constructor(
    message: string,
    /** Milliseconds that the registry asks to wait. */
    readonly retryAfter?: number,
    options?: ErrorOptions,
  ) {
    super(message, options)
  }
}

/** How long a registry may take, and how often it is asked again. */
export interface Patience {
  /** Milliseconds in which at least a byte must move. */
  readonly stall: number
  /** Tries of one request without progress between them. */
  readonly attempts: number
  /** Milliseconds before the second try; they double with each further one. */
  readonly backoff: number
  /** Milliseconds to wait at most, also where the registry asks for more. */
  readonly longest: number
}

export const DEFAULT_PATIENCE: Patience = { stall: 30_000, attempts: 5, backoff: 500, longest: 60_000 }

/** Waits as long as it is sensible before the next try. */
export class Retry {
  readonly #patience: Patience
  readonly #where: string
  #failures = 0

  constructor(patience: Patience, where: string) {
    this.#patience = patience
    this.#where = where
  }

  /** There was progress: failures are counted from the start again. */
  reset(): void {
    this.#failures = 0
  }

  /**
   * Waits before the next try.
   * @throws `error` where it is final; CoracleError REGISTRY_FAILED when there were enough tries
   */
  async pause(error: unknown, signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted()
    if (!(error instanceof Transient)) throw error
    const { attempts, backoff, longest } = this.#patience
    const { retryAfter } = error
    if (retryAfter !== undefined && retryAfter > longest)
      throw registryError(
        this.#where,
        `${error.message}; it asks to come back in ${Math.ceil(retryAfter / 1000)} s`,
        'REGISTRY_FAILED',
        { cause: error },
      )
    if (++this.#failures >= attempts)
      throw registryError(this.#where, `${error.message} (tried ${attempts} times)`, 'REGISTRY_FAILED', {
        cause: error,
      })
    const wait = Math.min(longest, backoff * 2 ** (this.#failures - 1)) * (0.75 + Math.random() / 2)
    await sleep(Math.max(retryAfter ?? 0, wait), signal)
  }
}

/** @throws the signal's reason */
function sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => {
      clearTimeout(timer)
      reject(signal!.reason as Error)
    }
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', onAbort)
      resolve()
    }, ms)
    signal?.addEventListener('abort', onAbort, { once: true })
  })
}

/** Milliseconds that a Retry-After header asks for (RFC 9110 §10.2.3): seconds or a date. */
export function retryAfter(header: string | undefined, now = Date.now()): number | undefined {
  if (header === undefined) return undefined
  if (/^\d{1,9}$/.test(header)) return Number(header) * 1000
  const date = /^[A-Z][a-z]+, .{1,40} GMT$/.test(header) ? Date.parse(header) : NaN
  return Number.isNaN(date) ? undefined : Math.max(0, date - now)
}
