import { createHash } from 'node:crypto'
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { CoracleError } from '../errors.js'
import { paths } from '../paths.js'
import { Apt, type Package } from './apt.js'
import { withFileLock } from './lock.js'
import { pipe } from './run.js'
import { SETS, type PackageSet, type SetName } from './sets.js'

/** How to run a program: put arguments behind `argv`, and `env` over the environment. */
export interface Command {
  readonly argv: readonly string[]
  readonly env: Readonly<Record<string, string>>
}

export interface SysrootOptions {
  /** Looks for newer versions even where the set is there. @default false */
  readonly update?: boolean
  /** Called with a line about what takes long. @default a line on stderr */
  readonly report?: (line: string) => void
}

const TRIPLET = 'x86_64-linux-gnu'

/** Raise when the layout of an unpacked sysroot changes: those of older versions are then made anew. */
const LAYOUT = 1

/** Programs that start themselves again through /proc/self/exe, which must then be themselves and no dynamic linker. */
const REEXEC = new Set(['crun'])

/** A set of Debian packages, unpacked: `root` is a merged-/usr tree that ends with the C library. */
export class Sysroot {
  readonly name: SetName
  /** `<cache>/debian/<name>-<hash>`; its name changes with every version of its packages. */
  readonly folder: string

  constructor(name: SetName, folder: string) {
    this.name = name
    this.folder = folder
  }

  /** The packages' files. */
  get root(): string {
    return join(this.folder, 'root')
  }

  /** What is in it. */
  get packages(): Package[] {
    return JSON.parse(readFileSync(join(this.folder, 'packages.json'), 'utf8')) as Package[]
  }

  /** Path of a program's file in it. @throws {@link CoracleError} HOST_TOOL when it has none of that name */
  file(program: string): string {
    for (const folder of ['usr/bin', 'usr/sbin', 'usr/libexec', 'usr/lib/qemu']) {
      const path = join(this.root, folder, program)
      if (lstatSync(path, { throwIfNoEntry: false })) return this.#resolve(path)
    }
    throw new CoracleError('HOST_TOOL', `the Debian packages of '${this.name}' have no program ${program}`)
  }

  /** Follows a link as it would read with the sysroot as `/`: kmod's are absolute, and the host may have no kmod. */
  #resolve(path: string): string {
    let file = path
    for (let hops = 0; hops < 8 && lstatSync(file, { throwIfNoEntry: false })?.isSymbolicLink(); hops++) {
      const target = readlinkSync(file)
      file = target.startsWith('/') ? join(this.root, target) : join(dirname(file), target)
    }
    return file
  }

  /**
   * How to run `program`: by the sysroot's own dynamic linker and C library, so that the host's version is of no
   * importance. A program that re-executes itself (crun) runs on the host's C library with the sysroot's others.
   */
  command(program: string): Command {
    const file = this.file(program)
    if (isStatic(file)) return { argv: [file], env: {} }
    if (REEXEC.has(program)) return { argv: [file], env: { LD_LIBRARY_PATH: join(this.folder, 'lib') } }
    const libraries = [`usr/lib/${TRIPLET}`, 'usr/lib'].map((path) => join(this.root, path)).join(':')
    const linker = join(this.root, 'usr/lib64/ld-linux-x86-64.so.2')
    const argv = [linker, '--argv0', program, '--library-path', libraries, file]
    if (!program.startsWith('qemu-')) return { argv, env: {} }
    const data = ['usr/share/qemu', 'usr/share/seabios', 'usr/lib/ipxe/qemu']
      .map((path) => join(this.root, path))
      .filter((path) => program.startsWith('qemu-system-') && existsSync(path))
    return {
      argv: [...argv, ...data.flatMap((path) => ['-L', path])],
      env: { QEMU_MODULE_DIR: join(this.root, `usr/lib/${TRIPLET}/qemu`) },
    }
  }
}

const pending = new Map<SetName, Promise<Sysroot>>()

/**
 * The sysroot of a set: at once where it is in the cache, else resolved, downloaded and unpacked. Safe to call from
 * several processes at the same time.
 * @throws {@link CoracleError} HOST_TOOL without apt or dpkg, without the network, or for a package that is no more
 */
export async function sysroot(name: SetName, options: SysrootOptions = {}): Promise<Sysroot> {
  if (!options.update) {
    const there = cached(name)
    if (there) return there
  }
  const running = pending.get(name)
  if (running) return running
  const promise = fetch(name, options).finally(() => pending.delete(name))
  pending.set(name, promise)
  return promise
}

/** The sysroot of a set where it is in the cache; never touches the network. */
export function cached(name: SetName): Sysroot | undefined {
  try {
    const stamp = JSON.parse(readFileSync(stampPath(name), 'utf8')) as { key: string; folder: string }
    const folder = join(home(), stamp.folder)
    return stamp.key === keyOf(SETS[name]) && existsSync(folder) ? new Sysroot(name, folder) : undefined
  } catch {
    return undefined
  }
}

/**
 * How to run one of the programs that {@link SETS} lists, from whichever set has it; fetched where it is missing.
 * Never one of the system's: the same versions on every machine.
 */
