import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { readRegistryConfig } from '../image/registry/config.js'
import { Registry } from '../image/registry/registry.js'
import { ImageStore } from '../image/store.js'
import { BoxPool, MonitorPool, launchSandbox, openSandbox, readExit, reap } from '../isolation/index.js'
import type { Sandbox, SandboxSpec } from '../isolation/sandbox.js'
import { CoracleError } from '../errors.js'
import { KeptKeeper } from '../network/keeper/client.js'
import { Networks } from '../network/networks.js'
import { paths } from '../paths.js'
import { Engine } from './engine.js'
import { chooseHypervisor, readHost } from './host.js'

/** What a daemon adds to an engine. */
export interface HostEngineOptions {
  /** Kept: processes of microVMs that are started and empty ({@link openBoxPool}). */
  readonly boxes?: BoxPool
  /** The same for containers without a box of ours: process isolation, and microVMs in QEMU. */
  readonly monitors?: MonitorPool
  /** Keeps the networks' keeper between containers. */
  readonly keeper?: KeptKeeper
}

/**
 * The pool of started, empty microVM processes for a daemon on this host.
 * @param size undefined: as many as help, where microVMs run in our own VMM; 0: none
 */
export function openBoxPool(size: number | undefined, log: (line: string) => void): BoxPool {
  const useful = process.getuid?.() === 0 && chooseHypervisor('auto', readHost()).hypervisor === 'kvm'
  return new BoxPool({ size: useful ? (size ?? DEFAULT_BOXES) : 0, folder: join(paths.run, 'boxes'), log })
}

/** The pool of started, empty monitors for a daemon. @param size undefined: as many as help; 0: none */
export const openMonitorPool = (size = DEFAULT_BOXES): MonitorPool => new MonitorPool(size)

/** For a daemon: keeps the networks' keeper between one container and the next. */
export const openKeeper = (): KeptKeeper => new KeptKeeper(paths.run, paths.state)

/** Each costs some tens of MiB, and a burst of starts longer than this waits as if there were none. */
const DEFAULT_BOXES = 2

/**
 * The engine of this host, over the folders of paths.ts.
 * @throws CoracleError HOST_TOOL where the folders cannot be written
 */
export async function openHostEngine({ boxes, monitors, keeper }: HostEngineOptions = {}): Promise<Engine> {
  const { state, run } = paths
  for (const path of [state, run]) {
    try {
      mkdirSync(path, { recursive: true, mode: 0o700 })
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      throw new CoracleError(
        'HOST_TOOL',
        `cannot make the folder ${path} (${code}): set CORACLE_ROOT and CORACLE_RUN`,
      )
    }
  }
  const images = await ImageStore.open(join(state, 'images'))
  const sources = { ...(boxes && { boxes: boxes.take }), ...(monitors && { monitors: monitors.take }) }
  const launch = (spec: SandboxSpec): Promise<Sandbox> => launchSandbox(spec, sources)
  const driver = { launchSandbox: launch, openSandbox, readExit, reap }
  const registry = new Registry(images, readRegistryConfig)
  const networks = await Networks.open({ state, run, ...(keeper && { keeper: keeper.ask }) })
  return Engine.open({ images, registry, driver, networks, host: readHost, state, run })
}
