import { closeSync, constants, fstatSync, openSync, readSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { OWN_ENTRY, TAR_END, tarHeader, tarPadding } from '../../image/tar-writer.js'
import type { TarEntry } from '../../image/tar.js'
import type { Git } from './git.js'

const CHUNK = 256 * 1024

/**
 * `.git` of a working tree, as a tar: the one commit, checked out and without its history, and where it came
 * from. The bare repository is not of use as such any more.
 */
export async function gitFolder(git: Git, url: URL, commit: string): Promise<AsyncIterable<Uint8Array>> {
  rmSync(join(git.folder, 'info'), { recursive: true, force: true })
  await git.run(['update-ref', '--no-deref', 'HEAD', commit])
  await git.run(['read-tree', commit])
  for (const [name, value] of [
    ['core.bare', 'false'],
    ['remote.origin.url', url.href],
    ['remote.origin.fetch', '+refs/heads/*:refs/remotes/origin/*'],
  ] as const)
    await git.run(['config', name, value])
  return tarOf(git.folder)
}

/** Files and folders; of links there are none, and none is followed. */
async function* tarOf(root: string): AsyncGenerator<Buffer> {
  yield tarHeader({ ...OWN_ENTRY, name: '.git', type: 'directory', mode: 0o755 })
  const found = readdirSync(root, { recursive: true, withFileTypes: true, encoding: 'utf8' })
  for (const each of found) {
    const path = join(each.parentPath, each.name)
    const told = { ...OWN_ENTRY, name: Buffer.from(`.git${path.slice(root.length)}`).toString('latin1') }
    if (each.isDirectory()) yield tarHeader({ ...told, type: 'directory', mode: 0o755 })
    else if (each.isFile()) yield* file(path, told)
  }
  yield TAR_END
}

function* file(path: string, told: TarEntry): Generator<Buffer> {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW)
  try {
    const { size, mtimeMs } = fstatSync(fd)
    yield tarHeader({ ...told, size, mtime: Math.floor(mtimeMs / 1000) })
    for (let at = 0; at < size;) {
      const bytes = Buffer.alloc(Math.min(CHUNK, size - at))
      const length = readSync(fd, bytes, 0, bytes.length, at)
      if (length === 0) throw new Error(`${path} became shorter`)
      yield bytes.subarray(0, length)
      at += length
    }
    yield tarPadding(size)
  } finally {
    closeSync(fd)
  }
}
