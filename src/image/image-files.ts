import { closeSync, openSync, readSync } from 'node:fs'
import { CoracleError } from '../errors.js'
import type { RootLayer } from '../isolation/sandbox.js'
import { S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG } from './inode.js'

const BLOCK = 4096
const SUPERBLOCK = 1024
const LAYOUT_PLAIN = 0
const LAYOUT_INLINE = 2
/** Links in one path (MAXSYMLINKS of the kernel). */
const MAX_LINKS = 40
/** Bytes of a folder, or of a file that is read here. */
const MAX_READ = 64 * 1024 * 1024
const PIECE = 1024 * 1024

/** What an image has at a path. */
export interface ImageNode {
  /** st_mode. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Seconds since 1970. */
  readonly mtime: number
}

/** One file of {@link ImageFiles.tree}. */
export interface ImageFile {
  /** Relative to the tree's top; empty for the top itself where it is no folder. */
  readonly name: string
  readonly node: ImageNode
  /** Bytes of a regular file. */
  readonly size: number
  /** Of a symbolic link. */
  readonly target: string
  /** Of a device. */
  readonly device: number
  content(): Iterable<Buffer>
}

interface Inode extends ImageNode {
  readonly layer: number
  readonly size: number
  readonly layout: number
  readonly block: number
  readonly tail: number
  readonly opaque: boolean
}

/**
 * The files of an image without mounting it: looks through its root layers (EROFS, as erofs.ts writes them), the
 * topmost first, with whiteouts and opaque folders.
 */
export class ImageFiles implements Disposable {
  readonly #files: number[]

  /** @param layers lowest first */
  constructor(layers: readonly RootLayer[]) {
    this.#files = layers.map(({ path }) => openSync(path, 'r')).reverse()
  }

  /**
   * Where a path leads, its links followed as a process inside would.
   * @returns the path without links, and what is there; names that are not there are kept as they are
   */
  resolve(path: string): { path: string; node: ImageNode | undefined } {
    const pending = path.split('/').reverse()
    const done: string[] = []
    let nodes: Inode[] = this.#roots()
    let found: Inode | undefined = nodes[0]
    for (let links = 0; pending.length > 0;) {
      const part = pending.pop()!
      if (part === '' || part === '.') continue
      if (part === '..') {
        done.pop()
        nodes = this.#walk(done)
        found = nodes[0]
        continue
      }
      const next = this.#child(nodes, part)
      const top = next[0]
      if (top && (top.mode & S_IFMT) === S_IFLNK) {
        if (++links > MAX_LINKS) throw new CoracleError('INVALID_ARGUMENT', `too many links in ${path}`)
        const target = this.#read(top).toString('utf8')
        if (target.startsWith('/')) done.length = 0
        pending.push(...target.split('/').reverse())
        nodes = this.#walk(done)
        found = nodes[0]
        continue
      }
      done.push(part)
      nodes = next
      found = top
    }
    return { path: `/${done.join('/')}`, node: found }
  }

  /** The text of a regular file; undefined where there is none. */
  readText(path: string): string | undefined {
    const { path: real } = this.resolve(path)
    const [node] = this.#walk(real.split('/').filter((part) => part !== ''))
    return node && (node.mode & S_IFMT) === S_IFREG ? this.#read(node).toString('utf8') : undefined
  }

  /** A file, or what is in a folder, folders before their members. @param path without links */
  *tree(path: string): Generator<ImageFile> {
    yield* this.#tree('', this.#walk(path.split('/').filter((part) => part !== '')))
  }

  *#tree(name: string, nodes: Inode[]): Generator<ImageFile> {
    const [top] = nodes
    if (!top) return
    const kind = top.mode & S_IFMT
    if (name !== '' || kind !== S_IFDIR)
      yield {
        name,
        node: top,
        size: kind === S_IFREG ? top.size : 0,
        target: kind === S_IFLNK ? this.#read(top).toString('utf8') : '',
        device: top.block,
        content: () => this.#content(top),
      }
    if (kind !== S_IFDIR) return
    const names = new Set<string>()
    for (const folder of nodes) {
      if ((folder.mode & S_IFMT) !== S_IFDIR) break
      for (const child of this.#names(folder)) names.add(child)
      if (folder.opaque) break
    }
    for (const child of [...names].sort())
      yield* this.#tree(name === '' ? child : `${name}/${child}`, this.#child(nodes, child))
  }

  *#names(folder: Inode): Generator<string> {
    for (const [name] of this.#entries(folder)) if (name !== '.' && name !== '..') yield name
  }

