import { writeSync } from 'node:fs'
import type { Inode } from './inode.js'
import {
  S_IFBLK,
  S_IFCHR,
  S_IFDIR,
  S_IFIFO,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
  S_IFSOCK,
  XATTR_PREFIXES,
} from './inode.js'

/*
 * A writer of EROFS images (layout: linux/fs/erofs/erofs_fs.h). It writes in one pass, in this order:
 *
 *   block 0    1024 zero bytes, superblock
 *   data       the files' contents in the order they came, each from a block's start
 *   folders    the full blocks of folders, and symbolic links, too long to stand behind their inode
 *   metadata   from meta_blkaddr: inodes in breadth-first order, each with its extended attributes and the tail of
 *              its folder or its symbolic link behind it; a number (nid) is the offset in units of 32 bytes
 *   zeros      up to a multiple of 2 MiB, the granule of a virtio-pmem region
 *
 * Contents lie unshared, uncompressed and never in the metadata (FLAT_PLAIN), which is what DAX needs. Nothing
 * depends on the time or the host: the same tree gives the same bytes.
 */

export const EROFS_BLOCK = 4096
/** The length of an image is a multiple of this. */
export const EROFS_GRANULE = 2 * 2 ** 20
const EROFS_SUPER_OFFSET = 1024
const EROFS_SUPER_MAGIC_V1 = 0xe0f5e1e2
const EROFS_FEATURE_COMPAT_SB_CHKSUM = 1
const EROFS_FEATURE_COMPAT_MTIME = 2
const EROFS_INODE_FLAT_PLAIN = 0
const EROFS_INODE_FLAT_INLINE = 2
const INODE_EXTENDED_SIZE = 64
const DIRENT_SIZE = 12
const XATTR_HEADER_SIZE = 12
const SLOT = 32
const NULL_ADDRESS = 0xffffffff
const LABEL_OFFSET = EROFS_SUPER_OFFSET + 64
const LABEL_SIZE = 16
const BUFFER_SIZE = 2 ** 20

const FILE_TYPES = new Map([
  [S_IFREG, 1],
  [S_IFDIR, 2],
  [S_IFCHR, 3],
  [S_IFBLK, 4],
  [S_IFIFO, 5],
  [S_IFSOCK, 6],
  [S_IFLNK, 7],
])

/** Where an inode's parts come to lie. */
interface Place {
  readonly inode: Inode
  readonly nid: number
  readonly parent: Place | undefined
  readonly xattrs: Buffer | undefined
  readonly inline: boolean
  readonly size: number
  readonly block: number
  readonly folder: Folder | undefined
  links: number
}

/** A folder's names in byte order, cut into blocks. */
interface Folder {
  readonly names: string[]
  /** The first name of each block, and at the end the number of names. */
  readonly cuts: number[]
  readonly size: number
}

/** Writes one image into an empty file. */
export class ErofsWriter {
  readonly #fd: number
  readonly #buffer = Buffer.allocUnsafe(BUFFER_SIZE)
  #fill = 0
  /** Offset in the file of the buffer's start. */
  #offset = 0

  /** @param fd open for writing; stays the caller's */
  constructor(fd: number) {
    this.#fd = fd
    this.#zeros(EROFS_BLOCK)
  }

  /** Begins a file's content. @returns its first block, for {@link Inode.block} */
  begin(): number {
    return this.#position / EROFS_BLOCK
  }

