import {
  closeSync,
  fchmodSync,
  fsyncSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { basename, dirname, join } from 'node:path'

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
  } finally {
    closeSync(fd)
  }
  renameSync(temporary, path)
  syncFolder(dirname(path))
}

/** Removes what crashes during {@link replaceFile} left. For who holds the lock under which `path` is replaced. */
export function sweepReplaced(path: string): void {
  const folder = dirname(path)
  for (const name of readdirSync(folder))
    if (name.startsWith(`${basename(path)}.`) && name.endsWith(REPLACING)) rmSync(join(folder, name))
}
