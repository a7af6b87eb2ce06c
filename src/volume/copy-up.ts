import { execFile, spawn } from 'node:child_process'
import { chmodSync, chownSync, mkdirSync } from 'node:fs'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { promisify } from 'node:util'
import { CoracleError } from '../errors.js'
import { buildAgent } from '../firmware/index.js'
import { ImageFiles } from '../image/image-files.js'
import { S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG } from '../image/inode.js'
import { TAR_END, tarHeader, tarPadding } from '../image/tar-writer.js'
import type { TarEntry } from '../image/tar.js'
import type { RootLayer } from '../isolation/sandbox.js'

const run = promisify(execFile)

const TYPES: Readonly<Record<number, TarEntry['type'] | undefined>> = {
  [S_IFREG]: 'file',
  [S_IFLNK]: 'symlink',
  [S_IFDIR]: 'directory',
  [S_IFIFO]: 'fifo',
}

/**
 * Puts what an image has in a folder into a folder of the host, with that folder's owner and mode. The files come out
 * of the image's layers without a mount, and are written by a process whose root is the new folder, so that no name or
 * link in an image leads out of it. Devices are left out.
 * @param path in the image
 * @param folder made where it is missing
 * @returns false where the image has no folder there: then nothing was done
 * @throws CoracleError SANDBOX_FAILED where something cannot be written
 */
export async function copyUp(layers: readonly RootLayer[], path: string, folder: string): Promise<boolean> {
  using files = new ImageFiles(layers)
  const { path: real, node } = files.resolve(path)
  if (!node || (node.mode & S_IFMT) !== S_IFDIR) return false
  mkdirSync(folder, { recursive: true })
  const child = spawn(await buildAgent(), ['extract', folder, '0', '/'], {
    cwd: '/',
    env: {},
    stdio: ['pipe', 'pipe', 'ignore'],
  })
  let answer = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (answer += text))
  const ended = new Promise<number | null>((resolve, reject) =>
    child.on('close', resolve).on('error', reject),
  )
  ended.catch(() => undefined)
  // Where it ends early its answer says why.
  await pipeline(Readable.from(archive(files, real), { objectMode: false }), child.stdin).catch(
    () => undefined,
  )
  if ((await ended) !== 0)
    throw new CoracleError(
      'SANDBOX_FAILED',
      `cannot copy the image's ${real} into the volume: ${answer.trim() || 'it broke off'}`,
    )
  chownSync(folder, node.uid, node.gid)
  chmodSync(folder, node.mode & 0o7777)
  await run('sync', ['--file-system', folder])
  return true
}

function* archive(files: ImageFiles, path: string): Generator<Buffer> {
  for (const { name, node, size, target, content } of files.tree(path)) {
    const type = TYPES[node.mode & S_IFMT]
    if (!type) continue
    yield tarHeader({
      name: latin1(type === 'directory' ? `${name}/` : name),
      type,
      mode: node.mode & 0o7777,
      uid: node.uid,
      gid: node.gid,
      size,
      mtime: Math.max(0, node.mtime),
      mtimeNsec: 0,
      linkName: latin1(target),
      major: 0,
      minor: 0,
      xattrs: undefined,
    })
    if (type !== 'file') continue
    yield* content()
    yield tarPadding(size)
  }
  yield TAR_END
}

const latin1 = (text: string): string => Buffer.from(text).toString('latin1')