  /** Adds to the content that was begun last. */
  write(bytes: Uint8Array): void {
    if (bytes.length >= BUFFER_SIZE / 2) {
      this.#flush()
      this.#put(bytes)
      return
    }
    let from = 0
    while (from < bytes.length) {
      const length = Math.min(bytes.length - from, BUFFER_SIZE - this.#fill)
      this.#buffer.set(bytes.subarray(from, from + length), this.#fill)
      this.#fill += length
      from += length
      if (this.#fill === BUFFER_SIZE) this.#flush()
    }
  }

  /** Adds zeros to the content that was begun last, without writing them. */
  skip(length: number): void {
    if (length < BUFFER_SIZE) return this.#zeros(length)
    this.#flush()
    this.#offset += length
  }

  /** Ends the content that was begun last. */
  end(): void {
    this.#pad(EROFS_BLOCK)
  }

  /**
   * Writes all that describes the tree. The contents have been written.
   * @param uuid 16 bytes
   * @param label at most 16 bytes of ASCII
   * @returns the length up to the last block in use; the file must be extended to a multiple of {@link EROFS_GRANULE}
   */
  finish(root: Inode, uuid: Uint8Array, label: string): number {
    const { places, index, end } = this.#plan(root)
    for (const place of places) {
      if (place.folder) this.#writeFolderBlocks(place, index)
      else if (place.inode.target && !place.inline) {
        this.write(place.inode.target)
        this.#pad(EROFS_BLOCK)
      }
    }
    const metaBlock = this.#position / EROFS_BLOCK
    for (const place of places) {
      this.#zeros(metaBlock * EROFS_BLOCK + place.nid * SLOT - this.#position)
      this.#writeInode(place, index)
    }
    if (this.#position !== metaBlock * EROFS_BLOCK + end)
      throw new Error('EROFS metadata is not where planned')
    this.#pad(EROFS_BLOCK)
    this.#flush()
    const length = this.#position
    const superblock = this.#superblock({ uuid, label, metaBlock, inodes: places.length, length })
    superblock.writeUInt16LE(places[0]!.nid, 14)
    superblock.writeUInt32LE(crc32c(superblock), 4)
    writeSync(this.#fd, superblock, 0, superblock.length, EROFS_SUPER_OFFSET)
    return length
  }

  get #position(): number {
    return this.#offset + this.#fill
  }

  #flush(): void {
    this.#put(this.#buffer.subarray(0, this.#fill))
    this.#fill = 0
  }

  #put(bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length;) {
      const written = writeSync(this.#fd, bytes, done, bytes.length - done, this.#offset)
      done += written
      this.#offset += written
    }
  }

  #zeros(length: number): void {
    while (length > 0) {
      const part = Math.min(length, BUFFER_SIZE - this.#fill)
      this.#buffer.fill(0, this.#fill, this.#fill + part)
      this.#fill += part
      length -= part
      if (this.#fill === BUFFER_SIZE) this.#flush()
    }
  }

  #pad(unit: number): void {
    const over = this.#position % unit
    if (over > 0) this.#zeros(unit - over)
  }

  /** Gives every inode its place. Nothing is written yet, since a folder names its children's places. */
  #plan(root: Inode): { places: Place[]; index: Map<Inode, Place>; end: number } {
    const places: Place[] = []
    const index = new Map<Inode, Place>()
    // Number 0 stays free: it would be inode number 0, which readers of folders take for a deleted entry.
    let offset = SLOT
    let block = this.#position / EROFS_BLOCK
    const visit = (inode: Inode, parent: Place | undefined): void => {
      const known = index.get(inode)
      if (known) {
        known.links++
        return
      }
      const xattrs = encodeXattrs(inode)
      const folder = inode.entries && arrange([...inode.entries.keys()])
      const size = folder?.size ?? inode.target?.length ?? inode.size
      const head = INODE_EXTENDED_SIZE + (xattrs?.length ?? 0)
      const tail = folder || inode.target ? size % EROFS_BLOCK : 0
      const inline = tail > 0 && head + tail <= EROFS_BLOCK
      const length = head + (inline ? tail : 0)
      const room = EROFS_BLOCK - (offset % EROFS_BLOCK)
      // The kernel reads an inode's core and its inline tail from one block each.
      if (room < EROFS_BLOCK && length > room) offset += room
      let start = inode.block
      const blocks =
        folder || inode.target ? (inline ? Math.floor(size / EROFS_BLOCK) : Math.ceil(size / EROFS_BLOCK)) : 0
      if (blocks > 0) {
        start = block
        block += blocks
      }
      const place: Place = {
        inode,
        nid: offset / SLOT,
        parent,
        xattrs,
        inline,
        size,
        block: start,
        folder,
        links: inode.entries ? 2 : 1,
      }
      if (inode.entries && parent) parent.links++
      offset += length
      places.push(place)
      index.set(inode, place)
      // The next place begins on a slot; what follows the last one does not matter.
      offset = Math.ceil(offset / SLOT) * SLOT
    }
    visit(root, undefined)
    for (let next = 0; next < places.length; next++) {
      const place = places[next]!
      if (!place.folder) continue
      for (const name of place.folder.names)
        if (name !== '.' && name !== '..') visit(place.inode.entries!.get(name)!, place)
    }
    const last = places[places.length - 1]!
    const end =
      last.nid * SLOT +
      INODE_EXTENDED_SIZE +
      (last.xattrs?.length ?? 0) +
      (last.inline ? last.size % EROFS_BLOCK : 0)
    return { places, index, end }
  }

