const UNITS: readonly (readonly [seconds: number, name: string])[] = [
  [365 * 86_400, 'year'],
  [30 * 86_400, 'month'],
  [7 * 86_400, 'week'],
  [86_400, 'day'],
  [3600, 'hour'],
  [60, 'minute'],
  [1, 'second'],
]

/** The time since then in words. @param time seconds since 1970 */
export function ago(time: number): string {
  const seconds = Math.max(0, Date.now() / 1000 - time)
  for (const [length, name] of UNITS) {
    const count = Math.floor(seconds / length)
    if (count >= 1) return `${count} ${name}${count === 1 ? '' : 's'}`
  }
  return 'less than a second'
}

/** A time as Docker's lists have it: `2026-01-31 23:59:59 +0000 UTC`. @param time seconds since 1970 */
export const showTime = (time: number): string =>
  `${new Date(time * 1000).toISOString().slice(0, 19).replace('T', ' ')} +0000 UTC`
