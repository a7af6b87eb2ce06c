import {
  closeSync,
  existsSync,
  fchmodSync,
  fstatSync,
  fsyncSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { Fd, O_CREAT, O_WRONLY, SysError, exchange } from '@coracle/sys'

/** How the name of a file ends that {@link replaceFile} is writing. */
export const REPLACING = '.new'

/** Makes a folder's entries survive a crash. */
export function syncFolder(path: string): void {
  const fd = openSync(path, 'r')
  try {
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
}

/**
 * Replaces a file as a whole: after a crash at any instruction it has its old content or its new one.
 * The temporary file beside it is named after the process, so that two of them do not write the same one.
 * @param mode whatever the umask
 */
export function replaceFile(path: string, content: string, mode = 0o600): void {
  const temporary = `${path}.${process.pid}${REPLACING}`
  const fd = openSync(temporary, 'w', mode)
  try {
    // One that a crash left has its own mode.
    fchmodSync(fd, mode)
    const bytes = Buffer.from(content)
    for (let at = 0; at < bytes.length;) at += writeSync(fd, bytes, at)
    fsyncSync(fd)
    renameSync(temporary, path)
  } catch (error) {
    // A full disk must not be fuller by it.
    rmSync(temporary, { force: true })
    throw error
  } finally {
    closeSync(fd)
  }
  syncFolder(dirname(path))
}

/** Room that a file has for a longer content, in bytes, and that it gets in steps of. */
const SLACK = 1024
const BLOCK = 4096

/**
 * As {@link replaceFile}, but once the file is there also on a disk that is full: the new content is written over a file
 * beside it that is as large, with blanks at its end, and the two swap their names. For who holds the lock under which
 * `path` is replaced.
 */
export function replaceInRoom(path: string, content: string): void {
  const room = `${path}.room`
  fillRoom(room, content)
  if (!existsSync(path)) {
    renameSync(room, path)
    fillRoom(room, content)
  } else
    try {
      exchange(room, path)
    } catch (error) {
      // A file system that cannot.
      if (!(error instanceof SysError && error.code === 'EINVAL')) throw error
      renameSync(room, path)
    }
  syncFolder(dirname(path))
}

function fillRoom(path: string, content: string): void {
  using file = Fd.open(path, O_WRONLY | O_CREAT, 0o600)
  const { size } = fstatSync(file.number)
  const length = Buffer.byteLength(content)
  const bytes = Buffer.alloc(length <= size ? size : Math.ceil((length + SLACK) / BLOCK) * BLOCK, ' ')
  bytes.write(content)
  for (let at = 0; at < bytes.length;) at += writeSync(file.number, bytes, at, bytes.length - at, at)
  fsyncSync(file.number)
}

/** Removes what crashes during {@link replaceFile} left. For who holds the lock under which `path` is replaced. */
export function sweepReplaced(path: string): void {
  const folder = dirname(path)
  for (const name of readdirSync(folder))
    if (name.startsWith(`${basename(path)}.`) && name.endsWith(REPLACING)) rmSync(join(folder, name))
}
