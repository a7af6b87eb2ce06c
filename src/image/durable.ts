import { closeSync, fchmodSync, fsyncSync, openSync, renameSync, writeSync } from 'node:fs'
import { dirname } from 'node:path'

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
 * Only one writer at a time: the temporary file beside it has a fixed name.
 */
export function replaceFile(path: string, content: string, mode = 0o644): void {
  const temporary = `${path}.tmp`
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
