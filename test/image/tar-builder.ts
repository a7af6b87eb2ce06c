import { createHash } from 'node:crypto'

/*
 * Tars made by hand, byte by byte, so that tests can make what no sane program writes. Names are strings of bytes, one
 * a character.
 */

export interface Raw {
  name: string
  /** The type flag. @default '0' */
  flag?: string
  mode?: number
  uid?: number
  gid?: number
  /** What the header says. @default the content's length */
  size?: number
  mtime?: number
  link?: string
  major?: number
  minor?: number
  content?: Buffer | string
  /** PAX records of an extended header before the entry. */
  pax?: [string, Buffer | string][]
  /** Change the header before its checksum is made. */
  change?: (header: Buffer) => void
  magic?: string
}

const bytes = (value: Buffer | string): Buffer =>
  typeof value === 'string' ? Buffer.from(value, 'latin1') : value

const padded = (content: Buffer): Buffer =>
  Buffer.concat([content, Buffer.alloc((512 - (content.length % 512)) % 512)])

/** Octal where it fits, else GNU's base-256. */
function number(block: Buffer, value: number, at: number, length: number): void {
  if (value >= 0 && value < 8 ** (length - 1)) {
    block.write(value.toString(8).padStart(length - 1, '0'), at, 'latin1')
    return
  }
  let rest = BigInt.asUintN(length * 8 - 1, BigInt(value))
  for (let i = length - 1; i >= 0; i--) {
    block[at + i] = Number(rest & 0xffn)
    rest >>= 8n
  }
  block[at]! |= 0x80
}

export function header(raw: Raw): Buffer {
  const block = Buffer.alloc(512)
  block.write(raw.name.slice(0, 100), 0, 'latin1')
  number(block, raw.mode ?? 0o644, 100, 8)
  number(block, raw.uid ?? 0, 108, 8)
  number(block, raw.gid ?? 0, 116, 8)
  number(block, raw.size ?? bytes(raw.content ?? '').length, 124, 12)
  number(block, raw.mtime ?? 0, 136, 12)
  block.write(raw.flag ?? '0', 156, 'latin1')
  block.write((raw.link ?? '').slice(0, 100), 157, 'latin1')
  block.write(raw.magic ?? 'ustar\x0000', 257, 'latin1')
  number(block, raw.major ?? 0, 329, 8)
  number(block, raw.minor ?? 0, 337, 8)
  raw.change?.(block)
  block.fill(' ', 148, 156)
  const sum = block.reduce((total, byte) => total + byte, 0)
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return block
}

export function paxRecord(key: string, value: Buffer | string): Buffer {
  const rest = Buffer.concat([bytes(` ${key}=`), bytes(value), bytes('\n')])
  let length = rest.length + 1
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length
  return Buffer.concat([bytes(String(length)), rest])
}

export function entry(raw: Raw): Buffer {
  const pax = [...(raw.pax ?? [])]
  if (raw.name.length > 100) pax.push(['path', raw.name])
  if ((raw.link ?? '').length > 100) pax.push(['linkpath', raw.link!])
  const records = Buffer.concat(pax.map(([key, value]) => paxRecord(key, value)))
  return Buffer.concat([
    ...(pax.length > 0 ? [header({ name: 'pax', flag: 'x', content: records }), padded(records)] : []),
    header(raw),
    padded(bytes(raw.content ?? '')),
  ])
}

export const tar = (...entries: (Raw | Buffer)[]): Buffer =>
  Buffer.concat([...entries.map((item) => (Buffer.isBuffer(item) ? item : entry(item))), Buffer.alloc(1024)])

export const sha256 = (data: Uint8Array): string =>
  `sha256:${createHash('sha256').update(data).digest('hex')}`

/** Hands the buffer out in pieces. */
export async function* stream(data: Buffer, piece = 65536): AsyncGenerator<Buffer> {
  for (let at = 0; at < data.length; at += piece) yield data.subarray(at, at + piece)
}
