import type { OciConfig, SandboxSpec } from '../sandbox.js'
import { cgroupPath } from './cgroup.js'
import { resolveUser } from './user.js'

/** Microseconds; the kernel's own default for a CFS period. */
const CPU_PERIOD = 100_000
/** Under which the engine hands on the user as it was written: names are the image's to resolve. */
const USER_ANNOTATION = 'coracle.user'
const NAMESPACES = ['pid', 'mount', 'network', 'ipc', 'uts']

interface Linux {
  namespaces?: { type: string; path?: string }[]
  resources?: { memory?: object; cpu?: object; pids?: object }
}

/**
 * The config.json for crun on the host: the engine's, with the paths and limits that only this driver knows.
 * @param root the mounted root file system
 * @throws CoracleError INVALID_ARGUMENT for a user that the image does not have
 */
export function hostBundle(spec: SandboxSpec, root: string): OciConfig {
  const linux: Linux = spec.bundle.linux ?? {}
  const resources = { ...linux.resources }
  if (spec.memory > 0) resources.memory = { ...resources.memory, limit: spec.memory }
  if (spec.cpus > 0)
    resources.cpu = {
      ...resources.cpu,
      period: CPU_PERIOD,
      quota: Math.max(1000, Math.round(spec.cpus * CPU_PERIOD)),
    }
  const written = spec.bundle.annotations?.[USER_ANNOTATION]
  const user = written === undefined ? spec.bundle.process.user : resolveUser(root, written)
  const { capabilities } = spec.bundle.process
  return {
    ...spec.bundle,
    process: {
      ...spec.bundle.process,
      terminal: spec.tty,
      user: { ...spec.bundle.process.user, ...user },
      ...(capabilities && user.uid !== 0
        ? { capabilities: { ...capabilities, effective: [], permitted: [], ambient: [] } }
        : {}),
    },
    root: { ...spec.bundle.root, path: root },
    hostname: spec.hostname,
    linux: {
      ...linux,
      namespaces: linux.namespaces ?? NAMESPACES.map((type) => ({ type })),
      cgroupsPath: cgroupPath(spec.id),
      resources,
    },
  }
}
