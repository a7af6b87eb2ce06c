import { CoracleError } from '../errors.js'
import { bytesOf } from '../size.js'

/**
 * Bytes from `512m`, `1.5g`, `1048576`.
 * @param option the option it was given to, for the message
 * @throws CoracleError USAGE
 */
export function parseSize(text: string, option: string): number {
  const bytes = bytesOf(text)
  if (bytes !== undefined) return bytes
  throw new CoracleError(
    'USAGE',
    `${option}: invalid size '${text}': use a number with b, k, m or g behind it`,
  )
}

/** Bytes in words, in powers of 1024 as Docker shows memory. */
export function showBinarySize(bytes: number): string {
  let value = bytes
  let unit = 0
  for (; value >= 1024 && unit < 4; unit++) value /= 1024
  return `${unit === 0 ? value : Number(value.toPrecision(4))}${['B', 'KiB', 'MiB', 'GiB', 'TiB'][unit]}`
}

/** Bytes in words, in powers of a thousand as Docker shows sizes. */
export function showSize(bytes: number): string {
  let value = bytes
  let unit = 0
  for (; value >= 1000 && unit < 4; unit++) value /= 1000
  return `${unit === 0 || value >= 100 ? Math.round(value) : Number(value.toPrecision(3))}${['B', 'kB', 'MB', 'GB', 'TB'][unit]}`
}