  #writeFolderBlocks(place: Place, index: Map<Inode, Place>): void {
    const blocks = place.folder!.cuts.length - 1
    for (let i = 0; i < (place.inline ? blocks - 1 : blocks); i++) {
      this.write(encodeFolderBlock(place, i, index))
      this.#pad(EROFS_BLOCK)
    }
  }

  #writeInode(place: Place, index: Map<Inode, Place>): void {
    const { inode } = place
    const type = inode.mode & S_IFMT
    const core = Buffer.alloc(INODE_EXTENDED_SIZE)
    const layout = place.inline ? EROFS_INODE_FLAT_INLINE : EROFS_INODE_FLAT_PLAIN
    core.writeUInt16LE((layout << 1) | 1, 0)
    core.writeUInt16LE(place.xattrs ? (place.xattrs.length - XATTR_HEADER_SIZE) / 4 + 1 : 0, 2)
    core.writeUInt16LE(inode.mode, 4)
    core.writeBigUInt64LE(BigInt(place.size), 8)
    core.writeUInt32LE(
      type === S_IFCHR || type === S_IFBLK ? inode.rdev : place.size > 0 ? place.block : NULL_ADDRESS,
      16,
    )
    core.writeUInt32LE(place.nid >>> 0, 20)
    core.writeUInt32LE(inode.uid, 24)
    core.writeUInt32LE(inode.gid, 28)
    core.writeBigInt64LE(BigInt(inode.mtime), 32)
    core.writeUInt32LE(inode.mtimeNsec, 40)
    core.writeUInt32LE(place.links, 44)
    this.write(core)
    if (place.xattrs) this.write(place.xattrs)
    if (place.folder && place.inline)
      this.write(encodeFolderBlock(place, place.folder.cuts.length - 2, index))
    else if (inode.target && place.inline) this.write(inode.target)
  }

  #superblock(values: {
    uuid: Uint8Array
    label: string
    metaBlock: number
    inodes: number
    length: number
  }): Buffer {
    const block = Buffer.alloc(EROFS_BLOCK - EROFS_SUPER_OFFSET)
    block.writeUInt32LE(EROFS_SUPER_MAGIC_V1, 0)
    block.writeUInt32LE(EROFS_FEATURE_COMPAT_SB_CHKSUM | EROFS_FEATURE_COMPAT_MTIME, 8)
    block.writeUInt8(Math.log2(EROFS_BLOCK), 12)
    block.writeBigUInt64LE(BigInt(values.inodes), 16)
    block.writeUInt32LE(values.length / EROFS_BLOCK, 36)
    block.writeUInt32LE(values.metaBlock, 40)
    block.set(values.uuid.subarray(0, 16), 48)
    block.write(values.label, 64, LABEL_SIZE, 'latin1')
    return block
  }
}

/** The label of an image whose first block this is, or undefined where it is no EROFS image. */
export function erofsLabel(block: Buffer): string | undefined {
  if (block.length < EROFS_BLOCK || block.readUInt32LE(EROFS_SUPER_OFFSET) !== EROFS_SUPER_MAGIC_V1)
    return undefined
  return block.toString('latin1', LABEL_OFFSET, LABEL_OFFSET + LABEL_SIZE).replace(/\0.*$/s, '')
}

/** Sorts a folder's names by their bytes (one a character) and cuts them into blocks. */
function arrange(entries: string[]): Folder {
  const names = [...entries, '.', '..'].sort((a, b) => (a < b ? -1 : 1))
  const cuts = [0]
  let used = 0
  names.forEach((name, i) => {
    const length = DIRENT_SIZE + name.length
    if (used + length > EROFS_BLOCK) {
      cuts.push(i)
      used = 0
    }
    used += length
  })
  const size = (cuts.length - 1) * EROFS_BLOCK + used
  cuts.push(names.length)
  return { names, cuts, size }
}

/** One block of a folder: `struct erofs_dirent`s, then the names without terminators. */
function encodeFolderBlock(place: Place, number: number, index: Map<Inode, Place>): Buffer {
  const { names, cuts } = place.folder!
  const part = names.slice(cuts[number], cuts[number + 1])
  let nameOffset = part.length * DIRENT_SIZE
  const block = Buffer.alloc(nameOffset + part.reduce((sum, name) => sum + name.length, 0))
  part.forEach((name, i) => {
    const child =
      name === '.'
        ? place
        : name === '..'
          ? (place.parent ?? place)
          : index.get(place.inode.entries!.get(name)!)!
    const at = i * DIRENT_SIZE
    block.writeBigUInt64LE(BigInt(child.nid), at)
    block.writeUInt16LE(nameOffset, at + 8)
    block.writeUInt8(FILE_TYPES.get(child.inode.mode & S_IFMT) ?? 0, at + 10)
    nameOffset += block.write(name, nameOffset, 'latin1')
  })
  return block
}

/** `struct erofs_xattr_ibody_header` and its entries, in the order of their names. */
function encodeXattrs(inode: Inode): Buffer | undefined {
  if (!inode.xattrs || inode.xattrs.size === 0) return undefined
  const parts = [Buffer.alloc(XATTR_HEADER_SIZE)]
  for (const [name, value] of [...inode.xattrs].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const prefix = XATTR_PREFIXES.find(({ text, exact }) => (exact ? name === text : name.startsWith(text)))!
    const suffix = name.slice(prefix.text.length)
    const entry = Buffer.alloc(Math.ceil((4 + suffix.length + value.length) / 4) * 4)
    entry.writeUInt8(suffix.length, 0)
    entry.writeUInt8(prefix.index, 1)
    entry.writeUInt16LE(value.length, 2)
    entry.write(suffix, 4, 'latin1')
    entry.set(value, 4 + suffix.length)
    parts.push(entry)
  }
  return Buffer.concat(parts)
}

/** CRC-32C (Castagnoli) as the kernel uses it: begins with all ones, no inversion at the end. */
function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff
  for (const byte of bytes) {
    crc ^= byte
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1
  }
  return crc >>> 0
}
