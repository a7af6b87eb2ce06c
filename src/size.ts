const UNITS = 'bkmgt'

/**
 * Bytes from `512m`, `1.5g`, `10 MiB`, `1048576`.
 * @param kilo what one k is: 1024, or 1000 where Docker counts so (log files)
 * @returns undefined for what is no size, or no whole number above zero
 */
export function bytesOf(text: string, kilo: 1024 | 1000 = 1024): number | undefined {
  const [, number, unit = ''] = /^(\d{1,16}(?:\.\d{1,9})?) ?([bkmgt]?)(?:i?b)?$/i.exec(text.trim()) ?? []
  const bytes = Math.floor(Number(number) * kilo ** UNITS.indexOf(unit.toLowerCase() || 'b'))
  return bytes > 0 && Number.isSafeInteger(bytes) ? bytes : undefined
}
