import { spawn } from 'node:child_process'
import { closeSync, mkdirSync, openSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Fd, connectUnix, listenUnix } from '@coracle/sys'
import { toolCommand } from '../../debian/index.js'
import { CoracleError } from '../../errors.js'
import { virtiofsdArguments } from '../../vmm/devices/fs/virtiofsd.js'
import type { SandboxMount, SandboxSpec } from '../sandbox.js'

/** A file or folder of the host as a guest has it. */
export interface GuestShare {
  /** What the guest mounts it by. */
  readonly tag: string
  /** Else the share is a folder with this one file in it, {@link SHARED_FILE}. */
  readonly isFolder: boolean
}

/** A share whose virtiofsd runs. */
export interface StartedShare extends GuestShare {
  /** The connection to it, the guest's monitor's to use: virtiofsd ends when the last copy is closed. */
  readonly connection: Fd
  /** Its process, in a session of its own. */
  readonly pid: number
  /** Lets it begin; until then it does nothing but wait, and it ends where we end. */
  go(): void
}

/** The name of a file that is shared alone. */
export const SHARED_FILE = 'file'

/** The tag of a mount, by its place in the specification. */
export const shareTag = (index: number): string => `v${index}`

/** Waits to be told so, binds the file where there is one, and becomes virtiofsd. */
const WAIT = 'read -r go || exit 1; '
const BIND = 'mount --bind "$1" "$2" || exit 1; shift 2; '
const BECOME = 'exec "$@" <&-'

/**
 * Starts a virtiofsd for each mount of a microVM. The connection is made before the process is: whoever is killed
 * in between, nobody is left waiting. A single file is shared as the one file of a private folder, bound into it in a
 * mount namespace of virtiofsd's own, so that its siblings do not exist for the guest.
 * @throws CoracleError INVALID_ARGUMENT for a source that cannot be shared, HOST_TOOL
 */
export async function startShares({
  mounts = [],
  runDirectory,
}: Pick<SandboxSpec, 'mounts' | 'runDirectory'>): Promise<StartedShare[]> {
  const started: StartedShare[] = []
  try {
    for (const [i, mount] of mounts.entries()) started.push(await startShare(mount, i, runDirectory))
    return started
  } catch (error) {
    for (const { connection } of started) connection.close()
    throw error
  }
}

async function startShare(
  { source, readOnly }: SandboxMount,
  index: number,
  run: string,
): Promise<StartedShare> {
  if (process.getuid?.() !== 0)
    throw new CoracleError('INVALID_ARGUMENT', 'volumes and bind mounts need root: run as root')
  const isFolder = checkSource(source)
  const tag = shareTag(index)
  const base = join(run, `share-${tag}`)
  const socket = `${base}.sock`
  rmSync(socket, { force: true })
  const { argv, env } = await toolCommand('virtiofsd')
  const words = (folder: string): string[] => [...argv, ...virtiofsdArguments({ folder, readOnly }), '--fd=3']
  let command = ['sh', '-c', WAIT + BECOME, 'sh', ...words(source)]
  if (!isFolder) {
    mkdirSync(base, { recursive: true, mode: 0o755 })
    const target = join(base, SHARED_FILE)
    writeFileSync(target, '')
    const alone = ['unshare', '--mount', '--propagation', 'private', '--']
    command = [...alone, 'sh', '-c', WAIT + BIND + BECOME, 'sh', source, target, ...words(base)]
  }
  const log = openSync(`${base}.log`, 'w', 0o600)
  const listener = listenUnix(socket, 1)
  try {
    const connection = connectUnix(socket)
    const child = spawn(command[0]!, command.slice(1), {
      cwd: '/',
      detached: true,
      env: { ...process.env, ...env },
      stdio: ['pipe', log, log, listener.number],
    })
    child.on('error', () => undefined)
    child.stdin!.on('error', () => undefined)
    child.unref()
    if (child.pid === undefined) {
      connection.close()
      throw new CoracleError('HOST_TOOL', `cannot start ${command[0]}, which shares ${source}`)
    }
    return { tag, isFolder, connection, pid: child.pid, go: () => void child.stdin!.end('go\n') }
  } finally {
    closeSync(log)
    listener.close()
    rmSync(socket, { force: true })
  }
}

/** @returns whether it is a folder @throws CoracleError INVALID_ARGUMENT */
function checkSource(source: string): boolean {
  const stat = statSync(source, { throwIfNoEntry: false })
  if (!stat) throw new CoracleError('INVALID_ARGUMENT', `bind source path does not exist: ${source}`)
  if (stat.isDirectory() || stat.isFile()) return stat.isDirectory()
  const what = stat.isSocket() ? 'a Unix socket' : 'neither a file nor a folder'
  throw new CoracleError(
    'INVALID_ARGUMENT',
    `${source} is ${what}: a microVM has a kernel of its own and cannot use it. Use --isolation process`,
  )
}
