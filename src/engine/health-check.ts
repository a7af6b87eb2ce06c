import { CoracleError } from '../errors.js'
import type { ImageHealthcheck } from '../image/image.js'

/** How it is found out whether a container does its work. Times are milliseconds; each has Docker's default. */
export interface HealthCheck {
  /** The command, as `CMD`, words; `CMD-SHELL`, a text for the shell; or `NONE`. */
  readonly test: readonly string[]
  /** Between the end of one check and the next. */
  readonly interval: number
  /** A check that takes longer has failed. */
  readonly timeout: number
  /** Failures in this time after the start do not count, until a check succeeds. */
  readonly startPeriod: number
  /** In place of `interval`, in that time. */
  readonly startInterval: number
  /** So many failures in a row make it unhealthy. */
  readonly retries: number
}

const SECOND = 1000
const DEFAULTS = { interval: 30 * SECOND, timeout: 30 * SECOND, startInterval: 5 * SECOND, retries: 3 }
const NANOSECONDS = 1e6
const KINDS: readonly string[] = ['NONE', 'CMD', 'CMD-SHELL']

/**
 * A container's check: its own, what that leaves out by the image's, else by the defaults.
 * @param own, image in Docker's form, with times in nanoseconds; zero and empty are as absent
 * @returns undefined where there is none
 * @throws CoracleError INVALID_ARGUMENT
 */
export function settleHealthCheck(
  own: ImageHealthcheck | undefined,
  image: ImageHealthcheck | undefined,
): HealthCheck | undefined {
  for (const check of [own, image]) refuse(check)
  const test = own?.Test?.length ? own.Test : image?.Test
  if (!test?.length || test[0] === 'NONE') return undefined
  const time = (name: 'Interval' | 'Timeout' | 'StartPeriod' | 'StartInterval'): number =>
    (own?.[name] || image?.[name] || 0) / NANOSECONDS
  return {
    test,
    interval: time('Interval') || DEFAULTS.interval,
    timeout: time('Timeout') || DEFAULTS.timeout,
    startPeriod: time('StartPeriod'),
    startInterval: time('StartInterval') || DEFAULTS.startInterval,
    retries: own?.Retries || image?.Retries || DEFAULTS.retries,
  }
}

function refuse(check: ImageHealthcheck | undefined): void {
  if (!check) return
  const bad = (message: string): never => {
    throw new CoracleError('INVALID_ARGUMENT', message)
  }
  const [kind, ...words] = check.Test ?? []
  if (kind !== undefined && !KINDS.includes(kind))
    bad(`Unknown healthcheck type '${kind.slice(0, 64)}': it is ${KINDS.join(', ')}`)
  if (kind !== undefined && kind !== 'NONE' && (words[0] ?? '') === '')
    bad('a health check without a command')
  if (words.some((word) => word.includes('\0'))) bad('the command of a health check holds a NUL')
  for (const name of ['Interval', 'Timeout', 'StartPeriod', 'StartInterval'] as const) {
    const value = check[name] ?? 0
    if (value !== 0 && !(value >= NANOSECONDS)) bad(`${name} in Healthcheck cannot be less than 1ms`)
  }
  if (!((check.Retries ?? 0) >= 0)) bad('Retries in Healthcheck cannot be negative')
}

/** The check in Docker's form. */
export function showHealthCheck(check: HealthCheck): Required<ImageHealthcheck> {
  return {
    Test: [...check.test],
    Interval: check.interval * NANOSECONDS,
    Timeout: check.timeout * NANOSECONDS,
    StartPeriod: check.startPeriod * NANOSECONDS,
    StartInterval: check.startInterval * NANOSECONDS,
    Retries: check.retries,
  }
}
