import { createHash } from 'node:crypto'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
} from 'node:fs'
import { stat, truncate } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { CoracleError } from '../errors.js'
import { paths } from '../paths.js'
import { run, sysroot, toolCommand } from '../debian/index.js'
import { interpreter, neededLibraries } from './elf.js'
import { make } from './file.js'
import { buildInit } from './program.js'

/** A read-only file system image of the guest, padded so that it can be a partition of a DAX device. */
export interface Blob {
  readonly path: string
  /** Bytes, a multiple of 2 MiB. */
  readonly size: number
}

const LAYOUT = 1
/** Where a guest has {@link buildInit}'s program. */
export const INIT_IN_GUEST = '/usr/bin/coracle-init'
const ALIGNMENT = 2 << 20
const LIBRARIES = 'usr/lib/x86_64-linux-gnu'
/** The agent mounts here. */
const MOUNT_POINTS = ['dev', 'proc', 'sys', 'run', 'tmp', 'etc', 'var']

/**
 * The guest's own root file system: crun and the libraries it needs, from the same Debian packages that the host's
 * crun comes from; and the init of containers that ask for one. @returns an EROFS image in the cache
 */
export async function buildTools(): Promise<Blob> {
  const [{ root, folder }, init] = await Promise.all([sysroot('tools'), buildInit()])
  const hash = createHash('sha256')
    .update(JSON.stringify([LAYOUT, basename(folder), basename(init)]))
    .digest('hex')
    .slice(0, 16)
  const path = await make(join(paths.cache, 'firmware', `tools-${hash}.erofs`), async (temporary) => {
    const tree = mkdtempSync(join(tmpdir(), 'coracle-tools-'))
    try {
      fill(tree, root)
      copyFileSync(init, join(tree, INIT_IN_GUEST))
      await makeErofs(tree, temporary)
    } finally {
      rmSync(tree, { recursive: true, force: true })
    }
  })
  return { path, size: (await stat(path)).size }
}

function fill(tree: string, root: string): void {
  for (const part of ['bin', 'sbin', 'lib', 'lib64']) {
    mkdirSync(join(tree, 'usr', part), { recursive: true })
    symlinkSync(`usr/${part}`, join(tree, part))
  }
  for (const point of MOUNT_POINTS) mkdirSync(join(tree, point))
  const done = new Set<string>()
  const add = (path: string): void => {
    if (done.has(path)) return
    done.add(path)
    const from = realpathSync(join(root, path))
    mkdirSync(dirname(join(tree, path)), { recursive: true })
    copyFileSync(from, join(tree, path))
    const file = readFileSync(from)
    const linker = interpreter(file)
    // Through the links of a merged /usr: /lib64/ld-linux-x86-64.so.2 is usr/lib64/….
    if (linker !== undefined) add(`usr${linker.replace(/^\/usr/, '')}`)
    for (const name of neededLibraries(file)) {
      if (name.startsWith('ld-linux')) continue
      if (!existsSync(join(root, LIBRARIES, name)))
        throw new CoracleError('HOST_TOOL', `${name}, which ${path} needs, is not among the Debian packages`)
      add(`${LIBRARIES}/${name}`)
    }
  }
  add('usr/bin/crun')
}

/** Uncompressed and without data beside inodes: what a DAX mapping needs. The same tree makes the same bytes. */
async function makeErofs(tree: string, path: string): Promise<void> {
  const { argv, env } = await toolCommand('mkfs.erofs')
  const options = ['-T0', '--all-root', '-U', '636f7261-636c-4e00-8000-746f6f6c7300', '-E', 'noinline_data']
  const { status, stderr } = await run([...argv, '--quiet', ...options, path, tree], {
    env: { ...process.env, ...env },
  })
  if (status !== 0)
    throw new CoracleError('HOST_TOOL', `mkfs.erofs failed: ${stderr.trim().split('\n').at(-1)}`)
  const { size } = await stat(path)
  await truncate(path, Math.ceil(size / ALIGNMENT) * ALIGNMENT)
}
