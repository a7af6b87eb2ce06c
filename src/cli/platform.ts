import { CoracleError } from '../errors.js'

/** The option of all that takes images: there is one platform here. */
export const PLATFORM = {
  type: 'string',
  requiresArg: true,
  describe: 'linux/amd64 is what runs here',
} as const

/**
 * `OS/ARCHITECTURE[/VARIANT]` as those parts of the API have it that want OCI's platform as JSON.
 * @returns undefined where none is given
 * @throws CoracleError USAGE
 */
export function platformQuery(text: string | undefined): string | undefined {
  if (text === undefined) return undefined
  const [, os, architecture, variant] = /^([\w.-]+)\/([\w.-]+)(?:\/([\w.-]+))?$/.exec(text) ?? []
  if (os === undefined)
    throw new CoracleError('USAGE', `--platform is OS/ARCHITECTURE, such as linux/amd64, not '${text}'`)
  return JSON.stringify({ os, architecture, ...(variant !== undefined && { variant }) })
}
