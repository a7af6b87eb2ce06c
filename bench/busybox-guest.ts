import { readFileSync, writeFileSync } from 'node:fs'
import { basename } from 'node:path'
import { sysroot } from '../src/debian/index.js'
import { Cpio, type GuestKernel, modulePaths } from '../src/kernel/index.js'

/**
 * Writes an initramfs of busybox with a shell script for its init, for guests that measure or are looked at. The
 * script begins with the file systems mounted and the modules loaded.
 * @param modules with what they need
 * @param script of busybox's shell
 * @param path of the file
 * @param programs more than busybox, by their names: paths of static ones
 */
export async function busyboxGuest(
  kernel: GuestKernel,
  modules: readonly string[],
  script: string,
  path: string,
  programs: Readonly<Record<string, string>> = {},
): Promise<string> {
  const busybox = (await sysroot('tools')).file('busybox')
  const cpio = new Cpio()
  for (const folder of ['proc', 'sys', 'dev']) cpio.directory(folder)
  cpio.characterDevice('dev/console', 5, 1)
  cpio.file('bin/busybox', readFileSync(busybox), 0o755).symlink('bin/sh', 'busybox')
  for (const [name, file] of Object.entries(programs)) cpio.file(`bin/${name}`, readFileSync(file), 0o755)
  const paths = modulePaths(kernel.modules, [...modules])
  for (const each of paths) cpio.file(`modules/${basename(each)}`, readFileSync(each))
  cpio.file('modules/order', Buffer.from(paths.map((each) => basename(each)).join('\n')))
  cpio.file('init', Buffer.from(HEAD + script), 0o755)
  writeFileSync(path, cpio.finish())
  return path
}

const HEAD = `#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
for module in $(cat /modules/order); do insmod /modules/$module || echo "failed=$module"; done
`
