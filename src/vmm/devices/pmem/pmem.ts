import type { DescriptorChain, DeviceContext, SavedState, VirtioDevice } from 'vhost-user-ts'
import { Turn } from '../turn.js'

const VIRTIO_ID_PMEM = 27
const VIRTIO_PMEM_REQ_TYPE_FLUSH = 0

export interface PmemInit {
  /** For logs, such as `blobs`. */
  readonly name: string
  /** Where the guest finds the region: guest-physical, a multiple of 2 MiB. */
  readonly guestAddress: number
  /** Bytes, a multiple of 2 MiB. */
  readonly size: number
  /** Makes what the guest wrote outlast a crash of the host; without it the region is read-only. @throws SysError */
  readonly flush?: () => void
}

/**
 * The persistent memory device (virtio 1.2 §5.19): it only says where the region is. The region itself is a memslot
 * of the VMM's, mapped from files, so the guest reads it (with DAX) at the speed of memory, from the host's page
 * cache, and without one exit to us.
 */
export class Pmem implements VirtioDevice {
  readonly name: string
  readonly type = VIRTIO_ID_PMEM
  readonly queueSizes = [64]
  readonly features = 0n
  readonly config = new Uint8Array(16)
  readonly #flush: (() => void) | undefined
  readonly #place: SavedState
  #active: { context: DeviceContext; turn: Turn } | undefined

  constructor({ name, guestAddress, size, flush }: PmemInit) {
    this.name = `pmem ${name}`
    this.#flush = flush
    this.#place = { address: guestAddress, size }
    const config = new DataView(this.config.buffer)
    config.setBigUint64(0, BigInt(guestAddress), true)
    config.setBigUint64(8, BigInt(size), true)
  }

  activate(context: DeviceContext): void {
    this.#active = { context, turn: Turn.of(context, () => this.notify()) }
  }

  notify(): void {
    const queue = this.#active?.context.queues[0]
    if (!this.#active || !queue) return
    const { context, turn } = this.#active
    // One flush serves all requests that wait: each asks for what was written before it.
    const chains: DescriptorChain[] = []
    for (let chain = queue.pop(); chain; chain = queue.pop()) chains.push(chain)
    const result = chains.length > 0 ? this.#sync() : 0
    for (const chain of chains) {
      const known = chain.reader.u32() === VIRTIO_PMEM_REQ_TYPE_FLUSH
      chain.writer.u32(known ? result : 1)
      queue.push(chain, 4)
    }
    // One that came in since rang no doorbell.
    if (queue.enableNotifications()) turn.later()
    if (queue.flush()) context.interrupt(0)
  }

  reset(): void {
    this.#active?.turn[Symbol.dispose]()
    this.#active = undefined
  }

  save(): SavedState {
    this.#flush?.()
    return this.#place
  }

  /** The guest has the region mapped: it must be where it was. @throws Error */
  restore(state: SavedState): void {
    if (JSON.stringify(state) === JSON.stringify(this.#place)) return
    throw new Error(`the region was at ${JSON.stringify(state)}, and is at ${JSON.stringify(this.#place)}`)
  }

  #sync(): number {
    try {
      this.#flush?.()
      return 0
    } catch {
      return 1
    }
  }
}
