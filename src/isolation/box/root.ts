import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { CoracleError } from '../../errors.js'

/** Mode 0755 all the way, since the box's user makes nothing there and must pass. */
const FOLDER = '/run/coracle-box'

/** A file or folder of the host that the box sees, read-only. */
export interface BoxBind {
  readonly source: string
  /** In the box. */
  readonly target: string
}

export interface BoxRoot {
  /** An empty root: folders and empty files, where {@link binds} go. The same for all boxes, and never written to. */
  readonly path: string
  readonly binds: readonly BoxBind[]
}

/** Of the box: Node, its libraries, our program with the packages that it imports. */
export const BOX_NODE = '/bin/node'
export const BOX_LIBRARIES = '/lib'
const APP = '/app'
/** Folders that are mounted on, beside the binds. */
const MOUNTED = ['/proc', '/dev', '/tmp']

/** What our files below dist/src are called in the box. @param file such as `isolation/box/main.js` */
export const boxPath = (file: string): string => join(APP, 'dist', file)

let made: BoxRoot | undefined

/**
 * The root of every box on this host, with the packages and the Node that this process itself runs on.
 * @throws CoracleError SANDBOX_FAILED where Node is not a dynamically linked program of this machine
 */
export function boxRoot(): BoxRoot {
  // A reboot, and nothing else, takes it away.
  if (made && existsSync(made.path)) return made
  const binds = [{ source: realpathSync(process.execPath), target: BOX_NODE }, ...libraries(), ...program()]
  return (made = { path: skeleton(binds), binds })
}

/** @param more binds beside those of {@link boxRoot}: for tests */
export function boxRootWith(more: readonly BoxBind[]): BoxRoot {
  const binds = [...boxRoot().binds, ...more]
  return { path: skeleton(binds), binds }
}

/** What the dynamic linker says it would load. */
function libraries(): BoxBind[] {
  const env = { LD_TRACE_LOADED_OBJECTS: '1' }
  const text = execFileSync(process.execPath, { env, encoding: 'latin1' })
  const binds = [...text.matchAll(/^\s+(?:(\S+) => )?(\/\S+) \(0x[0-9a-f]+\)$/gm)].map(([, name, path]) => ({
    source: realpathSync(path!),
    // The linker itself, named by the program, has no name here.
    target: name === undefined || name.startsWith('/') ? (name ?? path!) : join(BOX_LIBRARIES, name),
  }))
  if (binds.length === 0)
    throw new CoracleError(
      'SANDBOX_FAILED',
      `${process.execPath} shows no libraries: a microVM needs Node from glibc`,
    )
  return binds
}

/** Our own files, and the packages that the monitor of a microVM imports. */
function program(): BoxBind[] {
  const source = fileURLToPath(new URL('../../', import.meta.url))
  const folderOf = (name: string, from: string): string => {
    let folder = dirname(realpathSync(createRequire(from).resolve(name)))
    while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder)
    return folder
  }
  const sys = folderOf('@coracle/sys', source)
  const koffi = folderOf('koffi', join(sys, 'package.json'))
  const packages: Record<string, string> = {
    koffi,
    '@koromix/koffi-linux-x64': folderOf('@koromix/koffi-linux-x64', join(koffi, 'package.json')),
    '@coracle/sys': sys,
    'vhost-user-ts': folderOf('vhost-user-ts', source),
  }
  return [
    { source, target: join(APP, 'dist') },
    { source: packageFile(source), target: join(APP, 'package.json') },
    ...Object.entries(packages).map(([name, folder]) => ({
      source: folder,
      target: join(APP, 'node_modules', name),
    })),
  ]
}

function packageFile(folder: string): string {
  const file = join(folder, 'package.json')
  return existsSync(file) ? file : packageFile(dirname(folder))
}

/** Makes the empty root, complete or not at all. Its name tells what it is for. */
function skeleton(binds: readonly BoxBind[]): string {
  const kinds = binds.map(({ source, target }) => [target, statSync(source).isDirectory()] as const)
  const hash = createHash('sha256')
    .update(JSON.stringify([MOUNTED, kinds]))
    .digest('hex')
    .slice(0, 16)
  const path = join(FOLDER, hash)
  if (existsSync(path)) return path
  const mask = process.umask(0o022)
  try {
    mkdirSync(FOLDER, { recursive: true })
    const temporary = mkdtempSync(`${path}.`)
    for (const folder of MOUNTED) mkdirSync(join(temporary, folder))
    for (const [target, isFolder] of kinds) {
      mkdirSync(join(temporary, isFolder ? target : dirname(target)), { recursive: true })
      if (!isFolder) writeFileSync(join(temporary, target), '')
    }
    execFileSync('chmod', ['-R', 'u=rwX,go=rX', temporary])
    try {
      renameSync(temporary, path)
    } catch {
      // Another was faster.
      rmSync(temporary, { recursive: true, force: true })
    }
  } finally {
    process.umask(mask)
  }
  return path
}
