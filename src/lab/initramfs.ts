import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { sysroot } from '../debian/index.js'
import { Cpio, modulePaths, type GuestKernel } from '../kernel/index.js'
import { paths } from '../paths.js'
import { stage1 } from './init.js'

/** Up to the switch to the host's root; the kernel loads all others on demand from there. */
const MODULES = ['virtio_pci', '9pnet_virtio', '9p', 'overlay', 'virtio_console']

/** The emulated host's initramfs for `kernel`, made where it is not in the cache. @returns its path */
export async function labInitramfs(kernel: GuestKernel): Promise<string> {
  const tools = await sysroot('tools')
  const modules = modulePaths(kernel.modules, MODULES)
  const init = stage1(modules.map((path) => `/modules/${basename(path)}`))
  const key = createHash('sha256')
    .update(JSON.stringify([init, modules, tools.folder]))
    .digest('hex')
    .slice(0, 16)
  const target = join(paths.cache, 'lab', `initramfs-${key}.cpio`)
  if (existsSync(target)) return target
  const cpio = new Cpio()
  for (const folder of ['dev', 'proc', 'sys']) cpio.directory(folder)
  cpio.file('bin/busybox', readFileSync(tools.file('busybox')), 0o755)
  for (const path of modules) cpio.file(`modules/${basename(path)}`, readFileSync(path))
  cpio.file('init', Buffer.from(init), 0o755)
  mkdirSync(join(paths.cache, 'lab'), { recursive: true })
  const temporary = `${target}.${process.pid}`
  writeFileSync(temporary, cpio.finish())
  renameSync(temporary, target)
  return target
}
