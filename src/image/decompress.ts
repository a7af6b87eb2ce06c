import { Readable, pipeline } from 'node:stream'
import { ReadableStream } from 'node:stream/web'
import { createGunzip } from 'node:zlib'
import { Decompress } from 'fzstd'
import { badArchive } from './archive-error.js'

export type Compression = 'none' | 'gzip' | 'zstd' | 'xz'

/** zlib's output comes in pieces of this size: fewer, larger pieces cost less. */
const CHUNK = 2 ** 20
/** A block of four bytes can stand for 128 KiB, and all that one push yields is held at once: 64 MiB at most. */
const ZSTD_INPUT = 2048
const XZ = Buffer.from('fd377a585a00', 'hex')
const OTHERS: readonly (readonly [string, Buffer])[] = [
  ['xz', XZ],
  ['bzip2', Buffer.from('BZh')],
  ['zip', Buffer.from('PK\x03\x04')],
]

/** @param head the first bytes, six at least unless there are no more @throws CoracleError IMAGE_ARCHIVE */
function sniff(head: Buffer, name: string, xz: boolean): Compression {
  if (head.length >= 2 && head[0] === 0x1f && head[1] === 0x8b) return 'gzip'
  if (head.length >= 4 && head.readUInt32LE(0) === 0xfd2fb528) return 'zstd'
  // A skippable frame (RFC 8878 §3.1.2), with which some writers of zstd begin.
  if (head.length >= 4 && (head.readUInt32LE(0) & 0xfffffff0) >>> 0 === 0x184d2a50) return 'zstd'
  if (xz && head.subarray(0, XZ.length).equals(XZ)) return 'xz'
  for (const [what, magic] of OTHERS)
    if (head.subarray(0, magic.length).equals(magic))
      throw badArchive(name, `compressed with ${what}; plain tar, gzip and zstd are understood`)
  return 'none'
}

/**
 * Decompresses what its first bytes say it is; media types lie.
 * @param name for errors
 * @param xz also xz, which no layer is compressed with; only for a source that does not stall, since one at a time is read
 * @throws CoracleError IMAGE_ARCHIVE where the compressed data is damaged or cut off
 */
export async function* decompress(
  source: AsyncIterable<Uint8Array>,
  name: string,
  xz = false,
): AsyncGenerator<Buffer> {
  const chunks = source[Symbol.asyncIterator]()
  let head: Buffer = Buffer.alloc(0)
  let ended = false
  try {
    while (head.length < 6 && !ended) {
      const { value, done } = await chunks.next()
      if (done) ended = true
      else head = head.length === 0 ? asBuffer(value) : Buffer.concat([head, value])
    }
    const rest = (async function* () {
      if (head.length > 0) yield head
      if (ended) return
      for await (const chunk of { [Symbol.asyncIterator]: () => chunks }) yield asBuffer(chunk)
    })()
    const compression = sniff(head, name, xz)
    if (compression === 'gzip') yield* gunzip(rest, name)
    else if (compression === 'zstd') yield* unzstd(rest, name)
    else if (compression === 'xz') yield* unxz(rest, name)
    else yield* rest
  } finally {
    await chunks.return?.()
  }
}

const asBuffer = (bytes: Uint8Array): Buffer =>
  Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)

async function* gunzip(source: AsyncIterable<Buffer>, name: string): AsyncGenerator<Buffer> {
  const output = createGunzip({ chunkSize: CHUNK })
  let sourceError: unknown
  const input = Readable.from(source, { objectMode: false })
  input.once('error', (error) => (sourceError = error))
  pipeline(input, output, () => undefined)
  try {
    for await (const chunk of output) yield chunk as Buffer
  } catch (error) {
    if (sourceError !== undefined) throw sourceError as Error
    const code = (error as NodeJS.ErrnoException).code ?? ''
    if (code === 'Z_BUF_ERROR') throw badArchive(name, 'the gzip data is cut off')
    if (code.startsWith('Z_'))
      throw badArchive(name, `the gzip data is damaged (${(error as Error).message})`)
    throw error
  }
}

async function* unzstd(source: AsyncIterable<Buffer>, name: string): AsyncGenerator<Buffer> {
  let output: Buffer[] = []
  const decoder = new Decompress((chunk) => {
    if (chunk.length > 0) output.push(asBuffer(chunk))
  })
  const push = (chunk: Uint8Array, last: boolean): void => {
    try {
      decoder.push(chunk, last)
    } catch (error) {
      throw badArchive(name, `the zstd data is damaged or cut off (${(error as Error).message})`)
    }
  }
  for await (const chunk of source) {
    for (let at = 0; at < chunk.length; at += ZSTD_INPUT) {
      push(chunk.subarray(at, at + ZSTD_INPUT), false)
      yield* output
      output = []
    }
  }
  push(new Uint8Array(0), true)
  yield* output
}

async function* unxz(source: AsyncIterable<Buffer>, name: string): AsyncGenerator<Buffer> {
  const { default: xz } = await import('xz-decompress')
  let ended = false
  const chunks = source[Symbol.asyncIterator]()
  const input = new ReadableStream<Uint8Array>({
    async pull(controller) {
      const { value, done } = await chunks.next()
      if (done) {
        ended = true
        controller.close()
      } else controller.enqueue(value)
    },
  })
  const reader = new xz.XzReadableStream(input).getReader()
  let failed = false
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error: unknown) => {
        failed = true
        throw badArchive(
          name,
          `the xz data is ${ended ? 'cut off' : 'damaged'} (${(error as Error).message})`,
        )
      })
      if (done) return
      if (value.length > 0) yield asBuffer(value)
    }
  } finally {
    // Left early: the decoder is the next one's. It may have ended by itself already, and says so.
    if (!failed) await reader.cancel().catch(() => undefined)
  }
}
