import { readFileSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { sysroot } from '../../src/debian/index.js'
import { Cpio, type GuestKernel, modulePaths } from '../../src/kernel/index.js'
import type { Machine } from '../../src/vmm/machine.js'

/**
 * An initramfs with busybox, in `folder`.
 * @param modules whose files are in `/modules`, and their names there, in the order to load them, in `/modules/order`
 * @param init the script that is the guest's first process
 * @param programs further ones, by their paths
 */
export async function busyboxInitramfs(
  kernel: GuestKernel,
  folder: string,
  modules: readonly string[],
  init: string,
  programs: readonly (readonly [path: string, content: Buffer])[] = [],
): Promise<string> {
  const busybox = (await sysroot('tools')).file('busybox')
  const cpio = new Cpio()
  for (const path of ['proc', 'sys', 'dev', 'tmp']) cpio.directory(path)
  cpio.characterDevice('dev/console', 5, 1)
  cpio.file('bin/busybox', readFileSync(busybox), 0o755).symlink('bin/sh', 'busybox')
  const paths = modulePaths(kernel.modules, modules)
  for (const path of paths) cpio.file(`modules/${basename(path)}`, readFileSync(path))
  cpio.file('modules/order', Buffer.from(paths.map((path) => basename(path)).join('\n')))
  for (const [path, content] of programs) cpio.file(path, content, 0o755)
  cpio.file('init', Buffer.from(init), 0o755)
  const path = join(folder, `initramfs-${kernel.release}`)
  writeFileSync(path, cpio.finish())
  return path
}

/** Waits until a guest has said `key=`, or has ended. */
export class Said {
  #machine: Machine | undefined
  #waiting: (() => void) | undefined
  readonly heard = (): void => this.#waiting?.()
  of(machine: Machine): this {
    this.#machine = machine
    return this
  }
  async until(key: string): Promise<void> {
    const machine = this.#machine!
    const pattern = new RegExp(`^${key}=[^\n]*\n`, 'm')
    const said = async (): Promise<void> => {
      while (!pattern.test(machine.console)) await new Promise<void>((resolve) => (this.#waiting = resolve))
    }
    await Promise.race([said(), machine.exited])
  }
}

/** The lines `key=value` of a guest's console. */
export const saidBy = ({ console }: Machine): Record<string, string> =>
  Object.fromEntries([...console.matchAll(/^(\w+)=(.*?)\r?$/gm)].map(([, key, value]) => [key!, value!]))
