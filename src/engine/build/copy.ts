import { basename, dirname, posix } from 'node:path'
import { CoracleError } from '../../errors.js'
import type { ImageFiles, ImageNode } from '../../image/image-files.js'
import { OWN_ENTRY, TAR_END, tarHeader, tarPadding } from '../../image/tar-writer.js'
import type { TarEntry } from '../../image/tar.js'
import { type BuildContext, type ContextEntry, nameOf } from './context.js'
import { patternOf } from './match.js'

const S_IFMT = 0o170000
const S_IFDIR = 0o040000

/** Where sources come from: the build's context, or another image's files. */
export interface CopySource {
  /** The entries that a pattern means. @throws CoracleError INVALID_ARGUMENT where it means none */
  match(pattern: string): CopiedTree[]
}

/** One thing to copy: a file, or a folder's contents. */
export interface CopiedTree {
  /** Its last name, for a target that is a folder. */
  readonly name: string
  readonly isFolder: boolean
  /** Of a folder: what is in it, names relative to it. Of a file: itself alone. */
  readonly entries: readonly ContextEntry[]
  /** All in it stays whose it is, unless an owner was named. */
  readonly keepsOwners?: boolean
  content(entry: ContextEntry): Iterable<Buffer>
}

/** The context's files as sources. */
export function contextSource(context: BuildContext): CopySource {
  const tree = (path: string): CopiedTree => {
    const isFolder = context.isFolder(path)
    const found = isFolder ? undefined : context.find(path)
    return {
      name: basename(path),
      isFolder,
      entries: isFolder ? [...context.below(path)] : found ? [{ ...found, name: '' }] : [],
      content: (entry) => context.content(entry),
    }
  }
  return {
    match: (pattern) => {
      const path = nameOf(Buffer.from(pattern).toString('latin1'))
      const names = /[*?[\\]/.test(path)
        ? [...topNames(context)].filter((name) => patternOf(path).test(name)).sort()
        : context.isFolder(path) || context.find(path)
          ? [path]
          : []
      if (names.length === 0)
        throw new CoracleError(
          'INVALID_ARGUMENT',
          `${pattern.slice(0, 128)}: not found in the build's context`,
        )
      return names.map(tree)
    },
  }
}

const TYPES: Readonly<Record<number, TarEntry['type']>> = {
  0o100000: 'file',
  0o120000: 'symlink',
  0o040000: 'directory',
  0o010000: 'fifo',
}

/** Another image's files as sources. */
export function imageSource(files: ImageFiles): CopySource {
  return {
    match: (pattern) => {
      const { path, node } = files.resolve(pattern)
      if (!node)
        throw new CoracleError('INVALID_ARGUMENT', `${pattern.slice(0, 128)}: not found in that image`)
      const contents = new Map<ContextEntry, () => Iterable<Buffer>>()
      const entries: ContextEntry[] = []
      for (const { name, node: each, size, target, content } of files.tree(path)) {
        const type = TYPES[each.mode & S_IFMT]
        if (!type) continue
        const entry: TarEntry = {
          name: '',
          type,
          mode: each.mode & 0o7777,
          uid: each.uid,
          gid: each.gid,
          size,
          mtime: Math.max(0, each.mtime),
          mtimeNsec: 0,
          linkName: Buffer.from(target).toString('latin1'),
          major: 0,
          minor: 0,
          xattrs: undefined,
        }
        const found = { name, entry, offset: 0, digest: '' }
        entries.push(found)
        contents.set(found, content)
      }
      const isFolder = (node.mode & S_IFMT) === S_IFDIR
      return [{ name: basename(path), isFolder, entries, content: (entry) => contents.get(entry)!() }]
    },
  }
}

/** Every name, those of folders that only their members tell of among them. */
function topNames(context: BuildContext): Set<string> {
  const names = new Set<string>()
  for (const name of context.entries.keys())
    for (let at = name; at !== '' && at !== '.' && !names.has(at); at = dirname(at)) names.add(at)
  return names
}

export interface CopyOptions {
  /** Where to, as it stands in the Dockerfile, expanded. */
  readonly target: string
  readonly workingDirectory: string
  /** Whose all is; undefined keeps each entry's own. An `asked` one holds for trees that keep their owners too. */
  readonly owner: { readonly uid: number; readonly gid: number; readonly asked?: boolean } | undefined
  /** Permission bits of files and folders, in place of their own. */
  readonly mode: number | undefined
}

/**
 * A layer that puts trees into an image. Folders on the way that the image has keep what they are.
 * @param files of the image as it is
 * @throws CoracleError INVALID_ARGUMENT
 */
export function* copyLayer(
  trees: readonly CopiedTree[],
  files: ImageFiles,
  { target, workingDirectory, owner, mode }: CopyOptions,
): Generator<Buffer> {
  const absolute = posix.resolve(workingDirectory, target)
  const { path, node } = files.resolve(absolute)
  const isFolder = node !== undefined && (node.mode & S_IFMT) === S_IFDIR
  const many = trees.length > 1 || /(^|\/)\.?$/.test(target)
  if (trees.length > 1 && !/(^|\/)\.?$/.test(target))
    throw new CoracleError(
      'INVALID_ARGUMENT',
      'when more than one source is copied, the destination must be a folder and end with a /',
    )
  const told = new Set<string>()
  for (const tree of trees) {
    const into = tree.isFolder || many || isFolder
    if (tree.isFolder && node && !isFolder)
      throw new CoracleError('INVALID_ARGUMENT', `cannot copy a folder over ${path}, which is none`)
    const base = tree.isFolder ? path : into ? posix.join(path, tree.name) : path
    yield* parents(tree.isFolder ? posix.join(base, 'x') : base, files, told)
    for (const each of tree.entries) {
      const name = each.name === '' ? base : posix.join(base, each.name)
      yield* parents(name, files, told)
      const { entry } = each
      if (entry.type === 'directory' && told.has(name)) continue
      if (entry.type === 'directory') told.add(name)
      yield* entryOf(each, name, tree.keepsOwners && !owner?.asked ? undefined : owner, mode, tree)
    }
  }
  yield TAR_END
}

/** A tree as a tar of its own: a folder's contents, or one file that is called `file`. Pipes are left out. */
export function* treeTar(tree: CopiedTree): Generator<Buffer> {
  for (const each of tree.entries) {
    if (!['file', 'link', 'symlink', 'directory'].includes(each.entry.type)) continue
    yield* entryOf(each, `/${each.name === '' ? 'file' : each.name}`, undefined, undefined, tree)
  }
  yield TAR_END
}

function* entryOf(
  each: ContextEntry,
  name: string,
  owner: CopyOptions['owner'],
  mode: number | undefined,
  tree: CopiedTree,
): Generator<Buffer> {
  const { entry } = each
  // A link to a file that is copied as well is copied as that file.
  const type = entry.type === 'link' ? 'file' : entry.type
  yield tarHeader({
    ...entry,
    type,
    name: latin1(type === 'directory' ? `${name.slice(1)}/` : name.slice(1)),
    uid: owner?.uid ?? entry.uid,
    gid: owner?.gid ?? entry.gid,
    mode: mode === undefined || type === 'symlink' ? entry.mode : mode,
    linkName: type === 'symlink' ? entry.linkName : '',
  })
  if (type !== 'file') return
  yield* tree.content(each)
  yield tarPadding(entry.size)
}

const latin1 = (text: string): string => Buffer.from(text).toString('latin1')

/** The folders above a path, each told once: as the image has them, or new ones of root's. */
export function* parents(path: string, files: ImageFiles, told: Set<string>): Generator<Buffer> {
  const above: string[] = []
  for (let at = dirname(path); at !== '/' && at !== '.'; at = dirname(at)) above.unshift(at)
  for (const folder of above) {
    if (told.has(folder)) continue
    told.add(folder)
    yield folderEntry(folder, files.resolve(folder).node)
  }
}

/** A folder's entry. @param node what the image has there */
export function folderEntry(path: string, node: ImageNode | undefined): Buffer {
  const now = Math.floor(Date.now() / 1000)
  const known = node && (node.mode & S_IFMT) === S_IFDIR ? node : { mode: 0o755, uid: 0, gid: 0, mtime: now }
  const entry: TarEntry = {
    ...OWN_ENTRY,
    name: latin1(`${path.slice(1)}/`),
    type: 'directory',
    mode: known.mode & 0o7777,
    uid: known.uid,
    gid: known.gid,
    mtime: Math.max(0, known.mtime),
  }
  return tarHeader(entry)
}

/** What the cache knows a copy by: names, kinds, modes and contents; times do not count. */
export function copyDigest(trees: readonly CopiedTree[]): unknown {
  return trees.map(({ name, isFolder, entries }) => [
    name,
    isFolder,
    entries.map(({ name: inner, entry, digest }) => [inner, entry.type, entry.mode, entry.linkName, digest]),
  ])
}
