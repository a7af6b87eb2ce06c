import { createReadStream, lstatSync, readdirSync, readlinkSync, statSync, type Stats } from 'node:fs'
import { join } from 'node:path'
import { TAR_END, tarHeader, tarPadding } from '../image/tar-writer.js'
import type { TarEntry, TarType } from '../image/tar.js'

export interface PackOptions {
  /** Keep owners; else all belongs to root. */
  readonly owners: boolean
  /** Follow the path itself where it is a link. */
  readonly follow: boolean
  /** Leaves out what it says `skip` of, and with `prune` all that is below it too; names are those in the archive. */
  readonly filter?: (name: string) => 'keep' | 'skip' | 'prune'
}

/** A file or folder of this machine as a tar. @param name what it is called in the archive; `.` for a folder's contents */
export async function* pack(path: string, name: string, options: PackOptions): AsyncGenerator<Buffer> {
  yield* node(path, name, options.follow ? statSync(path) : lstatSync(path), options)
  yield TAR_END
}

async function* node(path: string, name: string, stat: Stats, options: PackOptions): AsyncGenerator<Buffer> {
  const type = typeOf(stat)
  const { owners, filter } = options
  const kept = name === '.' ? 'keep' : (filter?.(name) ?? 'keep')
  if (type === undefined || kept === 'prune') return
  const entry: TarEntry = {
    name: bytes(type === 'directory' ? `${name}/` : name),
    type,
    mode: stat.mode & 0o7777,
    uid: owners ? stat.uid : 0,
    gid: owners ? stat.gid : 0,
    size: type === 'file' ? stat.size : 0,
    mtime: Math.floor(stat.mtimeMs / 1000),
    mtimeNsec: 0,
    linkName: type === 'symlink' ? bytes(readlinkSync(path)) : '',
    major: 0,
    minor: 0,
    xattrs: undefined,
  }
  if (kept === 'keep') yield tarHeader(entry)
  if (type === 'directory')
    for (const child of readdirSync(path).sort()) {
      const at = join(path, child)
      const found = lstatSync(at, { throwIfNoEntry: false })
      if (found) yield* node(at, name === '.' ? child : `${name}/${child}`, found, options)
    }
  if (type === 'file' && stat.size > 0 && kept === 'keep') {
    // Exactly as much as the header says, whatever becomes of the file.
    let left = stat.size
    for await (const chunk of createReadStream(path, { end: stat.size - 1 }) as AsyncIterable<Buffer>) {
      left -= chunk.length
      yield chunk
    }
    for (; left > 0; left -= 65_536) yield Buffer.alloc(Math.min(left, 65_536))
    yield tarPadding(stat.size)
  }
}

const bytes = (text: string): string => Buffer.from(text).toString('latin1')

function typeOf(stat: Stats): TarType | undefined {
  if (stat.isFile()) return 'file'
  if (stat.isDirectory()) return 'directory'
  return stat.isSymbolicLink() ? 'symlink' : undefined
}
