import { randomBytes } from 'node:crypto'
import { fstatSync, mkdirSync, renameSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { Fd, O_CREAT, O_EXCL, O_RDONLY, O_RDWR, SysError } from '@coracle/sys'
import { syncFolder } from '../../durable.js'
import { CoracleError } from '../../errors.js'
import type { SavedDevices } from '../device-thread/device-worker.js'
import type { Ram } from '../memory/ram.js'
import type { HostIdentity } from './host.js'
import { type Extent, verifyMemory, writeMemory } from './memory-file.js'
import type { SavedProcessor } from './processor.js'
import type { Saved } from './saved.js'
import { MEMORY, STATE, type SnapshotFiles } from './files.js'
import { invalid, seal, unseal } from './sealed.js'

export { type SnapshotFiles, snapshotFiles } from './files.js'

/*
 * A snapshot is a folder of two files:
 *
 *     memory   the guest's RAM, sparse, as the machine maps it
 *     state    one line of JSON, the header: what this is, and the length and SHA-256 of what follows;
 *              then JSON, the body: everything else
 *
 * It is made under another name and renamed, so a folder with this name is whole.
 */
const MAGIC = 'coracle-snapshot'
/** Raised with each change of the state's form or of the machine's that an older state would not fit. */
const VERSION = 2
const MAX_EXTENTS = 1 << 20

/** A machine's state beside its memory. */
export interface SavedMachine {
  readonly processors: readonly SavedProcessor[]
  /** struct kvm_irqchip of both PICs and the IOAPIC. */
  readonly chips: readonly string[]
  /** The guest's kvmclock in nanoseconds. */
  readonly clock: string
  readonly devices: SavedDevices
}

/** What {@link writeSnapshot} is given beside the memory. */
export interface SnapshotContent {
  readonly host: HostIdentity
  readonly machine: SavedMachine
  /** The caller's own, JSON: comes back as {@link Snapshot.details}. */
  readonly details: unknown
}

/** How {@link writeSnapshot} writes. */
export interface WriteOptions {
  /** Wait until it is on the disk; without, a crash of the host can leave a damaged one. @default true */
  readonly durable?: boolean
  /** Puts further files into the folder before it gets its name, such as disks. */
  readonly alongside?: (folder: string) => void
}

/**
 * Writes a snapshot into a folder that does not exist.
 * @throws SysError ENOSPC and the like, CoracleError CONFLICT where the folder exists; nothing stays then
 */
export function writeSnapshot(
  folder: string,
  content: SnapshotContent,
  ram: Ram,
  { durable = true, alongside }: WriteOptions = {},
): void {
  const temporary = `${folder}.${randomBytes(6).toString('hex')}.new`
  mkdirSync(temporary, { recursive: true, mode: 0o700 })
  try {
    const create = (name: string): Fd => Fd.open(join(temporary, name), O_RDWR | O_CREAT | O_EXCL)
    using memory = create(MEMORY)
    const extents = writeMemory(ram, memory)
    if (durable) memory.sync()
    const { mtimeNs } = fstatSync(memory.number, { bigint: true })
    using state = create(STATE)
    writeAll(state, encodeState(content, ram.layout.size, extents, mtimeNs))
    if (durable) state.sync()
    alongside?.(temporary)
    if (durable) syncFolder(temporary)
    rename(temporary, folder)
    if (durable) syncFolder(dirname(folder))
  } catch (error) {
    rmSync(temporary, { recursive: true, force: true })
    throw error
  }
}

/**
 * The content of the file `state`.
 * @param size bytes of the memory
 * @param modified when the memory's file was last written, in ns; null where its keeper looks after that
 */
export function encodeState(
  content: SnapshotContent,
  size: number,
  extents: readonly Extent[],
  modified: bigint | null = null,
): Buffer {
  const memory = { size, modified: modified === null ? null : String(modified), extents }
  return seal(MAGIC, VERSION, { ...content, memory, cpus: content.machine.processors.length })
}

/** A snapshot as it was read back: whole, of this version, and of this host as far as {@link checkHost} was asked. */
export class Snapshot implements Disposable {
  readonly memory: Fd
  /** Bytes of the guest's RAM. */
  readonly memorySize: number
  readonly cpus: number
  readonly machine: Saved
  /** The maker's own: to be checked by who reads it. */
  readonly details: Saved
  readonly #host: Saved
  readonly #extents: Saved

  private constructor(path: string, body: Saved, memory: Fd) {
    this.memory = memory
    this.cpus = body.get('cpus').number(4096)
    this.machine = body.get('machine')
    this.details = body.get('details')
    this.#host = body.get('host')
    const saved = body.get('memory')
    this.#extents = saved.get('extents')
    this.memorySize = saved.get('size').number()
    const { size, mtimeNs } = fstatSync(memory.number, { bigint: true })
    const modified = saved.get('modified').optional()
    if (Number(size) !== this.memorySize || (modified && mtimeNs !== modified.u64()))
      throw invalid(path, 'its memory was changed or cut after it was made')
  }

  /**
   * Opens a snapshot and checks its state; of the memory only length and time, since reading it is what a restore
   * does not do.
   * @throws CoracleError NO_SUCH_SNAPSHOT, SNAPSHOT_INVALID, SNAPSHOT_MISMATCH
   */
  static open(files: SnapshotFiles): Snapshot {
    using state = opened(files.state)
    const memory = opened(files.memory)
    try {
      return new Snapshot(files.state, unseal(state, files.state, { magic: MAGIC, version: VERSION }), memory)
    } catch (error) {
      memory.close()
      throw error
    }
  }

  /** @throws CoracleError SNAPSHOT_MISMATCH where the guest could not go on here */
  checkHost({ cpu, kernel, features }: HostIdentity): void {
    const theirs = { cpu: this.#host.get('cpu').string(), kernel: this.#host.get('kernel').string() }
    if (this.#host.get('features').string() === features && theirs.kernel === kernel) return
    throw new CoracleError(
      'SNAPSHOT_MISMATCH',
      `the snapshot is of another host (${theirs.cpu}, Linux ${theirs.kernel}; this is ${cpu}, Linux ${kernel}): boot with --cold, or make a new one`,
    )
  }

  /** Reads all of the memory. @throws CoracleError SNAPSHOT_INVALID where it is not what was written */
  verify(): void {
    const extents = this.#extents.list(MAX_EXTENTS, true).map((each): Extent => {
      const [offset, length, crc] = each.list(3)
      return [offset!.number(), length!.number(), crc!.number(0xffff_ffff)]
    })
    verifyMemory(this.memory, extents)
  }

  close(): void {
    this.memory.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }
}

function opened(path: string): Fd {
  try {
    return Fd.openOrDuplicate(path, O_RDONLY)
  } catch (error) {
    if (error instanceof SysError && error.code === 'ENOENT')
      throw new CoracleError('NO_SUCH_SNAPSHOT', `there is no snapshot: ${path} is missing`, {
        cause: error,
      })
    throw error
  }
}

function writeAll(file: Fd, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length;) done += file.pwrite(bytes.subarray(done), done)
}

function rename(from: string, to: string): void {
  try {
    renameSync(from, to)
  } catch (error) {
    const { code } = error as { code?: string }
    if (code !== 'ENOTEMPTY' && code !== 'EEXIST' && code !== 'ENOTDIR') throw error
    throw new CoracleError('CONFLICT', `there is a snapshot ${to} already`, { cause: error })
  }
}
