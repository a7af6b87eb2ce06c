import { closeSync, openSync, readSync } from 'node:fs'
import { posix } from 'node:path'
import { CoracleError } from '../../errors.js'
import { decompress } from '../../image/decompress.js'
import { type TarEntry, isTarHeader } from '../../image/tar.js'
import { OWN_ENTRY } from '../../image/tar-writer.js'
import { BuildContext, type ContextEntry } from './context.js'
import type { CopiedTree } from './copy.js'
import { download, type DownloadOptions } from './download.js'

/*
 * What ADD and COPY take beside the context's and an image's files: here-documents, archives that are unpacked, and
 * what lies at an address.
 */

const CHUNK = 256 * 1024
const BLOCK = 512

/** A tree that holds a file of ours open. */
export type OpenTree = CopiedTree & Disposable

function fileTree(
  name: string,
  told: Partial<TarEntry>,
  digest: string,
  content: () => Iterable<Buffer>,
): CopiedTree {
  const entry: TarEntry = {
    ...OWN_ENTRY,
    name,
    mtime: Math.floor(Date.now() / 1000),
    ...told,
  }
  const entries: ContextEntry[] = [{ name: '', offset: 0, digest, entry }]
  return { name, isFolder: false, entries, content }
}

/** A here-document as a file. */
export function textTree(name: string, text: string): CopiedTree {
  const bytes = Buffer.from(text)
  return fileTree(name, { size: bytes.length }, text, () => [bytes])
}

/**
 * The file at an address (Dockerfile reference, "ADD"): root's, and nobody else's to read.
 * @param isFolder it goes into a folder, so it must have a name
 * @throws CoracleError BUILD_FAILED, INVALID_ARGUMENT
 */
export async function remoteTree(
  address: string,
  {
    checksum,
    isFolder,
    scratch,
    ...options
  }: DownloadOptions & {
    /** `sha256:` and what its content must be. */
    readonly checksum: string | undefined
    readonly isFolder: boolean
    /** A new file's path. */
    readonly scratch: string
  },
): Promise<OpenTree> {
  if (!URL.canParse(address))
    throw new CoracleError('INVALID_ARGUMENT', `ADD: ${address.slice(0, 128)} is no address`)
  const { pathname } = new URL(address)
  const name = safeName(pathname.endsWith('/') ? '' : posix.basename(pathname))
  if (isFolder && name === '')
    throw new CoracleError('INVALID_ARGUMENT', `cannot determine filename from url: ${address.slice(0, 128)}`)
  const { size, digest, mtime } = await download(address, scratch, options)
  if (checksum !== undefined && checksum !== `sha256:${digest}`)
    throw new CoracleError(
      'BUILD_FAILED',
      `${address.slice(0, 256)}: its digest is sha256:${digest}, and --checksum says ${checksum}`,
    )
  const fd = openSync(scratch, 'r')
  const content = function* (): Generator<Buffer> {
    for (let at = 0; at < size; at += CHUNK) {
      const bytes = Buffer.alloc(Math.min(CHUNK, size - at))
      readSync(fd, bytes, 0, bytes.length, at)
      yield bytes
    }
  }
  return {
    ...fileTree(name, { size, mtime, mode: 0o600 }, digest, content),
    [Symbol.dispose]: () => closeSync(fd),
  }
}

/** A name out of an address; empty where it is none for a file. */
function safeName(text: string): string {
  let name = text
  try {
    name = decodeURIComponent(text)
  } catch {
    // Then it is called what it says.
  }
  return name === '.' || name === '..' || /[/\0]/.test(name) || Buffer.byteLength(name) > 255 ? '' : name
}

/**
 * What is in a file that is an archive: a tar, plain or compressed with gzip, zstd or xz, whatever it is called.
 * @param scratch folder for its contents
 * @returns undefined for any other file
 * @throws CoracleError IMAGE_ARCHIVE, IMAGE_TOO_LARGE for an archive that is wrong
 */
export async function unpackedTree(
  tree: CopiedTree,
  scratch: string,
  signal: AbortSignal,
): Promise<OpenTree | undefined> {
  const [file] = tree.entries
  if (tree.isFolder || file?.entry.type !== 'file' || !(await isArchive(tree, file))) return undefined
  const archive = await BuildContext.read(bytesOf(tree, file), scratch, {
    name: tree.name,
    strict: true,
    signal,
  })
  return {
    name: tree.name,
    isFolder: true,
    keepsOwners: true,
    entries: [...archive.below('')],
    content: (entry) => archive.content(entry),
    [Symbol.dispose]: () => archive[Symbol.dispose](),
  }
}

async function isArchive(tree: CopiedTree, file: ContextEntry): Promise<boolean> {
  if (file.entry.size < 20) return false
  const head: Buffer[] = []
  let length = 0
  try {
    for await (const chunk of decompress(bytesOf(tree, file), tree.name, true)) {
      head.push(chunk)
      if ((length += chunk.length) >= BLOCK) break
    }
  } catch (error) {
    if (error instanceof CoracleError) return false
    throw error
  }
  return isTarHeader(Buffer.concat(head))
}

async function* bytesOf(tree: CopiedTree, file: ContextEntry): AsyncGenerator<Buffer> {
  yield* tree.content(file)
}
