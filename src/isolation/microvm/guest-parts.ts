import { existsSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { createWritableLayer, firmware, type Firmware, type FirmwareOptions } from '../../firmware/index.js'
import { driversOf, guestKernel } from '../../kernel/index.js'
import { replaceFile } from '../../durable.js'
import { CoracleError } from '../../errors.js'
import { type HostPciFunction, devicesOf } from '../../sriov/index.js'
import { copySparse } from '../copy-sparse.js'
import { sandboxFiles, savedFiles } from '../files.js'
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
  /** A saved guest with its container in it, to go on from. */
  readonly saved?: SnapshotFiles
  /** Devices of the host that were taken for it. */
  readonly devices: readonly HostPciFunction[]
}

/** The size of a container's guest. */
export function guestSize({ memory, cpus }: Pick<SandboxSpec, 'memory' | 'cpus'>): GuestSize {
  return { memory: memory > 0 ? memory : DEFAULT_MEMORY, cpus: Math.max(1, Math.ceil(cpus)) }
}

/**
 * Finds or makes the parts; with a filled cache this takes a few file system calls.
 * @throws CoracleError HOST_TOOL, INVALID_ARGUMENT for a writable layer that is too small, DEVICE_UNUSABLE for a device
 * without a driver in the kernel that was asked for
 */
export async function guestParts(spec: SandboxSpec): Promise<GuestParts> {
  const { disk, guest } = sandboxFiles(spec)
  if (spec.from !== undefined) return savedParts(spec, spec.from)
  const devices = spec.devices?.length ? devicesOf(spec.runDirectory) : []
  const [parts] = await Promise.all([kernelFor(spec, devices).then(firmware), makeDisk(disk, spec.diskSize)])
  replaceFile(guest, JSON.stringify({ tools: parts.tools.path }))
  // A template has no drivers of devices; and the guest's memory is pinned as it is, shared with nobody.
  const cold =
    spec.cold === true || spec.hypervisor === 'qemu' || spec.kernel === 'generic' || devices.length > 0
  const template = cold ? undefined : await findTemplate(parts, guestSize(spec))
  return { ...parts, disk, devices, ...(template && { template }) }
}

/** Copies of what a snapshot holds, so that it may be removed while the container runs. */
async function savedParts(spec: SandboxSpec, from: string): Promise<GuestParts> {
  const files = sandboxFiles(spec)
  const saved = savedFiles(from)
  if (!existsSync(saved.disk) || !existsSync(saved.tools))
    throw new CoracleError('NO_SUCH_SNAPSHOT', `the snapshot ${from} is gone`)
  const copy = async (source: string, path: string): Promise<void> => {
    await copySparse(source, `${path}.new`)
    renameSync(`${path}.new`, path)
  }
  const [parts] = await Promise.all([
    firmware(spec.kernel === undefined ? {} : { kernel: spec.kernel }),
    copy(saved.disk, files.disk),
    copy(saved.tools, files.tools),
  ])
  replaceFile(files.guest, JSON.stringify({ tools: files.tools }))
  const tools = { ...parts.tools, path: files.tools }
  return {
    ...parts,
    tools,
    disk: files.disk,
    devices: [],
    saved: { state: saved.state, memory: saved.memory },
  }
}

/** The image of the guest's tools that a sandbox runs on. @throws CoracleError SANDBOX_FAILED */
export function toolsOf(spec: SandboxSpec): string {
  try {
    const { tools } = JSON.parse(readFileSync(sandboxFiles(spec).guest, 'utf8')) as { tools: string }
    if (existsSync(tools)) return tools
  } catch {
    // It was started before this was kept.
  }
  throw new CoracleError(
    'SANDBOX_FAILED',
    'the files that the guest was started with are gone: start the container anew to save it',
  )
}

/** The kernel that was asked for, else the smallest that has a driver for each device; and those drivers. */
async function kernelFor(spec: SandboxSpec, devices: readonly HostPciFunction[]): Promise<FirmwareOptions> {
  if (devices.length === 0) return spec.kernel === undefined ? {} : { kernel: spec.kernel }
  for (const name of spec.kernel === undefined ? (['cloud', 'generic'] as const) : [spec.kernel]) {
    const { modules } = await guestKernel(name)
    const drivers = devices.map(({ modalias }) => driversOf(modules, modalias))
    const without = drivers.findIndex((each) => each === undefined)
    if (without < 0) return { kernel: name, drivers: [...new Set(drivers.flatMap((each) => each!))] }
    if (spec.kernel === 'cloud')
      throw new CoracleError(
        'DEVICE_UNUSABLE',
        `kernel cloud has no driver for device ${devices[without]!.id}: use --kernel generic`,
      )
  }
  // Nobody has one: what runs in the guest may bring its own.
  return { kernel: spec.kernel ?? 'generic' }
}

/** The disk of an earlier run is kept. The host never mounts it: the guest may have written anything into it. */
async function makeDisk(path: string, size: number): Promise<void> {
  if (existsSync(path)) return
  const temporary = `${path}.new`
  rmSync(temporary, { force: true })
  await createWritableLayer(temporary, size > 0 ? size : DEFAULT_DISK)
  renameSync(temporary, path)
}
