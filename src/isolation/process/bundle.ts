import { mkdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { buildInit } from '../../firmware/index.js'
import { initMount, withInit } from '../init.js'
import { mountsInOrder } from '../mounts.js'
import { namespacesOf } from '../network.js'
import type { OciConfig, SandboxFile, SandboxLimits, SandboxSpec } from '../sandbox.js'
import { MAX_USER_FILE, withUser } from '../user.js'
import { cgroupPath } from './cgroup.js'
import { hostDevices } from './device-files.js'
import { readRootFile } from './root-file.js'

/** Microseconds; the kernel's own default for a CFS period. */
const CPU_PERIOD = 100_000

interface Linux {
  resources?: { readonly devices?: readonly object[]; readonly memory?: object; readonly cpu?: object }
}

/** Limits as OCI's `linux.resources` has them. */
function resourcesOf(
  { memory = 0, cpus = 0, cpuShares: shares = 0 }: SandboxLimits,
  further: Linux['resources'],
): object {
  const quota = Math.max(1000, Math.round(cpus * CPU_PERIOD))
  const cpu = {
    ...further?.cpu,
    ...(cpus > 0 && { period: CPU_PERIOD, quota }),
    ...(shares > 0 && { shares }),
  }
  return {
    ...(memory > 0 && { memory: { ...further?.memory, limit: memory } }),
    ...(Object.keys(cpu).length > 0 && { cpu }),
  }
}

/**
 * The config.json for crun on the host: the engine's, with the paths and limits that only this driver knows.
 * @param root the mounted root file system
 * @param sharedMemory a folder for /dev/shm, where nothing else is asked for there
 * @throws CoracleError INVALID_ARGUMENT for a user that the image does not have
 */
export async function hostBundle(spec: SandboxSpec, root: string, sharedMemory?: string): Promise<OciConfig> {
  const linux: Linux = spec.bundle.linux ?? {}
  const init = spec.init === true ? [initMount(await buildInit())] : []
  const { devices, rules } = hostDevices(spec.deviceFiles ?? [])
  const resources = {
    ...linux.resources,
    ...resourcesOf(spec, linux.resources),
    devices: [...(linux.resources?.devices ?? []), ...rules],
  }
  const { pid, ipc, network } = spec.joins ?? {}
  const namespaces = namespacesOf(spec.bundle, {
    network: namespaceOf(network, 'net') ?? spec.network?.namespace,
    pid: namespaceOf(pid, 'pid'),
    ipc: namespaceOf(ipc, 'ipc'),
  })
  const process = await withUser(spec.bundle, (path) => readRootFile(root, path, MAX_USER_FILE))
  return {
    ...spec.bundle,
    process: { ...process, args: withInit(spec, process.args), terminal: spec.tty },
    root: { ...spec.bundle.root, path: root },
    ...(namespaces.some(({ type }) => type === 'uts') && { hostname: spec.hostname }),
    mounts: mountsInOrder(
      [...(spec.bundle.mounts ?? []), ...sharedMemoryMount(spec, sharedMemory)],
      [
        ...init,
        ...(spec.mounts ?? []).map((mount) => ({
          mount,
          source: mount.source,
          isFolder: statSync(mount.source, { throwIfNoEntry: false })?.isDirectory() === true,
        })),
      ],
      ownFiles(spec),
    ),
    linux: {
      ...linux,
      namespaces,
      ...(devices.length > 0 && { devices }),
      cgroupsPath: cgroupPath(spec),
      resources,
    },
  }
}

function sharedMemoryMount(
  { bundle, mounts = [] }: SandboxSpec,
  source: string | undefined,
): NonNullable<OciConfig['mounts']> {
  const destination = '/dev/shm'
  if (
    source === undefined ||
    [...(bundle.mounts ?? []), ...mounts].some((each) => each.destination === destination)
  )
    return []
  const options = ['rbind', 'rprivate', 'nosuid', 'noexec', 'nodev']
  return [{ destination, type: 'bind', source, options }]
}

const namespaceOf = (process: number | undefined, kind: string): string | undefined =>
  process === undefined ? undefined : `/proc/${process}/ns/${kind}`

/** Writes the sandbox's own files, to be bound over the image's. */
function ownFiles({ runDirectory, network }: SandboxSpec): { file: SandboxFile; source: string }[] {
  const folder = join(runDirectory, 'files')
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  return (network?.files ?? []).map((file, i) => {
    const source = join(folder, `${i}`)
    writeFileSync(source, file.content, { mode: 0o644 })
    return { file, source }
  })
}
