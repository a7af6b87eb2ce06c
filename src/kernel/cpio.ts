const S_IFDIR = 0o040000
const S_IFREG = 0o100000
const S_IFLNK = 0o120000
const S_IFCHR = 0o020000

/**
 * Writes a cpio archive of the "newc" form, as an initramfs is read (Linux, driver-api/early-userspace/buffer-format.rst).
 * The same entries give the same bytes: times are zero, owners are root, inodes are counted.
 */
export class Cpio {
  readonly #parts: Buffer[] = []
  readonly #folders = new Set<string>()
  #inode = 0

  /** @param path without a slash at the start; folders above it are made where they are missing */
  directory(path: string, mode = 0o755): this {
    this.#parents(path)
    if (!this.#folders.has(path)) this.#add(path, S_IFDIR | mode, Buffer.alloc(0))
    this.#folders.add(path)
    return this
  }

  file(path: string, content: Uint8Array, mode = 0o644): this {
    this.#parents(path)
    return this.#add(path, S_IFREG | mode, Buffer.from(content.buffer, content.byteOffset, content.length))
  }

  symlink(path: string, target: string): this {
    this.#parents(path)
    return this.#add(path, S_IFLNK | 0o777, Buffer.from(target))
  }

  characterDevice(path: string, major: number, minor: number, mode = 0o600): this {
    this.#parents(path)
    return this.#add(path, S_IFCHR | mode, Buffer.alloc(0), major, minor)
  }

  /** The whole archive, with its trailer. */
  finish(): Buffer {
    this.#inode = -1
    this.#add('TRAILER!!!', 0, Buffer.alloc(0))
    return Buffer.concat(this.#parts)
  }

  #parents(path: string): void {
    const at = path.lastIndexOf('/')
    if (at > 0) this.directory(path.slice(0, at))
  }

  #add(path: string, mode: number, content: Buffer, major = 0, minor = 0): this {
    const name = Buffer.from(`${path}\0`)
    const fields = [++this.#inode, mode, 0, 0, 1, 0, content.length, 0, 0, major, minor, name.length, 0]
    const header = `070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`
    this.#parts.push(Buffer.from(header), name, padding(110 + name.length), content, padding(content.length))
    return this
  }
}

const padding = (length: number): Buffer => Buffer.alloc((4 - (length % 4)) % 4)
