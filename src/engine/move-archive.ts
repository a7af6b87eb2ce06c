import { createHash, type Hash } from 'node:crypto'
import { statSync } from 'node:fs'
import { Fd, O_CREAT, O_EXCL, O_RDONLY, O_RDWR } from '@coracle/sys'
import { CoracleError } from '../errors.js'
import { savedFiles } from '../isolation/index.js'
import type { RootLayer } from '../isolation/sandbox.js'
import type { ContainerRecord } from './record.js'

/*
 * A saved container on its way to another daemon: bytes that say by themselves where they end.
 *
 *   8 bytes   CORMOVE1
 *   u32       length of the header, little-endian, as all numbers
 *   header    JSON: the container's record, and of its layers and files the sizes and digests
 *   pieces    of the files in turn (FILES): u64 where it belongs, u32 length (≤ PIECE), the bytes; places ascend
 *             within a file, and what is left out is zeros. A length of 0 ends a file.
 *   32 bytes  SHA-256 of all before
 *
 * The other daemon takes it from whoever may use its API; still, each number is held against a bound before it counts.
 */

const MAGIC = Buffer.from('CORMOVE1')
const FILES = ['state', 'tools', 'disk', 'memory'] as const
const PIECE = 1 << 20
/** A piece that is all zeros is left out, in such steps. */
const BLOCK = 64 << 10
const ZEROS = Buffer.alloc(BLOCK)
const MAX_HEADER = 4 << 20
/** Bytes of a file as its holes count. */
const MAX_FILE = 2 ** 44
const PLACE = 12
const DIGEST = 32

/** What goes before the files. */
export interface MoveHeader {
  /** Both sides know it by this: 32 hexadecimal digits. */
  readonly move: string
  readonly container: ContainerRecord
  /** The guest has them mapped: the other side's must be the very same. */
  readonly layers: readonly { readonly diffId: string; readonly size: number; readonly digest: string }[]
  readonly sizes: Readonly<Record<(typeof FILES)[number], number>>
}

/**
 * The archive of a saved container.
 * @param move the id of its move @param folder with {@link savedFiles} @param layers its image's
 */
export async function* writeMove(
  move: string,
  container: ContainerRecord,
  folder: string,
  layers: readonly RootLayer[],
): AsyncGenerator<Buffer> {
  const hash = createHash('sha256')
  const paths = savedFiles(folder)
  const sizes = Object.fromEntries(FILES.map((name) => [name, statSync(paths[name]).size]))
  const digests = []
  for (const { diffId, size, path } of layers) digests.push({ diffId, size, digest: await digestOf(path) })
  const header = Buffer.from(JSON.stringify({ move, container, layers: digests, sizes }))
  const length = Buffer.alloc(4)
  length.writeUInt32LE(header.length)
  const said = (bytes: Buffer): Buffer => {
    hash.update(bytes)
    return bytes
  }
  yield said(Buffer.concat([MAGIC, length, header]))
  for (const name of FILES) {
    for (const [at, bytes] of piecesOf(paths[name])) {
      yield said(placeOf(at, bytes.length))
      yield said(bytes)
    }
    yield said(placeOf(0, 0))
  }
  yield hash.digest()
}

/** Reads an archive as it comes. */
export class MoveReader {
  readonly #source: AsyncIterator<Buffer>
  readonly #hash: Hash = createHash('sha256')
  #held: Buffer = Buffer.alloc(0)

  constructor(source: AsyncIterable<Buffer>) {
    this.#source = source[Symbol.asyncIterator]()
  }

