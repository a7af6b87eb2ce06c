import { badArchive } from './archive-error.js'
import { paxNumber, type PaxRecords } from './pax.js'
import { binary, octal } from './tar-number.js'
import type { TarHandler } from './tar.js'

const MAX_PIECES = 100_000

/**
 * Which parts of a sparse file the archive holds: GNU's old format (type S), and its PAX formats 0.0, 0.1 and 1.0
 * (GNU tar's manual, "Storing Sparse Files"). The rest are holes.
 */
export class SparseMap {
  readonly #pieces: { offset: number; length: number }[] = []
  /** Bytes of the file as unpacked. */
  readonly size: number
  /** The file's true name, where the format keeps it apart. */
  readonly name: string | undefined
  /** Where more of the map is to be read before the content: headers of the old format, or text of format 1.0. */
  incomplete: 'header' | 'map' | undefined
  #text = ''
  #position = 0
  #piece = 0
  #inPiece = 0

  private constructor(size: number, name: string | undefined) {
    this.size = size
    this.name = name
  }

  /** @returns undefined for a file that is not sparse. @throws CoracleError IMAGE_ARCHIVE */
  static of(flag: string, block: Buffer, pax: PaxRecords | undefined, name: string): SparseMap | undefined {
    if (flag === 'S') {
      const size = block[483]! & 0x80 ? binary(block, 483, 12) : octal(block, 483, 12)
      if (!Number.isSafeInteger(size) || size < 0) throw badArchive(name, 'its size as unpacked is no number')
      const map = new SparseMap(size, undefined)
      map.incomplete = map.extend(block, 4, 386, name) && block[482] !== 0 ? 'header' : undefined
      return map
    }
    const size = paxNumber(pax, 'GNU.sparse.realsize', name) ?? paxNumber(pax, 'GNU.sparse.size', name)
    if (!pax || size === undefined) return undefined
    const map = new SparseMap(size, pax.get('GNU.sparse.name')?.toString('latin1'))
    const text = pax.get('GNU.sparse.map')?.toString('latin1')
    if (text !== undefined) map.#addAll(text.split(','), name)
    else if (pax.get('GNU.sparse.major')?.toString('latin1') === '1') map.incomplete = 'map'
    else throw badArchive(name, 'a sparse file without a map')
    return map
  }

  /** Takes pieces from a header of the old format. @returns whether all its places were in use */
  extend(block: Buffer, count: number, at: number, name: string): boolean {
    for (let i = 0; i < count; i++, at += 24) {
      if (block[at] === 0 || block[at + 12] === 0) return false
      const read = (from: number): number =>
        block[from]! & 0x80 ? binary(block, from, 12) : octal(block, from, 12)
      this.#add(read(at), read(at + 12), name)
    }
    return true
  }

  /** Takes a block of format 1.0's map. @returns whether the map is complete */
  extendText(block: Buffer, name: string): boolean {
    this.#text += block.toString('latin1')
    const lines = this.#text.split('\n')
    const count = Number(lines[0])
    if (lines.length > 1 && !(count <= MAX_PIECES)) throw badArchive(name, 'its sparse map is damaged')
    if (this.#text.length > (MAX_PIECES * 2 + 1) * 20) throw badArchive(name, 'its sparse map is damaged')
    if (lines.length < count * 2 + 2 || lines.length < 2) return false
    this.#addAll(lines.slice(1, 1 + count * 2), name)
    this.#text = ''
    return true
  }

  /** @param stored bytes the archive holds of the file */
  check(stored: number, name: string): void {
    const sum = this.#pieces.reduce((total, { length }) => total + length, 0)
    if (sum !== stored) throw badArchive(name, `its sparse map is of ${sum} bytes, but it holds ${stored}`)
  }

  /** Hands stored bytes on, with the holes before and between. */
  data(bytes: Buffer, handler: TarHandler): void {
    for (let at = 0; at < bytes.length;) {
      const piece = this.#pieces[this.#piece]!
      if (this.#position < piece.offset) {
        handler.hole(piece.offset - this.#position)
        this.#position = piece.offset
      }
      const length = Math.min(piece.length - this.#inPiece, bytes.length - at)
      if (length > 0) handler.data(bytes.subarray(at, at + length))
      at += length
      this.#inPiece += length
      this.#position += length
      if (this.#inPiece === piece.length) {
        this.#piece++
        this.#inPiece = 0
      }
    }
  }

  /** Hands the last hole on. */
  finish(handler: TarHandler): void {
    if (this.#position < this.size) handler.hole(this.size - this.#position)
    this.#position = this.size
  }

  #addAll(numbers: string[], name: string): void {
    if (numbers.length % 2 !== 0 || !numbers.every((text) => /^[0-9]{1,16}$/.test(text)))
      throw badArchive(name, 'its sparse map is damaged')
    for (let i = 0; i < numbers.length; i += 2) this.#add(Number(numbers[i]), Number(numbers[i + 1]), name)
  }

  #add(offset: number, length: number, name: string): void {
    const last = this.#pieces[this.#pieces.length - 1]
    const from = last ? last.offset + last.length : 0
    const valid = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && length >= 0
    if (!valid || offset < from || offset + length > this.size || this.#pieces.length >= MAX_PIECES)
      throw badArchive(name, 'its sparse map is damaged')
    // Pieces without bytes mark the end; they would stall the reading.
    if (length > 0) this.#pieces.push({ offset, length })
  }
}
