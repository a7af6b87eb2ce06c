import { lstatSync, readFileSync, readlinkSync, type Stats } from 'node:fs'
import { join } from 'node:path'

/** The kernel's own limit on links in one path (MAXSYMLINKS). */
const MAX_LINKS = 40

/**
 * The text of a regular file of a mounted root file system; empty where there is none or it is larger than `limit`.
 */
export function readRootFile(root: string, path: string, limit: number): string {
  const file = resolveInRoot(root, path)
  if (file === undefined || file.size > limit) return ''
  return readFileSync(file.path, 'utf8')
}

/** Where a regular file of a root file system is on the host, its links followed as the container would see them. */
function resolveInRoot(root: string, path: string): { path: string; size: number } | undefined {
  const pending = path.split('/').reverse()
  const done: string[] = []
  let stat: Stats | undefined
  for (let links = 0; pending.length > 0;) {
    const part = pending.pop()!
    if (part === '' || part === '.') continue
    if (part === '..') {
      done.pop()
      continue
    }
    const at = join(root, ...done, part)
    stat = lstatSync(at, { throwIfNoEntry: false })
    if (stat === undefined) return undefined
    if (!stat.isSymbolicLink()) {
      done.push(part)
      continue
    }
    if (++links > MAX_LINKS) return undefined
    const target = readlinkSync(at)
    if (target.startsWith('/')) done.length = 0
    pending.push(...target.split('/').reverse())
  }
  return stat?.isFile() ? { path: join(root, ...done), size: stat.size } : undefined
}
