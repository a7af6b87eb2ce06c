import { CoracleError } from '../errors.js'

/** An archive that is wrong. @param where the entry or blob, `why` in a few words */
export const badArchive = (where: string, why: string, options?: ErrorOptions): CoracleError =>
  new CoracleError('IMAGE_ARCHIVE', `cannot use the image archive: ${printable(where)}: ${why}`, options)

/** An archive beyond a limit. */
export const tooLarge = (where: string, why: string): CoracleError =>
  new CoracleError('IMAGE_TOO_LARGE', `the image is too large: ${printable(where)}: ${why}`)

/** Bytes of a stranger's name (one a character) as something safe and short to print in a line. */
export function printable(name: string): string {
  const text = Buffer.from(name, 'latin1').toString('utf8')
  // eslint-disable-next-line no-control-regex
  const clean = text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g, '?')
  return clean.length <= 200 ? clean : `${clean.slice(0, 120)}…${clean.slice(-60)}`
}
