import { badArchive } from './archive-error.js'

/** A PAX extended header's records. GNU's sparse format 0.0 repeats keys: `GNU.sparse.pairs` collects those. */
export type PaxRecords = Map<string, Buffer>

const XATTR = 'SCHILY.xattr.'

/**
 * Parses `length key=value\n` records (POSIX.1-2001 pax(1), "pax Extended Header").
 * @throws CoracleError IMAGE_ARCHIVE
 */
export function parsePax(bytes: Buffer, name: string): PaxRecords {
  const records: PaxRecords = new Map()
  const pairs: string[] = []
  for (let at = 0; at < bytes.length;) {
    const space = bytes.indexOf(0x20, at)
    const digits = space < 0 || space - at > 8 ? '' : bytes.toString('latin1', at, space)
    const length = /^[1-9][0-9]*$/.test(digits) ? Number(digits) : 0
    const end = at + length
    const equals = bytes.indexOf(0x3d, space + 1)
    if (length === 0 || end > bytes.length || bytes[end - 1] !== 0x0a || equals < 0 || equals >= end)
      throw badArchive(name, 'its extended header is damaged')
    const key = bytes.toString('latin1', space + 1, equals)
    const value = Buffer.from(bytes.subarray(equals + 1, end - 1))
    if (key === 'GNU.sparse.offset' || key === 'GNU.sparse.numbytes') pairs.push(value.toString('latin1'))
    // An empty value takes an earlier record back.
    else if (value.length === 0 && !key.startsWith(XATTR)) records.delete(key)
    else records.set(key, value)
    at = end
  }
  if (pairs.length > 0) records.set('GNU.sparse.map', Buffer.from(pairs.join(',')))
  return records
}

/** A record that is a whole number, undefined where there is none. @throws CoracleError IMAGE_ARCHIVE */
export function paxNumber(pax: PaxRecords | undefined, key: string, name: string): number | undefined {
  const text = pax?.get(key)?.toString('latin1')
  if (text === undefined) return undefined
  const value = /^[0-9]{1,16}$/.test(text) ? Number(text) : NaN
  if (!Number.isSafeInteger(value)) throw badArchive(name, `its ${key} is no number`)
  return value
}

/** A time in decimal seconds with a fraction, which may be negative. */
export function parseTime(
  record: Buffer | undefined,
  name: string,
): { seconds: number; nanoseconds: number } | undefined {
  if (record === undefined) return undefined
  const match = /^(-?)(\d{1,12})(?:\.(\d*))?$/.exec(record.toString('latin1'))
  if (!match) throw badArchive(name, 'its mtime is no number')
  const fraction = Number((match[3] ?? '').padEnd(9, '0').slice(0, 9))
  const whole = Number(match[2])
  if (match[1] === '') return { seconds: whole, nanoseconds: fraction }
  return fraction === 0
    ? { seconds: -whole, nanoseconds: 0 }
    : { seconds: -whole - 1, nanoseconds: 1e9 - fraction }
}

/** The extended attributes by name, values as they are: they may be binary. */
export function parseXattrs(pax: PaxRecords | undefined): Map<string, Buffer> | undefined {
  if (!pax) return undefined
  let xattrs: Map<string, Buffer> | undefined
  for (const [key, value] of pax)
    if (key.startsWith(XATTR)) (xattrs ??= new Map<string, Buffer>()).set(key.slice(XATTR.length), value)
  return xattrs
}
