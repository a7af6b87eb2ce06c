import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { CoracleError } from '../errors.js'
import { Cpio, modulePaths } from '../kernel/index.js'
import { paths } from '../paths.js'
import { make } from './file.js'

/** Raise when the same inputs are to give another initramfs. */
const LAYOUT = 1

/**
 * What the agent loads before it says hello: the way to the host, no more. A module with a condition is loaded only
 * where that path is in the guest; LNRO0005 is virtio-mmio's ACPI id.
 */
const FOR_HELLO = [
  { name: 'virtio_pci' },
  { name: 'virtio_mmio', condition: '/sys/bus/acpi/devices/LNRO0005:00' },
  { name: 'vmw_vsock_virtio_transport' },
] as const

/**
 * What it loads after: disks, file systems, network adapters, what gives memory back. The cloud kernel has some of it
 * built in. The checksum is what ext4 and erofs ask for by name, which the guest has no modprobe to answer.
 */
const FOR_WORKLOAD = [
  'virtio_pmem',
  'nd_pmem',
  'virtio_blk',
  'crc32c_generic',
  'ext4',
  'erofs',
  'overlay',
  'virtio_rng',
  'virtio_net',
  'virtiofs',
  'virtio_balloon',
] as const

export interface InitramfsOptions {
  /** `modules`: `lib/modules/<release>`, with modules.dep. */
  readonly kernel: { readonly release: string; readonly modules: string }
  /** Path of the agent's program, whose name holds the hash of its sources. */
  readonly agent: string
  /** Further modules, of devices that this guest has: loaded last. @default none */
  readonly drivers?: readonly string[]
}

/**
 * The guest's first file system: the agent as /init and the kernel's modules that it loads, uncompressed (the kernel
 * copies it faster than it inflates one).
 * @returns its path in the cache
 * @throws {@link CoracleError} KERNEL_INVALID where the kernel lacks a module
 */
export async function buildInitramfs({ kernel, agent, drivers = [] }: InitramfsOptions): Promise<string> {
  const key = JSON.stringify([
    LAYOUT,
    kernel.release,
    kernel.modules,
    FOR_HELLO,
    FOR_WORKLOAD,
    basename(agent),
    ...drivers,
  ])
  const hash = createHash('sha256').update(key).digest('hex').slice(0, 16)
  return make(join(paths.cache, 'firmware', `initramfs-${hash}.cpio`), async (temporary) => {
    await writeFile(temporary, archive(kernel.modules, readFileSync(agent), drivers))
  })
}

/**
 * `/init`, `/modules/*.ko`, and the lists that the agent reads: `/modules/hello` and `/modules/workload` (one module
 * a line in the order of loading, with its condition), `/modules/files` (all of these, to be deleted in the end).
 */
function archive(folder: string, agent: Buffer, drivers: readonly string[]): Buffer {
  const files = new Map<string, Buffer>([['init', agent]])
  const list = (path: string, wanted: readonly { name: string; condition?: string }[]): void => {
    const lines: string[] = []
    for (const { name, condition } of wanted)
      for (const source of modulePaths(folder, [name])) {
        if (!source.endsWith('.ko'))
          throw new CoracleError(
            'KERNEL_INVALID',
            `${source} is compressed; the guest loads plain modules only`,
          )
        const file = `modules/${basename(source)}`
        if (files.has(file)) continue
        files.set(file, readFileSync(source))
        // What only a conditional module needs is loaded in any case: it does nothing by itself.
        const conditional = condition !== undefined && basename(source).replaceAll('-', '_') === `${name}.ko`
        lines.push(conditional ? `/${file} ${condition}\n` : `/${file}\n`)
      }
    files.set(path, Buffer.from(lines.join('')))
  }
  list('modules/hello', FOR_HELLO)
  list(
    'modules/workload',
    [...FOR_WORKLOAD, ...drivers].map((name) => ({ name })),
  )
  const all = [...files.keys(), 'modules/files'].map((path) => `/${path}\n`)
  files.set('modules/files', Buffer.from(all.join('')))
  // Where the kernel opens init's standard streams, before devtmpfs is there.
  const cpio = new Cpio().characterDevice('dev/console', 5, 1)
  for (const [path, content] of files) cpio.file(path, content, path === 'init' ? 0o755 : 0o644)
  return cpio.finish()
}
