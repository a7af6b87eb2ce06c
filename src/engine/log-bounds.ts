import { CoracleError } from '../errors.js'
import type { LogBounds } from '../isolation/sandbox.js'
import { bytesOf } from '../size.js'

/** A log driver and its options, in Docker's words. */
export interface LogRequest {
  /** `json-file` or `none`; empty for the default, which is the first. */
  readonly driver: string
  readonly options: Readonly<Record<string, string>>
}

/** Every file is open while the container runs. */
const MAX_FILES = 100

const invalid = (message: string): CoracleError => new CoracleError('INVALID_ARGUMENT', message)

/**
 * What is kept of a container's output.
 * @returns undefined for all of it
 * @throws CoracleError INVALID_ARGUMENT for a driver or an option that is not known
 */
export function logBounds({ driver, options }: LogRequest): LogBounds | undefined {
  const known = driver === 'none' ? [] : ['max-size', 'max-file', 'mode', 'compress']
  if (!['', 'json-file', 'none'].includes(driver))
    throw invalid(`logger: no log driver named '${driver.slice(0, 64)}' is registered: use json-file or none`)
  const other = Object.keys(options).find((name) => !known.includes(name))
  if (other !== undefined)
    throw invalid(
      `unknown log opt '${other.slice(0, 64)}' for ${driver || 'json-file'} log driver${driver === 'none' ? '' : ': it has max-size and max-file'}`,
    )
  if (driver === 'none') return { files: 0 }
  const { mode = 'blocking', compress = 'false', 'max-size': size = '-1', 'max-file': count = '1' } = options
  if (mode !== 'blocking') throw invalid(`log opt mode is 'blocking' here, not '${mode.slice(0, 64)}'`)
  if (compress !== 'false') throw invalid(`log opt compress is 'false' here, not '${compress.slice(0, 64)}'`)
  const files = /^\d{1,3}$/.test(count) ? Number(count) : 0
  if (files < 1 || files > MAX_FILES)
    throw invalid(`log opt max-file is a number from 1 to ${MAX_FILES}, not '${count.slice(0, 64)}'`)
  if (size === '-1') {
    if (files > 1) throw invalid('log opt max-file needs max-size: without that a file is never full')
    return undefined
  }
  const maxSize = bytesOf(size, 1000)
  if (maxSize === undefined)
    throw invalid(`log opt max-size is a number of bytes, such as 10m, not '${size.slice(0, 64)}'`)
  return { files, maxSize }
}
