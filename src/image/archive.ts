import { createHash, type Hash } from 'node:crypto'
import { closeSync, createReadStream, openSync, writeSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { posix } from 'node:path'
import { badArchive, tooLarge } from './archive-error.js'
import { decompress } from './decompress.js'
import { Budget } from './layer.js'
import type { ImageLimits } from './limits.js'
import type { Staging } from './staging.js'
import { TarReader, type TarEntry, type TarHandler } from './tar.js'

/** A file of the archive, lying in the staging folder under a name of ours. */
export interface StagedBlob {
  readonly path: string
  readonly digest: string
  readonly size: number
}

/** The archive's files by their names in it. No name of the archive ever becomes a path of the host. */
export class Archive {
  readonly #files = new Map<string, StagedBlob>()
  /** Symbolic and hard links: `docker save` links layers that several images share. */
  readonly #links = new Map<string, string>()

  /** @returns undefined where the archive has no such file */
  find(name: string): StagedBlob | undefined {
    let path = cleanName(name)
    for (let hops = 0; hops < 8; hops++) {
      const file = this.#files.get(path)
      if (file) return file
      const target = this.#links.get(path)
      if (target === undefined) return undefined
      path = target
    }
    throw badArchive(name, 'its links lead nowhere')
  }

  /** @throws CoracleError IMAGE_ARCHIVE */
  get(name: string, neededBy: string): StagedBlob {
    const file = this.find(name)
    if (!file) throw badArchive(name, `it is not in the archive, but ${neededBy} needs it`)
    return file
  }

  /** The content of a small file. @throws CoracleError IMAGE_TOO_LARGE */
  async read(file: StagedBlob, name: string, limit: number): Promise<Buffer> {
    if (file.size > limit) throw tooLarge(name, `${file.size} bytes, at most ${limit} are accepted`)
    const handle = await open(file.path, 'r')
    try {
      return await handle.readFile()
    } finally {
      await handle.close()
    }
  }

  /** @internal */
  put(name: string, blob: StagedBlob): void {
    this.#links.delete(name)
    this.#files.set(name, blob)
  }

  /** @internal */
  link(name: string, target: string): void {
    this.#files.delete(name)
    this.#links.set(name, target)
  }
}

/** Writes every file of the archive into the staging folder, and its digest down. */
class Unpacker implements TarHandler {
  readonly archive = new Archive()
  readonly #staging: Staging
  #file: { name: string; path: string; fd: number; hash: Hash; size: number } | undefined

  constructor(staging: Staging) {
    this.#staging = staging
  }

  entry(entry: TarEntry): void {
    const name = cleanName(entry.name)
    if (entry.type === 'file') {
      const path = this.#staging.path()
      this.#file = { name, path, fd: openSync(path, 'wx', 0o644), hash: createHash('sha256'), size: 0 }
    } else if (entry.type === 'symlink') {
      this.archive.link(name, cleanName(posix.join(posix.dirname(name), entry.linkName), entry.name))
    } else if (entry.type === 'link') {
      this.archive.link(name, cleanName(entry.linkName, entry.name))
    } else if (entry.type !== 'directory') {
      throw badArchive(entry.name, 'a device or pipe, which no image archive needs')
    }
  }

  data(bytes: Buffer): void {
    const file = this.#file!
    file.hash.update(bytes)
    for (let at = 0; at < bytes.length;) at += writeSync(file.fd, bytes, at)
    file.size += bytes.length
  }

  hole(): void {
    throw badArchive(this.#file?.name ?? '', 'a sparse file, which no image archive needs')
  }

  end(): void {
    const { name, path, fd, hash, size } = this.#file!
    this.#file = undefined
    closeSync(fd)
    this.archive.put(name, { path, size, digest: `sha256:${hash.digest('hex')}` })
  }

  /** After a failure in the middle of a file. */
  close(): void {
    if (this.#file) closeSync(this.#file.fd)
  }
}

/**
 * Reads an archive, whole, into the staging folder.
 * @param onBytes called with the bytes of the source so far
 * @throws CoracleError IMAGE_ARCHIVE, IMAGE_TOO_LARGE
 */
export async function readArchive(
  source: AsyncIterable<Uint8Array>,
  staging: Staging,
  options: { limits: ImageLimits; signal?: AbortSignal | undefined; onBytes(bytes: number): void },
): Promise<Archive> {
  const { limits, signal, onBytes } = options
  const unpacker = new Unpacker(staging)
  const reader = new TarReader(unpacker, limits.entries)
  const budget = new Budget(limits.bytes)
  const counted = (async function* () {
    let bytes = 0
    for await (const chunk of source) {
      signal?.throwIfAborted()
      onBytes((bytes += chunk.length))
      yield chunk
    }
  })()
  try {
    for await (const chunk of decompress(counted, 'archive')) {
      budget.take(chunk.length, 'archive')
      reader.write(chunk)
    }
    reader.end()
  } finally {
    unpacker.close()
  }
  return unpacker.archive
}

/** A staged blob's bytes. */
export const readBlob = (blob: StagedBlob): AsyncIterable<Buffer> =>
  createReadStream(blob.path, { highWaterMark: 2 ** 20 }) as AsyncIterable<Buffer>

/** A name inside the archive without `.`, `..` and a leading slash. @param entry for the error */
function cleanName(name: string, entry = name): string {
  const clean = posix.normalize(`/${name}`).slice(1)
  const depth = name
    .split('/')
    .reduce(
      (sum, part) => (sum < 0 ? sum : part === '..' ? sum - 1 : part === '' || part === '.' ? sum : sum + 1),
      0,
    )
  if (depth < 0) throw badArchive(entry, 'it leads out of the archive by ".."')
  return clean.replace(/\/$/, '')
}
