import { badArchive, tooLarge } from './archive-error.js'
import { parsePax, paxNumber, parseTime, parseXattrs, type PaxRecords } from './pax.js'
import { SparseMap } from './sparse.js'
import { binary, octal } from './tar-number.js'

/*
 * A reader of tar streams: v7, ustar, PAX (POSIX.1-2001 pax(1)) and GNU (its manual, "Basic Tar Format"). It is fed
 * chunks and calls back at once; it keeps no more than one header. Names stay bytes (one a character), because an
 * archive may hold names in any encoding, and extended attributes hold binary values.
 */

const BLOCK = 512
/** PAX headers and GNU long names at most. */
const MAX_EXTENSION = 2 ** 20

export type TarType = 'file' | 'link' | 'symlink' | 'character' | 'block' | 'directory' | 'fifo'

/** One entry's header. Strings hold bytes, one a character. */
export interface TarEntry {
  readonly name: string
  readonly type: TarType
  /** Permission bits with setuid, setgid and sticky: 12 bits. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Bytes of content as unpacked; 0 for all but files. */
  readonly size: number
  /** Seconds, a whole number, and nanoseconds. */
  readonly mtime: number
  readonly mtimeNsec: number
  readonly linkName: string
  readonly major: number
  readonly minor: number
  readonly xattrs: ReadonlyMap<string, Buffer> | undefined
}

/** Who takes the entries. An error thrown ends the reading. */
export interface TarHandler {
  entry(entry: TarEntry): void
  /** Content of the entry begun last. The bytes are the caller's again afterwards. */
  data(bytes: Buffer): void
  /** So many zeros in the content (sparse files). */
  hole(length: number): void
  /** After a file's last content. Not called for other types. */
  end(): void
}

const TYPES = new Map<string, TarType>([
  ['0', 'file'],
  ['\0', 'file'],
  ['7', 'file'],
  ['S', 'file'],
  ['1', 'link'],
  ['2', 'symlink'],
  ['3', 'character'],
  ['4', 'block'],
  ['5', 'directory'],
  ['6', 'fifo'],
])

type State = 'header' | 'extension' | 'sparse-header' | 'sparse-map' | 'content' | 'done'

/** What a raw header says, before extensions apply. */
interface Header {
  name: string
  linkName: string
  flag: string
  mode: number
  uid: number
  gid: number
  size: number
  mtime: number
  major: number
  minor: number
  block: Buffer
}

/** Reads one tar stream: {@link write} each chunk, then {@link end}. Both throw what is wrong with the archive. */
export class TarReader {
  readonly #handler: TarHandler
  readonly #maxEntries: number
  #state: State = 'header'
  /** A block, or an extension, that came in parts. */
  #pending: Buffer[] = []
  #pendingLength = 0
  #needed = BLOCK
  /** Bytes of the entry's content in the archive that are still to come, and the padding behind. */
  #remaining = 0
  #padding = 0
  #header: Header | undefined
  #pax: PaxRecords | undefined
  #longName: string | undefined
  #longLink: string | undefined
  #sparse: SparseMap | undefined
  #entries = 0
  #name = 'its beginning'
  #zeroBlocks = 0

  constructor(handler: TarHandler, maxEntries: number) {
    this.#handler = handler
    this.#maxEntries = maxEntries
  }