export async function toolCommand(program: string, options: SysrootOptions = {}): Promise<Command> {
  for (const [name, set] of Object.entries(SETS) as [SetName, PackageSet][])
    if (set.tools.includes(program)) return (await sysroot(name, options)).command(program)
  throw new CoracleError('INTERNAL', `no set of Debian packages lists the program ${program}`)
}

const home = (): string => join(paths.cache, 'debian')
const stampPath = (name: SetName): string => join(home(), `${name}.json`)
const hash = (value: unknown): string =>
  createHash('sha256').update(JSON.stringify(value)).digest('hex').slice(0, 12)
const keyOf = (set: PackageSet): string => hash([LAYOUT, set])

async function fetch(name: SetName, options: SysrootOptions): Promise<Sysroot> {
  const report =
    options.report ??
    ((line: string): void => {
      process.stderr.write(`coracle: ${line}\n`)
    })
  return withFileLock(join(home(), 'lock'), async () => {
    const there = options.update ? undefined : cached(name)
    if (there) return there
    const set: PackageSet = SETS[name]
    const apt = new Apt(join(home(), 'apt', set.suite), set)
    const folder = await fill(name, set, apt, options.update ?? false, report).catch(
      async (error: unknown) => {
        // A list of yesterday may name a version that the mirror has no more: once again with today's.
        if (
          await apt.update(true).then(
            () => false,
            () => true,
          )
        )
          throw error
        return fill(name, set, apt, false, report)
      },
    )
    const stamp = `${stampPath(name)}.new`
    writeFileSync(stamp, JSON.stringify({ key: keyOf(set), folder }))
    renameSync(stamp, stampPath(name))
    return new Sysroot(name, join(home(), folder))
  })
}

/** Makes the folder of the set's current versions unless it is there. @returns its name */
async function fill(
  name: SetName,
  set: PackageSet,
  apt: Apt,
  update: boolean,
  report: (line: string) => void,
): Promise<string> {
  await apt.update(update)
  const packages = await apt.resolve(set)
  const folder = `${name}-${hash([LAYOUT, packages])}`
  if (existsSync(join(home(), folder))) return folder
  const bytes = packages.reduce((sum, { size }) => sum + size, 0)
  report(`fetching ${name} from Debian ${set.suite} (${packages.length} packages, ${megabytes(bytes)})`)
  await unpack(await apt.download(packages), packages, join(home(), folder))
  rmSync(apt.archives, { recursive: true, force: true })
  return folder
}

/** Unpacks into a folder beside `target` first: `target` is there completely or not at all. */
async function unpack(files: string[], packages: readonly Package[], target: string): Promise<void> {
  if (files.length < packages.length)
    throw new CoracleError('HOST_TOOL', `apt left out some of ${packages.map(({ name }) => name).join(', ')}`)
  const temporary = mkdtempSync(`${target}.`)
  try {
    const root = join(temporary, 'root')
    for (const part of ['bin', 'sbin', 'lib', 'lib64']) {
      mkdirSync(join(root, 'usr', part), { recursive: true })
      symlinkSync(`usr/${part}`, join(root, part))
    }
    for (const file of files) {
      const wrong = await pipe(
        ['dpkg-deb', '--fsys-tarfile', file],
        ['tar', '-x', '-C', root, '--keep-directory-symlink', '--no-same-owner', '--no-same-permissions'],
      )
      if (wrong) throw new CoracleError('HOST_TOOL', `cannot unpack ${file}: ${wrong}`)
    }
    linkLibraries(root, join(temporary, 'lib'))
    writeFileSync(join(temporary, 'packages.json'), JSON.stringify(packages, null, 1))
    renameSync(temporary, target)
  } catch (error) {
    rmSync(temporary, { recursive: true, force: true })
    throw error
  }
}

/** Fills `into` with links to all libraries but the C library's own, which must be of one version with the linker. */
function linkLibraries(root: string, into: string): void {
  mkdirSync(into)
  const folder = `usr/lib/${TRIPLET}`
  if (!existsSync(join(root, folder))) return
  for (const name of readdirSync(join(root, folder)))
    if (/\.so(\.|$)/.test(name) && !LIBC.test(name))
      symlinkSync(`../root/${folder}/${name}`, join(into, name))
}

const LIBC =
  /^(?:ld-linux.*|lib(?:c|m|mvec|dl|rt|pthread|resolv|util|anl|nsl|thread_db|BrokenLocale|c_malloc_debug|memusage|pcprofile|nss_.*))\.so/

/** An ELF file without PT_INTERP, or a script: what runs without a dynamic linker's help. */
function isStatic(path: string): boolean {
  const bytes = readFileSync(path)
  if (bytes.length < 64 || bytes.readUInt32BE(0) !== 0x7f454c46) return true
  const PT_INTERP = 3
  const start = Number(bytes.readBigUInt64LE(32))
  const count = bytes.readUInt16LE(56)
  for (let at = start; at < start + 56 * count && at + 4 <= bytes.length; at += 56)
    if (bytes.readUInt32LE(at) === PT_INTERP) return false
  return true
}

const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`
