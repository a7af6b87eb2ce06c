import { tooLarge } from './archive-error.js'
import { TarReader, type TarEntry } from './tar.js'
import { TAR_END, tarHeader, tarPadding } from './tar-writer.js'

/** An archive from a client holds at most so many entries. */
const MAX_ENTRIES = 4_000_000
const ZEROS = Buffer.alloc(64 * 1024)
/** Bytes that the holes of one archive may come to: they cost its sender nothing. */
const MAX_HOLES = 16 * 1024 ** 3

/**
 * Changes an entry on its way, or with undefined leaves it out. Of several, the last is the one whose content follows;
 * those before it have none.
 */
export type EntryChange = (entry: TarEntry) => TarEntry | readonly [...TarEntry[], TarEntry] | undefined

/**
 * Reads a tar of any kind, checks it, and writes it anew as ustar and pax alone.
 * @param source a plain tar, from a stranger
 * @throws CoracleError IMAGE_ARCHIVE for what is no tar
 */
export async function* rewriteTar(
  source: AsyncIterable<Uint8Array>,
  change: EntryChange = (entry) => entry,
): AsyncGenerator<Buffer> {
  let out: Buffer[] = []
  let size: number | undefined
  let holes = 0
  const reader = new TarReader(
    {
      entry: (entry) => {
        const changed = [change(entry) ?? []].flat()
        const last = changed.at(-1)
        size = last?.type === 'file' ? last.size : undefined
        for (const each of changed) out.push(tarHeader(each))
      },
      // The reader's chunk is its source's: what waits here must not change under it.
      data: (bytes) => {
        if (size !== undefined) out.push(Buffer.from(bytes))
      },
      hole: (length) => {
        if ((holes += length) > MAX_HOLES)
          throw tooLarge('the archive', `its sparse files hold more than ${MAX_HOLES} bytes of nothing`)
        for (let left = size === undefined ? 0 : length; left > 0; left -= ZEROS.length)
          out.push(ZEROS.subarray(0, Math.min(left, ZEROS.length)))
      },
      end: () => {
        if (size !== undefined) out.push(tarPadding(size))
      },
    },
    MAX_ENTRIES,
  )
  for await (const chunk of source) {
    reader.write(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength))
    const ready = out
    out = []
    yield* ready
  }
  reader.end()
  yield* out
  yield TAR_END
}

/** The entries of a tar, for who wants no contents. @throws CoracleError IMAGE_ARCHIVE */
export async function* tarEntries(source: AsyncIterable<Uint8Array>): AsyncGenerator<TarEntry> {
  let found: TarEntry[] = []
  const none = (): void => undefined
  const handler = { entry: (entry: TarEntry) => void found.push(entry), data: none, hole: none, end: none }
  const reader = new TarReader(handler, MAX_ENTRIES)
  for await (const chunk of source) {
    reader.write(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength))
    const ready = found
    found = []
    yield* ready
  }
  reader.end()
  yield* found
}