  /** @throws CoracleError SNAPSHOT_INVALID */
  async header(): Promise<MoveHeader> {
    if (!(await this.#take(MAGIC.length)).equals(MAGIC)) throw broken('it does not begin as one')
    const length = (await this.#take(4)).readUInt32LE()
    if (length > MAX_HEADER) throw broken(`a header of ${length} bytes`)
    const text = (await this.#take(length)).toString()
    try {
      return checkHeader(JSON.parse(text))
    } catch (error) {
      throw error instanceof SyntaxError ? broken('its header is no JSON') : error
    }
  }

  /** Puts the files into an empty folder, on the disk. @throws CoracleError SNAPSHOT_INVALID; SysError such as ENOSPC */
  async files(folder: string, { sizes }: MoveHeader): Promise<void> {
    const paths = savedFiles(folder)
    for (const name of FILES) {
      using file = Fd.open(paths[name], O_RDWR | O_CREAT | O_EXCL)
      file.truncate(sizes[name])
      for (let end = 0; ;) {
        const place = await this.#take(PLACE)
        const [at, length] = [Number(place.readBigUInt64LE()), place.readUInt32LE(8)]
        if (length === 0) break
        if (length > PIECE || at < end || at + length > sizes[name])
          throw broken(`${length} bytes of its ${name} at ${at}`)
        const bytes = await this.#take(length)
        for (let done = 0; done < length;) done += file.pwrite(bytes.subarray(done), at + done)
        end = at + length
      }
      file.sync()
    }
    const digest = this.#hash.digest()
    if (!(await this.#read(DIGEST)).equals(digest)) throw broken('it came otherwise than it was sent')
  }

  async #take(length: number): Promise<Buffer> {
    const bytes = await this.#read(length)
    this.#hash.update(bytes)
    return bytes
  }

  async #read(length: number): Promise<Buffer> {
    const parts = [this.#held]
    let have = this.#held.length
    while (have < length) {
      const { value, done } = await this.#source.next()
      if (done === true) throw broken('it ends too early')
      parts.push(value)
      have += value.length
    }
    const all = parts.length === 1 ? parts[0]! : Buffer.concat(parts)
    this.#held = all.subarray(length)
    return all.subarray(0, length)
  }
}

/** SHA-256 of a file, as hexadecimal digits. */
export async function digestOf(path: string): Promise<string> {
  const hash = createHash('sha256')
  using file = Fd.open(path, O_RDONLY)
  const piece = Buffer.alloc(PIECE)
  for (let at = 0, length; (length = file.pread(piece, at)) > 0; at += length) {
    hash.update(piece.subarray(0, length))
    await new Promise(setImmediate)
  }
  return hash.digest('hex')
}

/** What of a file is not zeros. */
function* piecesOf(path: string): Generator<[number, Buffer]> {
  using file = Fd.open(path, O_RDONLY)
  for (let range; (range = file.nextData(range?.[1] ?? 0)) !== undefined;)
    for (let [at, end] = range; at < end;) {
      const piece = Buffer.alloc(Math.min(PIECE, end - at))
      const length = file.pread(piece, at)
      if (length <= 0) break
      for (let begin = 0, block = 0; block < length;) {
        const bytes = piece.subarray(block, Math.min(block + BLOCK, length))
        const isHole = bytes.equals(ZEROS.subarray(0, bytes.length))
        block += bytes.length
        const stop = isHole ? block - bytes.length : block
        if (begin < stop && (isHole || block === length)) yield [at + begin, piece.subarray(begin, stop)]
        if (isHole) begin = block
      }
      at += length
    }
}

function placeOf(at: number, length: number): Buffer {
  const place = Buffer.alloc(PLACE)
  place.writeBigUInt64LE(BigInt(at))
  place.writeUInt32LE(length, 8)
  return place
}

function checkHeader(value: unknown): MoveHeader {
  const { move, container, layers, sizes } = value as Partial<MoveHeader>
  const isText = (each: unknown): boolean => typeof each === 'string'
  const { id, name, imageId, request, spec } = (container ?? {}) as Partial<ContainerRecord>
  const parts = [container, request, spec, spec?.bundle?.process, sizes]
  if (!isText(name) || !isText(imageId) || parts.some((each) => typeof each !== 'object' || each === null))
    throw broken('its header does not say what it is of')
  if (!/^[0-9a-f]{32}$/.test(String(move)) || !/^[0-9a-f]{64}$/.test(String(id)))
    throw broken('its header does not say whose move it is')
  if (!Array.isArray(layers) || !layers.every((each) => isText(each?.diffId) && isText(each?.digest)))
    throw broken('its header names no layers')
  for (const file of FILES)
    if (!Number.isSafeInteger(sizes![file]) || sizes![file] <= 0 || sizes![file] > MAX_FILE)
      throw broken(`its ${file} has no size`)
  return value as MoveHeader
}

const broken = (what: string): CoracleError =>
  new CoracleError('SNAPSHOT_INVALID', `what came is no container on its move: ${what}`)
