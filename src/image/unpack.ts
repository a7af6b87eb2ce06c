import {
  chmodSync,
  closeSync,
  lchownSync,
  linkSync,
  lstatSync,
  lutimesSync,
  mkdirSync,
  openSync,
  rmSync,
  symlinkSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { CoracleError } from '../errors.js'
import { TarReader, type TarEntry } from './tar.js'

/** Entries of one archive at most. */
const MAX_ENTRIES = 4_000_000
const ZEROS = Buffer.alloc(64 * 1024)

export interface UnpackOptions {
  /** The name under which an entry lands, relative to the folder; undefined leaves it out. */
  readonly rename: (name: string) => string | undefined
  /** Keep owners, as far as this user may. */
  readonly owners: boolean
}

/**
 * Unpacks a tar that a container wrote into a folder of this machine. Nothing lands outside the folder: a name may not
 * climb, and what the archive puts on the way to a file must be folders, no links.
 * @throws CoracleError IMAGE_ARCHIVE for what is no tar, INVALID_ARGUMENT for a name that leads out
 */
export async function unpack(
  tar: AsyncIterable<Uint8Array>,
  folder: string,
  { rename, owners }: UnpackOptions,
): Promise<void> {
  let fd: number | undefined
  let entry: TarEntry | undefined
  let path = ''
  const write = (bytes: Uint8Array): void => {
    for (let at = 0; fd !== undefined && at < bytes.length;) at += writeSync(fd, bytes, at)
  }
  const reader = new TarReader(
    {
      entry: (next) => {
        entry = undefined
        const name = rename(text(next.name))
        if (name === undefined) return
        path = way(folder, name)
        make(next, path, folder, rename)
        if (next.type === 'file') fd = openSync(path, 'wx', 0o600)
        entry = next
        if (next.type !== 'file' && next.type !== 'link') settle(path, next, owners)
      },
      data: write,
      hole: (length) => {
        for (let left = fd === undefined ? 0 : length; left > 0; left -= ZEROS.length)
          write(ZEROS.subarray(0, Math.min(left, ZEROS.length)))
      },
      end: () => {
        if (fd === undefined) return
        closeSync(fd)
        fd = undefined
        if (entry) settle(path, entry, owners)
      },
    },
    MAX_ENTRIES,
  )
  try {
    for await (const chunk of tar) reader.write(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength))
    reader.end()
  } finally {
    if (fd !== undefined) closeSync(fd)
  }
}

const text = (latin1: string): string => Buffer.from(latin1, 'latin1').toString('utf8')

/** The path of an entry, its parents made. @throws CoracleError INVALID_ARGUMENT */
function way(folder: string, name: string): string {
  const parts = name.split('/').filter((part) => part !== '' && part !== '.')
  if (parts.includes('..'))
    throw new CoracleError('INVALID_ARGUMENT', `the archive has an entry that leads out of it: ${name}`)
  let path = folder
  for (const part of parts.slice(0, -1)) {
    path = join(path, part)
    const stat = lstatSync(path, { throwIfNoEntry: false })
    if (!stat) mkdirSync(path)
    else if (!stat.isDirectory())
      throw new CoracleError('INVALID_ARGUMENT', `the archive has an entry behind a link or file: ${name}`)
  }
  return join(path, parts.at(-1) ?? '.')
}

function make(entry: TarEntry, path: string, folder: string, rename: UnpackOptions['rename']): void {
  const stat = lstatSync(path, { throwIfNoEntry: false })
  if (entry.type === 'directory') {
    if (stat?.isDirectory()) return
    if (stat) throw new CoracleError('INVALID_ARGUMENT', `cannot replace ${path}, which is no folder`)
    mkdirSync(path)
    return
  }
  if (stat?.isDirectory())
    throw new CoracleError('INVALID_ARGUMENT', `cannot replace the folder ${path} by what is none`)
  rmSync(path, { force: true })
  if (entry.type === 'symlink') symlinkSync(text(entry.linkName), path)
  else if (entry.type === 'link') {
    const target = rename(text(entry.linkName))
    if (target !== undefined) linkSync(way(folder, target), path)
  } else if (entry.type !== 'file')
    throw new CoracleError('INVALID_ARGUMENT', `${path} is a device or a pipe, which is not copied`)
}

function settle(path: string, { type, mode, uid, gid, mtime }: TarEntry, owners: boolean): void {
  if (owners) lchownSync(path, uid, gid)
  // Never set-user-id for whoever runs this: the container decides what is in the file.
  if (type !== 'symlink') chmodSync(path, mode & (owners ? 0o7777 : 0o777))
  lutimesSync(path, mtime, mtime)
}
