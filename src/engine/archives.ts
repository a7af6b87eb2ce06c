import { Readable } from 'node:stream'
import { CoracleError } from '../errors.js'
import { type EntryChange, rewriteTar } from '../image/tar-stream.js'
import type { TarEntry } from '../image/tar.js'
import {
  TAR_CHANGES,
  TAR_CONTENTS,
  TAR_KEEP_KINDS,
  TAR_LIST,
  TAR_OWN_ROOT,
  MAX_PATH,
  type PathStat,
} from '../isolation/archive.js'
import type { Sandbox } from '../isolation/sandbox.js'

/** One path that a container changed of its image. Docker's numbers are 0, 1 and 2 in this order. */
export interface Change {
  readonly kind: 'modified' | 'added' | 'deleted'
  readonly path: string
}

const KINDS = { C: 'modified', A: 'added', D: 'deleted' } as const

export interface PutOptions {
  /** No folder in place of another kind of file, nor the other way round. */
  readonly keepKinds?: boolean
  /** All belongs to root, whatever the archive says. */
  readonly ownRoot?: boolean
}

export interface LayerOptions {
  /** Of its entries. */
  readonly change?: EntryChange
  /** The container, where it runs, stands still while they are read. @default false */
  readonly still?: boolean
}

/** Calls `work` with the container's sandbox: the one that runs, or one that is made ready and never started. */
export type WithSandbox = <T>(reference: string, work: (sandbox: Sandbox) => Promise<T>) => Promise<T>

/**
 * A container's files, running or not. A stopped one's are read by a sandbox of its own kind: what a guest wrote is
 * never mounted by the host's kernel.
 */
export class Archives {
  readonly #with: WithSandbox

  constructor(withSandbox: WithSandbox) {
    this.#with = withSandbox
  }

  /** @throws CoracleError NO_SUCH_PATH */
  stat(reference: string, path: string): Promise<PathStat> {
    return this.#with(reference, (sandbox) => sandbox.statPath(checked(path)))
  }

  /**
   * A file or folder as a tar whose names begin with its own.
   * @param take gets what the path is and the tar; when it settles, the sandbox may go
   * @throws CoracleError NO_SUCH_PATH
   */
  read(
    reference: string,
    path: string,
    take: (stat: PathStat, tar: Readable) => Promise<void>,
  ): Promise<void> {
    return this.#with(reference, async (sandbox) => {
      const stat = await sandbox.statPath(checked(path))
      await take(stat, await sandbox.readTree(path, 0))
    })
  }

  /**
   * Unpacks a tar into a folder.
   * @param tar from a client: checked, and written anew
   * @throws CoracleError NO_SUCH_PATH, INVALID_ARGUMENT, IMAGE_ARCHIVE
   */
  async write(
    reference: string,
    path: string,
    tar: AsyncIterable<Uint8Array>,
    { keepKinds = false, ownRoot = false }: PutOptions = {},
  ): Promise<void> {
    await this.#with(reference, async (sandbox) => {
      await sandbox.statPath(checked(path))
      let failure: unknown
      const rewritten = async function* (): AsyncGenerator<Buffer> {
        try {
          yield* rewriteTar(tar)
        } catch (error) {
          failure = error
          throw error
        }
      }
      const flags = (keepKinds ? TAR_KEEP_KINDS : 0) | (ownRoot ? TAR_OWN_ROOT : 0)
      try {
        await sandbox.writeTree(path, flags, Readable.from(rewritten(), { objectMode: false }))
      } catch (error) {
        throw failure ?? error
      }
    })
  }

  /** The whole root file system as a tar. */
  export(reference: string, take: (tar: Readable) => Promise<void>): Promise<void> {
    return this.#with(reference, async (sandbox) => take(await sandbox.readTree('/', TAR_CONTENTS)))
  }

  /**
   * What the container changed, as the tar of a layer (OCI image-spec layer.md).
   * @throws CoracleError NOT_IMPLEMENTED, SANDBOX_FAILED, GUEST_FAILED where it does not stand still
   */
  layer<T>(
    reference: string,
    take: (tar: Readable) => Promise<T>,
    { change, still = false }: LayerOptions = {},
  ): Promise<T> {
    return this.#with(reference, async (sandbox) => {
      const tar = await sandbox.readTree('/', TAR_CHANGES | TAR_CONTENTS, still)
      const kept: EntryChange = (entry) => withoutMountPoints(entry) && (change ? change(entry) : entry)
      try {
        return await take(Readable.from(rewriteTar(tar, kept), { objectMode: false }))
      } finally {
        // What was not read to its end holds the container.
        tar.destroy()
      }
    })
  }

  /** What the container changed. @throws CoracleError SANDBOX_FAILED where the list broke off */
  changes(reference: string): Promise<Change[]> {
    return this.#with(reference, async (sandbox) => {
      const changes: Change[] = []
      let rest = ''
      const stream = await sandbox.readTree('/', TAR_CHANGES | TAR_LIST)
      for await (const chunk of stream.setEncoding('utf8')) {
        const lines = (rest + (chunk as string)).split('\0')
        rest = lines.pop()!
        for (const line of lines) {
          if (line === 'E ') return withoutOwn(changes)
          const kind = KINDS[line[0] as keyof typeof KINDS]
          if (!kind || line[1] !== ' ')
            throw new CoracleError('SANDBOX_FAILED', 'the list of changes is not as it must be')
          changes.push({ kind, path: line.slice(2) })
        }
      }
      throw new CoracleError('SANDBOX_FAILED', 'the list of changes broke off')
    })
  }
}

/** Files that are made for the engine's own to be mounted over: they are no change of the container's. */
const MOUNT_POINTS = new Set(['etc/hosts', 'etc/hostname', 'etc/resolv.conf'])

/** Nor is it that their folder has them. */
function withoutOwn(changes: readonly Change[]): Change[] {
  const others = changes.filter(({ kind, path }) => kind !== 'added' || !MOUNT_POINTS.has(path.slice(1)))
  if (others.length === changes.length || others.some(({ path }) => path.startsWith('/etc/'))) return others
  return others.filter(({ kind, path }) => kind !== 'modified' || path !== '/etc')
}

const withoutMountPoints = (entry: TarEntry): TarEntry | undefined =>
  entry.type === 'file' && entry.size === 0 && MOUNT_POINTS.has(entry.name) ? undefined : entry

/** @throws CoracleError INVALID_ARGUMENT */
function checked(path: string): string {
  if (path === '' || path.includes('\0') || Buffer.byteLength(path) > MAX_PATH)
    throw new CoracleError('INVALID_ARGUMENT', `invalid path: '${path.slice(0, 64)}'`)
  return path
}
