/** File types and permission bits of `st_mode`, as in linux/stat.h. */
export const S_IFMT = 0o170000
export const S_IFSOCK = 0o140000
export const S_IFLNK = 0o120000
export const S_IFREG = 0o100000
export const S_IFBLK = 0o060000
export const S_IFDIR = 0o040000
export const S_IFCHR = 0o020000
export const S_IFIFO = 0o010000

/** A file of whatever type in a layer. Names are strings of bytes, one a character (latin1). */
export interface Inode {
  mode: number
  uid: number
  gid: number
  /** Seconds since 1970, a whole number. */
  mtime: number
  mtimeNsec: number
  /** Bytes of a regular file's content. */
  size: number
  /** The content's first block in the image. */
  block: number
  /** Device number in the form of the kernel's new_encode_dev. */
  rdev: number
  xattrs?: Map<string, Buffer> | undefined
  /** A folder's entries by name. */
  entries?: Map<string, Inode>
  /** A symbolic link's target. */
  target?: Buffer
}

/**
 * Which extended attributes an image can hold, with EROFS's number for each beginning
 * (EROFS_XATTR_INDEX_* of erofs_fs.h).
 */
export const XATTR_PREFIXES: readonly { text: string; index: number; exact: boolean }[] = [
  { text: 'user.', index: 1, exact: false },
  { text: 'system.posix_acl_access', index: 2, exact: true },
  { text: 'system.posix_acl_default', index: 3, exact: true },
  { text: 'trusted.', index: 4, exact: false },
  { text: 'security.', index: 6, exact: false },
]

/** The kernel's new_encode_dev (linux/kdev_t.h). @param major ≤ 4095 @param minor ≤ 1048575 */
export const encodeDevice = (major: number, minor: number): number =>
  ((minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)) >>> 0