  *#content(node: Inode): Generator<Buffer> {
    const whole = node.layout === LAYOUT_INLINE ? node.size - (node.size % BLOCK) : node.size
    for (let at = 0; at < whole; at += PIECE)
      yield this.#bytes(node.layer, node.block * BLOCK + at, Math.min(PIECE, whole - at))
    if (whole < node.size) yield this.#bytes(node.layer, node.tail, node.size - whole)
  }

  [Symbol.dispose](): void {
    for (const fd of this.#files) closeSync(fd)
    this.#files.length = 0
  }

  #roots(): Inode[] {
    return this.#files.map((_, layer) =>
      this.#inode(layer, this.#bytes(layer, SUPERBLOCK + 14, 2).readUInt16LE(0)),
    )
  }

  #walk(parts: readonly string[]): Inode[] {
    return parts.reduce((nodes, part) => this.#child(nodes, part), this.#roots())
  }

  /** The inodes of a name in a merged folder: of all layers that are seen through, the topmost first. */
  #child(folders: readonly Inode[], name: string): Inode[] {
    const found: Inode[] = []
    for (const folder of folders) {
      if ((folder.mode & S_IFMT) !== S_IFDIR) break
      const nid = this.#find(folder, name)
      if (nid !== undefined) {
        const node = this.#inode(folder.layer, nid)
        const isWhiteout = (node.mode & S_IFMT) === S_IFCHR && node.block === 0
        if (isWhiteout) break
        const isFolder = (node.mode & S_IFMT) === S_IFDIR
        if (!isFolder && found.length > 0) break
        found.push(node)
        if (!isFolder || node.opaque) break
      }
      if (folder.opaque) break
    }
    return found
  }

  #find(folder: Inode, name: string): number | undefined {
    for (const [each, nid] of this.#entries(folder)) if (each === name) return nid
    return undefined
  }

  *#entries(folder: Inode): Generator<[name: string, nid: number]> {
    const data = this.#read(folder)
    for (let at = 0; at < data.length; at += BLOCK) {
      const block = data.subarray(at, at + BLOCK)
      const count = block.readUInt16LE(8) / 12
      for (let i = 0; i < count; i++) {
        const from = block.readUInt16LE(i * 12 + 8)
        const to = i + 1 < count ? block.readUInt16LE((i + 1) * 12 + 8) : block.length
        const name = block.toString('utf8', from, to).replace(/\0+$/, '')
        yield [name, Number(block.readBigUInt64LE(i * 12))]
      }
    }
  }

  #inode(layer: number, nid: number): Inode {
    const meta = this.#bytes(layer, SUPERBLOCK + 40, 4).readUInt32LE(0) * BLOCK
    const at = meta + nid * 32
    const inode = this.#bytes(layer, at, 64)
    const count = inode.readUInt16LE(2)
    const xattrs = count === 0 ? 0 : 12 + 4 * (count - 1)
    const mode = inode.readUInt16LE(4)
    return {
      layer,
      mode,
      uid: inode.readUInt32LE(24),
      gid: inode.readUInt32LE(28),
      mtime: Number(inode.readBigInt64LE(32)),
      size: Number(inode.readBigUInt64LE(8)),
      layout: (inode.readUInt16LE(0) >> 1) & 7,
      block: inode.readUInt32LE(16),
      tail: at + 64 + xattrs,
      // `trusted.` is by number there, so the rest of the name is what is written.
      opaque:
        (mode & S_IFMT) === S_IFDIR &&
        xattrs > 0 &&
        this.#bytes(layer, at + 64, xattrs).includes('overlay.opaquey'),
    }
  }

  #read({ layer, size, layout, block, tail }: Inode): Buffer {
    if (size > MAX_READ)
      throw new CoracleError('INVALID_ARGUMENT', 'a file of the image is too large for this')
    if (layout === LAYOUT_PLAIN) return this.#bytes(layer, block * BLOCK, size)
    if (layout !== LAYOUT_INLINE)
      throw new CoracleError('INTERNAL', `a layer with inodes of layout ${layout}`)
    const rest = size % BLOCK
    const whole = size - rest
    return Buffer.concat([
      whole > 0 ? this.#bytes(layer, block * BLOCK, whole) : Buffer.alloc(0),
      this.#bytes(layer, tail, rest),
    ])
  }

  #bytes(layer: number, at: number, length: number): Buffer {
    const bytes = Buffer.alloc(length)
    readSync(this.#files[layer]!, bytes, 0, length, at)
    return bytes
  }
}
