import { badArchive, tooLarge } from './archive-error.js'
import {
  encodeDevice,
  S_IFBLK,
  S_IFCHR,
  S_IFDIR,
  S_IFIFO,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
  XATTR_PREFIXES,
  type Inode,
} from './inode.js'
import type { ImageLimits } from './limits.js'
import type { TarEntry } from './tar.js'

const MAX_NAME = 255
const MAX_PATH = 4096
/** A symbolic link with its terminator fits a page. */
const MAX_TARGET = 4095
const MAX_ID = 0xfffffffe
/** What `struct erofs_inode` and its u16 count of attribute words can hold. */
const MAX_XATTR_BYTES = 65535
const MAX_XATTRS_BYTES = 4 * 65000
const WHITEOUT = '.wh.'
const WHITEOUT_META = '.wh..wh.'
const OPAQUE = '.wh..wh..opq'

const TYPE_BITS = {
  file: S_IFREG,
  symlink: S_IFLNK,
  character: S_IFCHR,
  block: S_IFBLK,
  directory: S_IFDIR,
  fifo: S_IFIFO,
} as const

/**
 * The files of one layer, built entry by entry and checked as they come. The paths lead nowhere but into this tree:
 * the host's file system never sees them. Whiteouts and opaque folders (OCI image-spec layer.md) become overlayfs's.
 */
export class LayerTree {
  readonly root: Inode = folder()
  /** Entries that say something, for telling an empty layer. */
  #count = 0
  #implied = 0
  #metadata = 0
  readonly #limits: ImageLimits
  readonly #opaque = new Set<Inode>()
  readonly #whiteouts = new Map<Inode, Set<string>>()

  constructor(limits: ImageLimits) {
    this.#limits = limits
  }

  /** Whether the layer changes nothing. */
  get empty(): boolean {
    return this.#count === 0
  }

  /** Whether the layer hides all layers below it: overlayfs heeds no opaque mark on a layer's root. */
  get opaque(): boolean {
    return this.#opaque.has(this.root)
  }

  /**
   * Puts an entry in its place.
   * @returns the regular file whose content follows; undefined where the entry has none or it is to be dropped
   * @throws CoracleError IMAGE_ARCHIVE, IMAGE_TOO_LARGE
   */
  add(entry: TarEntry): Inode | undefined {
    const path = splitPath(entry.name, entry.name)
    if (path.some((name) => name.startsWith(WHITEOUT_META) && name !== OPAQUE)) return undefined
    this.#charge(entry)
    if (path.length === 0) {
      if (entry.type !== 'directory') throw badArchive(entry.name, 'the root of a layer can only be a folder')
      this.#describe(this.root, entry)
      // A bare root says nothing: every layer made by tar begins with one.
      return undefined
    }
    this.#count++
    const name = path.pop()!
    const parent = this.#parent(path, entry.name)
    if (name.startsWith(WHITEOUT)) {
      this.#whiteout(parent, name, entry.name)
      return undefined
    }
    const existing = parent.entries!.get(name)
    if (entry.type === 'link') {
      const target = this.#linkTarget(entry)
      if (existing && existing !== target)
        throw badArchive(entry.name, 'the layer holds this name twice, once as a hard link')
      parent.entries!.set(name, target)
      return undefined
    }
    const bits = TYPE_BITS[entry.type]
    if (existing && (existing.mode & S_IFMT) !== bits)
      throw badArchive(entry.name, 'the layer holds this name twice, with different types')
    if (existing?.entries) {
      this.#describe(existing, entry)
      return undefined
    }
    const inode = entry.type === 'directory' ? folder() : { ...folder(), mode: bits }
    if (entry.type !== 'directory') delete inode.entries
    this.#describe(inode, entry)
    if (entry.type === 'symlink') inode.target = symlinkTarget(entry)
    if (entry.type === 'character' || entry.type === 'block') {
      if (!(entry.major >= 0 && entry.major <= 0xfff && entry.minor >= 0 && entry.minor <= 0xfffff))
        throw badArchive(entry.name, `there is no device ${entry.major}:${entry.minor}`)
      inode.rdev = encodeDevice(entry.major, entry.minor)
    }
    parent.entries!.set(name, inode)
    return entry.type === 'file' ? inode : undefined
  }

