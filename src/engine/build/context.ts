import { createHash } from 'node:crypto'
import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { CoracleError } from '../../errors.js'
import { badArchive } from '../../image/archive-error.js'
import { decompress } from '../../image/decompress.js'
import { TarReader, type TarEntry } from '../../image/tar.js'

export const MAX_ENTRIES = 1_000_000
/** Bytes of a context at most. */
export const MAX_BYTES = 64 * 1024 ** 3
/** Bytes of names, link targets and attributes at most: what is held in memory. */
const MAX_METADATA = 256 * 1024 ** 2
const CHUNK = 256 * 1024

export interface ContextOptions {
  /** For errors. @default the build's context */
  readonly name?: string
  /** An archive that ADD unpacks: also xz; a name that climbs out, or a link to what is not there, is an error. */
  readonly strict?: boolean
  readonly signal?: AbortSignal | undefined
  /** Bytes at most. @default MAX_BYTES */
  readonly room?: number
}

/** A file, folder or link of a build's context. Names are UTF-8, without a slash at either end. */
export interface ContextEntry {
  readonly name: string
  readonly entry: TarEntry
  /** Where its content lies in the staging file, in bytes. */
  readonly offset: number
  /** SHA-256 of the content. */
  readonly digest: string
}

/**
 * A build's context: a tar from a client, whose contents lie one behind the other in a file of ours. Nothing of it becomes
 * a path of this host.
 */
export class BuildContext implements Disposable {
  readonly #folder: string
  readonly #fd: number
  readonly entries: ReadonlyMap<string, ContextEntry>
  /** Bytes of all contents. */
  readonly length: number

  private constructor(
    folder: string,
    fd: number,
    entries: ReadonlyMap<string, ContextEntry>,
    length: number,
  ) {
    this.#folder = folder
    this.#fd = fd
    this.entries = entries
    this.length = length
  }

  /**
   * @param tar plain, or compressed with gzip or zstd
   * @param parent folder on a disk with room
   * @throws CoracleError IMAGE_ARCHIVE, IMAGE_TOO_LARGE
   */
  static async read(
    tar: AsyncIterable<Uint8Array>,
    parent: string,
    { name: what = "the build's context", strict = false, signal, room = MAX_BYTES }: ContextOptions = {},
  ): Promise<BuildContext> {
    const folder = mkdtempSync(join(parent, 'build-'))
    const fd = openSync(join(folder, 'contents'), 'w+', 0o600)
    const entries = new Map<string, ContextEntry>()
    let length = 0
    let metadata = 0
    let open:
      { name: string; entry: TarEntry; offset: number; hash: ReturnType<typeof createHash> } | undefined
    const write = (bytes: Uint8Array): void => {
      if (length + bytes.length > room)
        throw new CoracleError('IMAGE_TOO_LARGE', `${what} is larger than ${MAX_BYTES} bytes`)
      for (let at = 0; at < bytes.length;) at += writeSync(fd, bytes, at, bytes.length - at, length + at)
      length += bytes.length
      open!.hash.update(bytes)
    }
    const reader = new TarReader(
      {
        entry: (entry) => {
          metadata += entry.name.length + entry.linkName.length
          for (const [key, value] of entry.xattrs ?? []) metadata += key.length + value.length
          if (metadata > MAX_METADATA)
            throw new CoracleError('IMAGE_TOO_LARGE', `${what} has names of more than ${MAX_METADATA} bytes`)
          if (strict && climbs(entry.name))
            throw badArchive(entry.name, 'it leads out of the archive by ".."')
          const name = nameOf(entry.name)
          open = { name, entry, offset: length, hash: createHash('sha256') }
          if (entry.type !== 'file' && name !== '') entries.set(name, { name, entry, offset: 0, digest: '' })
        },
        data: write,
        hole: (size) => {
          for (let left = size; left > 0; left -= CHUNK) write(Buffer.alloc(Math.min(left, CHUNK)))
        },
        end: () => {
          const { name, entry, offset, hash } = open!
          entries.set(name, { name, entry, offset, digest: hash.digest('hex') })
        },
      },
      MAX_ENTRIES,
    )
    try {
      for await (const chunk of decompress(tar, what, strict)) {
        signal?.throwIfAborted()
        reader.write(chunk)
      }
      reader.end()
      const context = new BuildContext(folder, fd, entries, length)
      for (const found of strict ? entries.values() : [])
        if (found.entry.type === 'link' && !context.#linked(found))
          throw badArchive(found.entry.name, 'a hard link to what the archive does not have')
      return context
    } catch (error) {
      closeSync(fd)
      rmSync(folder, { recursive: true, force: true })
      throw error
    }
  }

  /** What is at a path, links within the context followed. */
  find(path: string): ContextEntry | undefined {
    let name = path
    for (let links = 0; links < 40; links++) {
      const found = this.entries.get(name)
      if (found?.entry.type !== 'symlink') return found && this.#linked(found)
      const target = Buffer.from(found.entry.linkName, 'latin1').toString('utf8')
      name = nameOf(
        Buffer.from(target.startsWith('/') ? target : join(name, '..', target), 'utf8').toString('latin1'),
      )
    }
    return undefined
  }

  #linked(entry: ContextEntry): ContextEntry | undefined {
    let found: ContextEntry | undefined = entry
    for (let links = 0; links < 40 && found?.entry.type === 'link'; links++)
      found = this.entries.get(nameOf(found.entry.linkName))
    return found && found.entry.type !== 'link' ? { ...found, name: entry.name } : undefined
  }

  /** Whether a path is a folder, also one that only its members tell of. */
  isFolder(path: string): boolean {
    if (path === '') return true
    const found = this.entries.get(path)
    if (found) return found.entry.type === 'directory'
    for (const name of this.entries.keys()) if (name.startsWith(`${path}/`)) return true
    return false
  }

  /** The entries below a folder, their names relative to it. */
  *below(path: string): Generator<ContextEntry> {
    const prefix = path === '' ? '' : `${path}/`
    for (const [name, found] of this.entries)
      if (name.startsWith(prefix) && name !== path)
        yield {
          ...(this.#linked(found) ?? found),
          name: name.slice(prefix.length),
        }
  }

  /** A file's content. */
  *content({ entry, offset }: ContextEntry): Generator<Buffer> {
    for (let at = 0; at < entry.size; at += CHUNK) {
      const bytes = Buffer.alloc(Math.min(CHUNK, entry.size - at))
      readSync(this.#fd, bytes, 0, bytes.length, offset + at)
      yield bytes
    }
  }

  text(path: string): string | undefined {
    const found = this.find(nameOf(Buffer.from(path).toString('latin1')))
    if (found?.entry.type !== 'file') return undefined
    return Buffer.concat([...this.content(found)]).toString('utf8')
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd)
    rmSync(this.#folder, { recursive: true, force: true })
  }
}

/** A name of the archive as a path below the context; what would climb out of it stays at its root. */
export function nameOf(latin1: string): string {
  const parts: string[] = []
  for (const part of Buffer.from(latin1, 'latin1').toString('utf8').split('/')) {
    if (part === '' || part === '.') continue
    if (part === '..') parts.pop()
    else parts.push(part)
  }
  return parts.join('/')
}

/** Whether a name leads out of the archive. */
function climbs(latin1: string): boolean {
  let depth = 0
  for (const part of latin1.split('/')) {
    if (part === '..') depth--
    else if (part !== '' && part !== '.') depth++
    if (depth < 0) return true
  }
  return false
}
