import { existsSync, mkdirSync, rmSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** A file for each cgroup that was made here for sandboxes to lie in, on a tmpfs: it is gone with the boot, as they are. */
const MADE = '/run/coracle-cgroups'

const noteOf = (path: string): string => join(MADE, encodeURIComponent(path))

/** `/a`, `/a/b`. */
function prefixes(path: string): string[] {
  const names = path.split('/').slice(1)
  return names.map((_, i) => `/${names.slice(0, i + 1).join('/')}`)
}

/** Makes a cgroup for others to lie in, where it is missing. @param roots folders of the hierarchies @throws Error */
export function makeParents(path: string, roots: readonly string[]): void {
  mkdirSync(MADE, { recursive: true, mode: 0o700 })
  for (const prefix of prefixes(path)) {
    const missing = roots.filter((root) => !existsSync(join(root, prefix)))
    // Noted first: one that nobody knows to be ours would stay. What somebody made before us is theirs.
    if (missing.length === roots.length) writeFileSync(noteOf(prefix), '')
    for (const root of missing) mkdirSync(join(root, prefix), { recursive: true })
  }
}

/** Removes what {@link makeParents} made of it and nobody lies in any more. */
export function removeParents(path: string, roots: readonly string[]): void {
  for (const prefix of prefixes(path).reverse()) {
    if (!existsSync(noteOf(prefix))) return
    const left = roots.map((root) => join(root, prefix)).filter((folder) => !removed(folder))
    if (left.length > 0) return
    rmSync(noteOf(prefix), { force: true })
  }
}

function removed(folder: string): boolean {
  try {
    rmdirSync(folder)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT'
  }
}
