import type { Duplex } from 'node:stream'
import { CoracleError } from '../errors.js'

/*
 * A container's files, from outside: what one is, a tree of them as a tar, a tar into a folder. firmware/agent does it
 * (archive.c), in the guest or on the host, in a process whose root directory is the container's.
 */

/** What a path is. The last name of the path is not followed where it is a link. */
export interface PathStat {
  /** st_mode of stat(2), type and permissions. */
  readonly mode: number
  /** Bytes. */
  readonly size: number
  /** Milliseconds since 1970, with a fraction. */
  readonly mtime: number
  /** Empty where it is no link. */
  readonly linkTarget: string
}

/** Flags of a tree that is read or written; TAR_… of firmware/agent/agent.h. */
export const TAR_CHANGES = 1
export const TAR_CONTENTS = 2
export const TAR_KEEP_KINDS = 4
export const TAR_OWN_ROOT = 8
export const TAR_LIST = 16
export const TAR_FLAGS = 31

/** A path inside a container is at most this long, in bytes. */
export const MAX_PATH = 4095

/** What carries a workload gives these of its files. Paths are absolute, as the workload sees them. */
export interface WorkloadArchive {
  /** @throws CoracleError NO_SUCH_PATH */
  stat(path: string): Promise<PathStat>
  /** A tar, whole only if it ends with the two blocks of zeros. With TAR_LIST: lines that end with NUL, the last `E `. */
  read(path: string, flags: number): Promise<Duplex>
  /** Takes a tar (ustar and pax alone), then yields one line: empty, or what went wrong. */
  write(path: string, flags: number): Promise<Duplex>
}

/** The answer to `stat` of archive.c. @throws CoracleError GUEST_FAILED: the bytes may be a guest's */
export function decodeStat(bytes: Buffer): PathStat {
  const FIXED = 28
  const length = bytes.length >= FIXED ? bytes.readUInt32LE(24) : -1
  if (length !== bytes.length - FIXED)
    throw new CoracleError('GUEST_FAILED', 'the answer about a file is not as it must be')
  return {
    mode: bytes.readUInt32LE(0),
    size: Number(bytes.readBigUInt64LE(4)),
    mtime: Number(bytes.readBigInt64LE(12)) * 1000 + bytes.readUInt32LE(20) / 1e6,
    linkTarget: bytes.toString('utf8', FIXED),
  }
}