  /** After the last entry: turns whiteouts and opaque folders into overlayfs's marks. */
  finish(): void {
    const whiteout: Inode = { ...folder(), mode: S_IFCHR }
    delete whiteout.entries
    for (const [parent, names] of this.#whiteouts) {
      for (const name of names) {
        const existing = parent.entries!.get(name)
        // What a layer itself brings its whiteouts do not hide, but nothing of the layers below shows through.
        if (existing?.entries) this.#opaque.add(existing)
        else if (!existing && !this.#opaque.has(parent)) parent.entries!.set(name, whiteout)
      }
    }
    for (const inode of this.#opaque) {
      if (inode === this.root) continue
      inode.xattrs ??= new Map<string, Buffer>()
      inode.xattrs.set('trusted.overlay.opaque', Buffer.from('y'))
    }
  }

  #charge(entry: TarEntry): void {
    this.#metadata += entry.name.length + entry.linkName.length
    for (const [name, value] of entry.xattrs ?? []) this.#metadata += name.length + value.length
    if (this.#metadata > this.#limits.metadata)
      throw tooLarge(
        entry.name,
        `names and attributes of more than ${this.#limits.metadata} bytes in one layer`,
      )
  }

  /**
   * The folder at `path`; folders without an entry of their own come to be, as tar makes them: root's, mode 755. What a
   * layer below says of such a folder is not seen from here, since a root layer stands for its diffID alone.
   */
  #parent(path: string[], entry: string): Inode {
    let at = this.root
    for (const name of path) {
      if (name.startsWith(WHITEOUT)) throw badArchive(entry, 'it lies inside a whiteout')
      let next = at.entries!.get(name)
      if (!next) {
        // One entry's name can make two thousand folders.
        if (++this.#implied > this.#limits.entries)
          throw tooLarge(entry, `more than ${this.#limits.entries} folders in one layer`)
        next = folder()
        at.entries!.set(name, next)
      }
      if (!next.entries)
        throw badArchive(
          entry,
          (next.mode & S_IFMT) === S_IFLNK
            ? `its folder ${name} is a symbolic link in the same layer`
            : `its folder ${name} is not a folder in the same layer`,
        )
      at = next
    }
    return at
  }

  #linkTarget(entry: TarEntry): Inode {
    const path = splitPath(entry.linkName, entry.name, 'its hard link')
    let target: Inode | undefined = this.root
    for (const name of path) target = target?.entries?.get(name)
    if (!target) throw badArchive(entry.name, 'a hard link to a file that is not before it in the layer')
    if (target.entries) throw badArchive(entry.name, 'a hard link to a folder')
    return target
  }

  #whiteout(parent: Inode, name: string, entry: string): void {
    if (name === OPAQUE) {
      this.#opaque.add(parent)
      return
    }
    const hidden = name.slice(WHITEOUT.length)
    if (hidden === '' || hidden === '.' || hidden === '..') throw badArchive(entry, 'a whiteout of no name')
    const names = this.#whiteouts.get(parent) ?? new Set()
    this.#whiteouts.set(parent, names.add(hidden))
  }

  /** Owner, mode, time and attributes. */
  #describe(inode: Inode, entry: TarEntry): void {
    for (const [what, id] of [
      ['user', entry.uid],
      ['group', entry.gid],
    ] as const)
      if (!(id >= 0 && id <= MAX_ID)) throw badArchive(entry.name, `there is no ${what} id ${id}`)
    inode.mode = (inode.mode & S_IFMT) | entry.mode
    inode.uid = entry.uid
    inode.gid = entry.gid
    inode.mtime = entry.mtime
    inode.mtimeNsec = entry.mtimeNsec
    inode.size = entry.size
    inode.xattrs = keepXattrs(entry)
  }
}

function folder(): Inode {
  return {
    mode: S_IFDIR | 0o755,
    uid: 0,
    gid: 0,
    mtime: 0,
    mtimeNsec: 0,
    size: 0,
    block: 0,
    rdev: 0,
    entries: new Map(),
  }
}

/**
 * The names that lead to a path from the layer's root. A leading `/` or `./` means nothing, as with Docker.
 * @param entry for the error
 */
function splitPath(path: string, entry: string, what = 'its name'): string[] {
  if (path.includes('\0')) throw badArchive(entry.replaceAll('\0', '?'), `${what} holds a NUL`)
  if (path.length > MAX_PATH) throw badArchive(entry, `${what} is longer than ${MAX_PATH} bytes`)
  const names: string[] = []
  for (const name of path.split('/')) {
    if (name === '' || name === '.') continue
    if (name === '..') {
      if (names.pop() === undefined) throw badArchive(entry, `${what} leads out of the layer by ".."`)
      continue
    }
    if (name.length > MAX_NAME) throw badArchive(entry, `${what} has a part longer than ${MAX_NAME} bytes`)
    names.push(name)
  }
  return names
}

function symlinkTarget(entry: TarEntry): Buffer {
  const { linkName } = entry
  if (linkName === '' || linkName.includes('\0') || linkName.length > MAX_TARGET)
    throw badArchive(entry.name, `a symbolic link whose target is not 1 to ${MAX_TARGET} bytes without NUL`)
  return Buffer.from(linkName, 'latin1')
}

/**
 * The attributes that a layer may set. Those by which overlayfs would be led elsewhere are not an image's to set, and
 * kinds that the file system cannot hold are dropped, as Docker drops what the disk cannot hold.
 */
function keepXattrs(entry: TarEntry): Map<string, Buffer> | undefined {
  let kept: Map<string, Buffer> | undefined
  let total = 0
  for (const [name, value] of entry.xattrs ?? []) {
    if (name.startsWith('trusted.overlay.') || name.startsWith('user.overlay.')) continue
    const prefix = XATTR_PREFIXES.find(({ text, exact }) => (exact ? name === text : name.startsWith(text)))
    if (!prefix) continue
    if (!prefix.exact && name.length === prefix.text.length) continue
    total += 8 + name.length + value.length
    if (
      name.length > MAX_NAME ||
      name.includes('\0') ||
      value.length > MAX_XATTR_BYTES ||
      total > MAX_XATTRS_BYTES
    )
      throw badArchive(entry.name, `its extended attribute ${name.slice(0, 60)} is too long`)
    ;(kept ??= new Map<string, Buffer>()).set(name, value)
  }
  return kept
}
