import { readdirSync, lstatSync } from 'node:fs'
import { join } from 'node:path'
import { sandboxFiles } from './files.js'
import type { SandboxSpec } from './sandbox.js'

/** Files that are looked at: a container may make any number of them. */
const MAX_FILES = 100_000
const BLOCK = 512

/** Bytes on disk that a container's writable layer takes; of one with very many files, a part. */
export function writtenBytes(spec: SandboxSpec): number {
  const { disk, writable } = sandboxFiles(spec)
  if (spec.isolation === 'microvm') return (lstatSync(disk, { throwIfNoEntry: false })?.blocks ?? 0) * BLOCK
  let bytes = 0
  let files = 0
  for (const folders = [join(writable, 'upper')]; folders.length > 0 && files < MAX_FILES;) {
    const folder = folders.pop()!
    try {
      for (const entry of readdirSync(folder, { withFileTypes: true })) {
        const path = join(folder, entry.name)
        bytes += (lstatSync(path, { throwIfNoEntry: false })?.blocks ?? 0) * BLOCK
        if (entry.isDirectory()) folders.push(path)
        if (++files >= MAX_FILES) break
      }
    } catch {
      // Not made yet, or gone meanwhile.
    }
  }
  return bytes
}
