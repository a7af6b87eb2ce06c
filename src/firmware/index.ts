import { guestKernel, type GuestKernel, type KernelName } from '../kernel/index.js'
import { buildAgent } from './program.js'
import { buildInitramfs } from './initramfs.js'
import { type Blob, buildTools } from './tools.js'

export { buildAgent, buildInit } from './program.js'
export { type InitramfsOptions, buildInitramfs } from './initramfs.js'
export { type Blob, INIT_IN_GUEST, buildTools } from './tools.js'
export { createWritableLayer } from './writable-layer.js'

/** What a microVM boots, besides the image's layers. */
export interface Firmware {
  readonly kernel: GuestKernel
  /** Path of the initramfs: the agent and the kernel modules it loads. */
  readonly initramfs: string
  /** The guest's own root file system, read-only: crun and its libraries, and containers' init. */
  readonly tools: Blob
}

export interface FirmwareOptions {
  /** @default 'cloud' */
  readonly kernel?: KernelName
  /** @see InitramfsOptions.drivers */
  readonly drivers?: readonly string[]
}

/**
 * Everything a microVM boots: built in the cache on first use (a minute, mostly downloads, told on stderr), then found
 * there in milliseconds.
 * @throws {@link CoracleError} HOST_TOOL where something cannot be fetched or compiled
 */
export async function firmware({ kernel: name = 'cloud', drivers = [] }: FirmwareOptions = {}): Promise<Firmware> {
  const kernel = await guestKernel(name)
  const agent = await buildAgent()
  return { kernel, initramfs: await buildInitramfs({ kernel, agent, drivers }), tools: await buildTools() }
}
