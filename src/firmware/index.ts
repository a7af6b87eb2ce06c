import { guestKernel, type GuestKernel } from '../kernel/index.js'
import { buildAgent } from './agent.js'
import { buildInitramfs } from './initramfs.js'
import { type Blob, buildTools } from './tools.js'

export { buildAgent } from './agent.js'
export { type InitramfsOptions, buildInitramfs } from './initramfs.js'
export { type Blob, buildTools } from './tools.js'
export { createWritableLayer } from './writable-layer.js'

/** What a microVM boots, besides the image's layers. */
export interface Firmware {
  readonly kernel: GuestKernel
  /** Path of the initramfs: the agent and the kernel modules it loads. */
  readonly initramfs: string
  /** The guest's own root file system, read-only: crun and its libraries. */
  readonly tools: Blob
}

/**
 * Everything a microVM boots: built in the cache on first use (a minute, mostly downloads, told on stderr), then found
 * there in milliseconds.
 * @throws {@link CoracleError} HOST_TOOL where something cannot be fetched or compiled
 */
export async function firmware(): Promise<Firmware> {
  const kernel = await guestKernel('cloud')
  const agent = await buildAgent()
  return { kernel, initramfs: await buildInitramfs({ kernel, agent }), tools: await buildTools() }
}