  write(chunk: Buffer): void {
    let at = 0
    while (at < chunk.length && this.#state !== 'done') {
      if (this.#state === 'content') {
        if (this.#remaining > 0) {
          const length = Math.min(this.#remaining, chunk.length - at)
          const bytes = chunk.subarray(at, at + length)
          if (this.#sparse) this.#sparse.data(bytes, this.#handler)
          else this.#handler.data(bytes)
          this.#remaining -= length
          at += length
        } else {
          const length = Math.min(this.#padding, chunk.length - at)
          this.#padding -= length
          at += length
        }
        this.#contentEnds()
        continue
      }
      const length = Math.min(this.#needed - this.#pendingLength, chunk.length - at)
      const part = chunk.subarray(at, at + length)
      at += length
      if (this.#pendingLength === 0 && length === this.#needed) {
        this.#block(part)
      } else {
        this.#pending.push(Buffer.from(part))
        this.#pendingLength += length
        if (this.#pendingLength < this.#needed) continue
        const whole = Buffer.concat(this.#pending)
        this.#pending = []
        this.#pendingLength = 0
        this.#block(whole)
      }
    }
  }

  /** @throws CoracleError IMAGE_ARCHIVE where the stream ended inside an entry */
  end(): void {
    const between = this.#state === 'header' && this.#pendingLength === 0 && !this.#hasExtension
    if (this.#state !== 'done' && !between) throw badArchive(this.#name, 'the archive is cut off here')
  }

  get #hasExtension(): boolean {
    return this.#pax !== undefined || this.#longName !== undefined || this.#longLink !== undefined
  }

  #block(bytes: Buffer): void {
    switch (this.#state) {
      case 'header':
        return this.#onHeader(bytes)
      case 'extension':
        return this.#onExtension(bytes)
      case 'sparse-header': {
        const more = this.#sparse!.extend(bytes, 21, 0, this.#name)
        if (bytes[504] === 0 || !more) this.#begin()
        return
      }
      case 'sparse-map':
        this.#remaining -= bytes.length
        if (this.#remaining < 0) throw badArchive(this.#name, 'its sparse map is longer than the entry')
        if (this.#sparse!.extendText(bytes, this.#name)) this.#begin()
        return
    }
  }

  #onHeader(block: Buffer): void {
    if (isZero(block)) {
      if (++this.#zeroBlocks === 2) {
        if (this.#hasExtension) throw badArchive(this.#name, 'the archive ends where an entry must follow')
        this.#state = 'done'
      }
      return
    }
    this.#zeroBlocks = 0
    const header = readHeader(block, this.#name)
    if (++this.#entries > this.#maxEntries)
      throw tooLarge(header.name, `more than ${this.#maxEntries} entries in one archive`)
    this.#name = header.name
    if ('xgLK'.includes(header.flag)) {
      if (header.size > MAX_EXTENSION)
        throw badArchive(header.name, `an extended header of ${header.size} bytes, at most ${MAX_EXTENSION}`)
      this.#header = header
      this.#state = 'extension'
      this.#needed = Math.ceil(header.size / BLOCK) * BLOCK
      if (this.#needed === 0) this.#onExtension(Buffer.alloc(0))
      return
    }
    this.#header = header
    this.#apply(header)
  }

  #onExtension(padded: Buffer): void {
    const { flag, size, name } = this.#header!
    const bytes = padded.subarray(0, size)
    if (flag === 'x') this.#pax = parsePax(bytes, name)
    else if (flag === 'L') this.#longName = untilNul(bytes)
    else if (flag === 'K') this.#longLink = untilNul(bytes)
    // A global header ('g') carries comments in practice; Docker ignores it too.
    this.#state = 'header'
    this.#needed = BLOCK
  }

  /** Lets the extensions change the header, and turns to what follows it. */
  #apply(header: Header): void {
    const pax = this.#pax
    const name = pax?.get('path')?.toString('latin1') ?? this.#longName ?? header.name
    header.name = name
    header.linkName = pax?.get('linkpath')?.toString('latin1') ?? this.#longLink ?? header.linkName
    this.#name = name
    header.size = paxNumber(pax, 'size', name) ?? header.size
    header.uid = paxNumber(pax, 'uid', name) ?? header.uid
    header.gid = paxNumber(pax, 'gid', name) ?? header.gid
    const type = TYPES.get(header.flag)
    if (header.flag === 'V') return this.#skip(0)
    if (type === undefined)
      throw badArchive(name, `an entry of type ${JSON.stringify(header.flag)}, which no layer can hold`)
    // A header of any other type has no content behind it, whatever its size field says.
    if (type !== 'file') header.size = 0
    // Before ustar a folder was a file whose name ends in a slash.
    if (type === 'file' && name.endsWith('/') && header.size === 0) header.flag = '5'
    this.#remaining = header.size
    this.#padding = (BLOCK - (header.size % BLOCK)) % BLOCK
    if (type === 'file') this.#sparse = SparseMap.of(header.flag, header.block, pax, name)
    if (this.#sparse) {
      header.name = this.#name = this.#sparse.name ?? name
      if (this.#sparse.incomplete) {
        this.#state = this.#sparse.incomplete === 'header' ? 'sparse-header' : 'sparse-map'
        this.#needed = BLOCK
        return
      }
    }
    this.#begin()
  }

  /** Hands the entry over; its content follows. */
  #begin(): void {
    const header = this.#header!
    const pax = this.#pax
    const { name } = header
    const type = TYPES.get(header.flag)!
    const time = parseTime(pax?.get('mtime'), name)
    this.#sparse?.check(this.#remaining, name)
    this.#handler.entry({
      name,
      type,
      mode: header.mode & 0o7777,
      uid: header.uid,
      gid: header.gid,
      size: this.#sparse?.size ?? header.size,
      mtime: time?.seconds ?? header.mtime,
      mtimeNsec: time?.nanoseconds ?? 0,
      linkName: header.linkName,
      major: header.major,
      minor: header.minor,
      xattrs: parseXattrs(pax),
    })
    this.#pax = this.#longName = this.#longLink = undefined
    this.#state = 'content'
    this.#needed = BLOCK
    this.#contentEnds()
  }

  #skip(size: number): void {
    this.#pax = this.#longName = this.#longLink = undefined
    this.#remaining = size
    this.#state = 'header'
    this.#needed = BLOCK
  }

  #contentEnds(): void {
    if (this.#remaining > 0) return
    if (this.#header) {
      if (TYPES.get(this.#header.flag) === 'file') {
        this.#sparse?.finish(this.#handler)
        this.#handler.end()
      }
      this.#header = undefined
      this.#sparse = undefined
    }
    if (this.#padding === 0) this.#state = 'header'
  }
}

function isZero(block: Buffer): boolean {
  for (let i = 0; i < BLOCK; i += 4) if (block.readInt32LE(i) !== 0) return false
  return true
}

function untilNul(bytes: Buffer): string {
  const end = bytes.indexOf(0)
  return bytes.toString('latin1', 0, end < 0 ? bytes.length : end)
}

/** Whether a block is a header, by its checksum. */
export function isTarHeader(block: Buffer): boolean {
  if (block.length < BLOCK || isZero(block.subarray(0, BLOCK))) return false
  try {
    readHeader(block.subarray(0, BLOCK), '')
    return true
  } catch {
    return false
  }
}

/** @param before the entry before this one, to say where the archive is damaged */
function readHeader(block: Buffer, before: string): Header {
  const sum = octal(block, 148, 8)
  let unsigned = 0
  let signed = 0
  for (let i = 0; i < BLOCK; i++) {
    const byte = i >= 148 && i < 156 ? 32 : block[i]!
    unsigned += byte
    signed += byte > 127 ? byte - 256 : byte
  }
  if (sum !== unsigned && sum !== signed)
    throw badArchive(
      before,
      'behind it comes no tar header (its checksum is wrong): damaged, or no tar archive',
    )
  let name = untilNul(block.subarray(0, 100))
  const magic = block.toString('latin1', 257, 263)
  if (magic === 'ustar\0') {
    const prefix = untilNul(block.subarray(345, 500))
    if (prefix !== '') name = `${prefix}/${name}`
  }
  const number = (at: number, length: number, what: string): number => {
    const value = block[at]! & 0x80 ? binary(block, at, length) : octal(block, at, length)
    if (!Number.isSafeInteger(value)) throw badArchive(name, `its ${what} is no number`)
    return value
  }
  const size = number(124, 12, 'size')
  if (size < 0) throw badArchive(name, 'its size is negative')
  const device = magic.startsWith('ustar')
  const flag = String.fromCharCode(block[156]!)
  return {
    name,
    linkName: untilNul(block.subarray(157, 257)),
    flag,
    mode: number(100, 8, 'mode'),
    uid: number(108, 8, 'user id'),
    gid: number(116, 8, 'group id'),
    size,
    mtime: number(136, 12, 'time'),
    major: device && (flag === '3' || flag === '4') ? number(329, 8, 'device number') : 0,
    minor: device && (flag === '3' || flag === '4') ? number(337, 8, 'device number') : 0,
    block,
  }
}
