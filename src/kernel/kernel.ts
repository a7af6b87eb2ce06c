import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import {
  run,
  sysroot,
  toolCommand,
  withFileLock,
  type SetName,
  type SysrootOptions,
} from '../debian/index.js'
import { CoracleError } from '../errors.js'
import { paths } from '../paths.js'
import { parseBzImage } from './bzimage.js'
import { parseElf } from './elf.js'
import { unpackPayload } from './payload.js'

/** A kernel of kernels/catalogue.json. */
export type KernelName = 'cloud' | 'generic'

const CATALOGUE = fileURLToPath(new URL('../../../kernels/catalogue.json', import.meta.url))

/** A kernel's files, all absolute paths. */
export interface GuestKernel {
  readonly name: KernelName
  /** As `uname -r` prints it in the guest. */
  readonly release: string
  readonly bzImage: string
  /** The uncompressed ELF image. */
  readonly vmlinux: string
  /** `lib/modules/<release>`, with modules.dep. */
  readonly modules: string
  /** The configuration it was built with. */
  readonly config: string
}

/**
 * A kernel of the catalogue: at once where it is in the cache, else fetched, verified by apt and unpacked.
 * @throws {@link CoracleError} HOST_TOOL when it cannot be fetched, KERNEL_INVALID when it cannot be unpacked
 */
export async function guestKernel(name: KernelName, options: SysrootOptions = {}): Promise<GuestKernel> {
  const { root, folder } = await sysroot(setOf(name), options)
  const release = readdirSync(join(root, 'usr/lib/modules'))[0]!
  const kernel: GuestKernel = {
    name,
    release,
    bzImage: join(root, 'boot', `vmlinuz-${release}`),
    vmlinux: join(paths.cache, 'kernel', `vmlinux-${basename(folder)}`),
    modules: join(root, 'usr/lib/modules', release),
    config: join(root, 'boot', `config-${release}`),
  }
  const dependencies = join(kernel.modules, 'modules.dep')
  if (existsSync(kernel.vmlinux) && existsSync(dependencies)) return kernel
  await withFileLock(join(paths.cache, 'kernel/lock'), async () => {
    if (!existsSync(dependencies)) {
      const { argv, env } = await toolCommand('depmod', options)
      const { status, stderr } = await run([...argv, '-b', root, release], {
        env: { ...process.env, ...env },
      })
      if (status !== 0) throw new CoracleError('HOST_TOOL', `depmod failed for ${release}: ${stderr.trim()}`)
    }
    if (!existsSync(kernel.vmlinux)) await writeVmlinux(kernel.bzImage, kernel.vmlinux)
  })
  return kernel
}

/**
 * The uncompressed ELF image of any kernel file: of an ELF image the path itself, of a bzImage one in the cache,
 * named after its content.
 * @throws {@link CoracleError} KERNEL_INVALID for a file that is no kernel
 */
export async function vmlinuxOf(path: string): Promise<string> {
  const image = readKernel(path)
  if (isElf(image)) {
    parseElf(image, path)
    return path
  }
  parseBzImage(image, path)
  const digest = createHash('sha256').update(image).digest('hex').slice(0, 16)
  const target = join(paths.cache, 'kernel', `vmlinux-${digest}`)
  if (!existsSync(target))
    await withFileLock(join(paths.cache, 'kernel/lock'), async () => {
      if (!existsSync(target)) await writeVmlinux(path, target)
    })
  return target
}

function setOf(name: KernelName): SetName {
  const catalogue = JSON.parse(readFileSync(CATALOGUE, 'utf8')) as Record<string, { sysroot: SetName }>
  const entry = catalogue[name]
  if (entry) return entry.sysroot
  const known = Object.keys(catalogue).join(', ')
  throw new CoracleError('KERNEL_INVALID', `there is no kernel named '${String(name)}'; there are: ${known}`)
}

const isElf = (image: Buffer): boolean => image.length >= 4 && image.readUInt32BE(0) === 0x7f454c46

function readKernel(path: string): Buffer {
  try {
    return readFileSync(path)
  } catch (error) {
    throw new CoracleError('KERNEL_INVALID', `cannot read the kernel ${path}: ${(error as Error).message}`, {
      cause: error,
    })
  }
}

async function writeVmlinux(bzImage: string, target: string): Promise<void> {
  const image = readKernel(bzImage)
  const vmlinux = await unpackPayload(image, parseBzImage(image, bzImage), bzImage)
  parseElf(vmlinux, bzImage)
  mkdirSync(join(paths.cache, 'kernel'), { recursive: true })
  writeFileSync(`${target}.new`, vmlinux)
  renameSync(`${target}.new`, target)
}
