import { dirname } from 'node:path'
import type { ImageFiles } from '../../image/image-files.js'
import type { EntryChange } from '../../image/tar-stream.js'
import type { TarEntry } from '../../image/tar.js'

/**
 * Leaves out of a layer what was made only for something to be mounted on: empty files and folders that the image does
 * not have, and the folders above them where nothing else came into them.
 * @param targets of mounts, absolute
 */
export function withoutStubs(targets: readonly string[], files: ImageFiles): EntryChange {
  const stubs = new Set<string>()
  const above = new Set<string>()
  for (const target of targets) {
    const { path, node } = files.resolve(target)
    if (node) continue
    stubs.add(key(path))
    for (let at = dirname(path); at !== '/' && !files.resolve(at).node; at = dirname(at)) above.add(key(at))
  }
  const waiting = new Map<string, TarEntry>()
  return (entry) => {
    const name = entry.name.replace(/^(\.?\/)+/, '').replace(/\/$/, '')
    if (stubs.has(name) && entry.size === 0 && (entry.type === 'file' || entry.type === 'directory'))
      return undefined
    if (above.has(name) && entry.type === 'directory') {
      waiting.set(name, entry)
      return undefined
    }
    const before: TarEntry[] = []
    for (let at = dirname(name); waiting.size > 0 && at !== '.'; at = dirname(at)) {
      const folder = waiting.get(at)
      if (folder) before.unshift(folder)
      waiting.delete(at)
    }
    return [...before, entry]
  }
}

/** A path as the tar of a layer has it: bytes, without a slash at its beginning. */
const key = (path: string): string => Buffer.from(path.slice(1)).toString('latin1')
