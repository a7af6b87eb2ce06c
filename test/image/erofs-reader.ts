/*
 * Reads an EROFS image back, straight from its bytes and with none of the writer's code: what the kernel would see,
 * checked where nothing can be mounted. linux/fs/erofs/erofs_fs.h.
 */

export interface Node {
  mode: number
  uid: number
  gid: number
  mtime: bigint
  nsec: number
  links: number
  nid: bigint
  rdev: number
  size: number
  content?: Buffer
  target?: string
  entries?: Map<string, Node>
  xattrs: Map<string, Buffer>
}

const PREFIX: Record<number, string> = {
  1: 'user.',
  2: 'system.posix_acl_access',
  3: 'system.posix_acl_default',
  4: 'trusted.',
  6: 'security.',
}

export function readErofs(image: Buffer): Node {
  const meta = image.readUInt32LE(1024 + 40) * 4096
  const seen = new Map<bigint, Node>()
  const read = (nid: bigint): Node => {
    const known = seen.get(nid)
    if (known) return known
    const at = meta + Number(nid) * 32
    const format = image.readUInt16LE(at)
    if ((format & 1) !== 1) throw new Error('no extended inode')
    const icount = image.readUInt16LE(at + 2)
    const xattrSize = icount === 0 ? 0 : 12 + 4 * (icount - 1)
    const mode = image.readUInt16LE(at + 4)
    const size = Number(image.readBigUInt64LE(at + 8))
    const block = image.readUInt32LE(at + 16)
    const layout = (format >> 1) & 7
    const tail = size % 4096
    const inlineAt = at + 64 + xattrSize
    let data = Buffer.alloc(0)
    if (layout === 2) {
      if (tail === 0 || Math.floor(inlineAt / 4096) !== Math.floor((inlineAt + tail - 1) / 4096))
        throw new Error('the tail is not in one block')
      data = Buffer.concat([
        image.subarray(block * 4096, block === 0xffffffff ? block * 4096 : block * 4096 + size - tail),
        image.subarray(inlineAt, inlineAt + tail),
      ])
    } else if (layout === 0 && size > 0) data = Buffer.from(image.subarray(block * 4096, block * 4096 + size))
    const node: Node = {
      mode,
      uid: image.readUInt32LE(at + 24),
      gid: image.readUInt32LE(at + 28),
      mtime: image.readBigInt64LE(at + 32),
      nsec: image.readUInt32LE(at + 40),
      links: image.readUInt32LE(at + 44),
      nid,
      rdev: 0,
      size,
      xattrs: readXattrs(image, at + 64, xattrSize),
    }
    seen.set(nid, node)
    const type = mode & 0o170000
    if (type === 0o040000) node.entries = readFolder(data, read)
    else if (type === 0o120000) node.target = data.toString('latin1')
    else if (type === 0o100000) node.content = data
    else node.rdev = block
    return node
  }
  return read(BigInt(image.readUInt16LE(1024 + 14)))
}

function readFolder(data: Buffer, read: (nid: bigint) => Node): Map<string, Node> {
  const entries = new Map<string, Node>()
  let last = ''
  for (let at = 0; at < data.length; at += 4096) {
    const block = data.subarray(at, at + 4096)
    const count = block.readUInt16LE(8) / 12
    for (let i = 0; i < count; i++) {
      const from = block.readUInt16LE(i * 12 + 8)
      const to = i + 1 < count ? block.readUInt16LE((i + 1) * 12 + 8) : block.length
      const name = block.toString('latin1', from, to).replace(/\0+$/, '')
      if (name <= last) throw new Error(`${name} is not behind ${last}`)
      last = name
      if (name !== '.' && name !== '..') entries.set(name, read(block.readBigUInt64LE(i * 12)))
    }
  }
  return entries
}

function readXattrs(image: Buffer, at: number, size: number): Map<string, Buffer> {
  const xattrs = new Map<string, Buffer>()
  for (let from = at + 12; from < at + size;) {
    const nameLength = image.readUInt8(from)
    const valueLength = image.readUInt16LE(from + 2)
    const name =
      PREFIX[image.readUInt8(from + 1)]! + image.toString('latin1', from + 4, from + 4 + nameLength)
    const value = from + 4 + nameLength
    xattrs.set(name, Buffer.from(image.subarray(value, value + valueLength)))
    from += Math.ceil((4 + nameLength + valueLength) / 4) * 4
  }
  return xattrs
}
