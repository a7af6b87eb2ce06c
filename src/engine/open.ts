import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { readRegistryConfig } from '../image/registry/config.js'
import { Registry } from '../image/registry/registry.js'
import { ImageStore } from '../image/store.js'
import { launchSandbox, openSandbox, readExit, reap } from '../isolation/index.js'
import { CoracleError } from '../errors.js'
import { Networks } from '../network/networks.js'
import { paths } from '../paths.js'
import { Engine } from './engine.js'
import { readHost } from './host.js'

/**
 * The engine of this host, over the folders of paths.ts.
 * @throws CoracleError HOST_TOOL where the folders cannot be written
 */
export async function openHostEngine(): Promise<Engine> {
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
  const driver = { launchSandbox, openSandbox, readExit, reap }
  const registry = new Registry(images, readRegistryConfig)
  const networks = await Networks.open({ state, run })
  return Engine.open({ images, registry, driver, networks, host: readHost, state, run })
}
