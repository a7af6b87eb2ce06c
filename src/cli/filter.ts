import { CoracleError } from '../errors.js'

/** `--filter`, for the help of commands that have it. */
export const filterOption = (describe: string) =>
  ({ type: 'string', array: true, requiresArg: true, describe }) as const

/**
 * `--filter NAME=VALUE…` as the API has it.
 * @returns undefined for none
 * @throws CoracleError USAGE
 */
export function filterQuery(filters: readonly string[]): string | undefined {
  if (filters.length === 0) return undefined
  const all: Record<string, Record<string, true>> = {}
  for (const filter of filters) {
    const at = filter.indexOf('=')
    if (at < 1) throw new CoracleError('USAGE', `bad filter '${filter}': it is NAME=VALUE`)
    // `label!=x` is the filter `label!`.
    ;(all[filter.slice(0, at)] ??= {})[filter.slice(at + 1)] = true
  }
  return JSON.stringify(all)
}
