import { existsSync, renameSync, rmSync } from 'node:fs'
import { createWritableLayer, firmware, type Firmware } from '../../firmware/index.js'
import { sandboxFiles } from '../files.js'
import type { SnapshotFiles } from '../../vmm/snapshot/snapshot.js'
import type { SandboxSpec } from '../sandbox.js'
import { type GuestSize, findTemplate } from './template.js'

/** A guest's memory where nobody says how much, in bytes. */
export const DEFAULT_MEMORY = 512 * 2 ** 20
/** The writable layer where nobody says how large, in bytes: sparse, so it costs what is written. */
const DEFAULT_DISK = 10 * 2 ** 30

/** What every guest is made of, beside its layers: files. */
export interface GuestParts extends Firmware {
  /** The container's writable layer. */
  readonly disk: string
  /** A saved guest to start from, the files of a snapshot; without it the guest boots. */
  readonly template?: SnapshotFiles
}

/** The size of a container's guest. */
export function guestSize({ memory, cpus }: Pick<SandboxSpec, 'memory' | 'cpus'>): GuestSize {
  return { memory: memory > 0 ? memory : DEFAULT_MEMORY, cpus: Math.max(1, Math.ceil(cpus)) }
}

/**
 * Finds or makes the parts; with a filled cache this takes a few file system calls.
 * @throws CoracleError HOST_TOOL, and INVALID_ARGUMENT for a writable layer that is too small
 */
export async function guestParts(spec: SandboxSpec): Promise<GuestParts> {
  const { disk } = sandboxFiles(spec)
  const [parts] = await Promise.all([firmware(), makeDisk(disk, spec.diskSize)])
  const template =
    spec.hypervisor === 'qemu' || spec.cold === true ? undefined : await findTemplate(parts, guestSize(spec))
  return { ...parts, disk, ...(template && { template }) }
}

/** The disk of an earlier run is kept. The host never mounts it: the guest may have written anything into it. */
async function makeDisk(path: string, size: number): Promise<void> {
  if (existsSync(path)) return
  const temporary = `${path}.new`
  rmSync(temporary, { force: true })
  await createWritableLayer(temporary, size > 0 ? size : DEFAULT_DISK)
  renameSync(temporary, path)
}
