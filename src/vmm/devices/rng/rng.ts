import { Fd, IoVector, O_RDONLY } from '@coracle/sys'
import type { DeviceContext, VirtioDevice } from 'vhost-user-ts'
import { Turn } from '../turn.js'

const VIRTIO_ID_RNG = 4
/** A request gets at most this much; the driver asks again for more (virtio 1.2 §5.4.6.2 lets us give less). */
const MAX_BYTES = 64 << 10
/** Requests handled before other devices get their turn. */
const BUDGET = 16

/**
 * The entropy device (virtio 1.2 §5.4): the kernel's random bytes, read straight into the guest's buffers. One
 * request costs a bounded amount of work, whatever its length.
 */
export class Rng implements VirtioDevice {
  readonly name = 'rng'
  readonly type = VIRTIO_ID_RNG
  readonly queueSizes = [64]
  readonly features = 0n
  readonly config = new Uint8Array(0)
  readonly #vector = new IoVector()
  #active: { context: DeviceContext; source: Fd; turn: Turn } | undefined

  activate(context: DeviceContext): void {
    const source = Fd.open('/dev/urandom', O_RDONLY)
    const turn = Turn.of(context, () => this.notify())
    this.#active = { context, source, turn }
  }

  notify(): void {
    const queue = this.#active?.context.queues[0]
    if (!this.#active || !queue) return
    const { context, source, turn } = this.#active
    let budget = BUDGET
    do {
      for (let chain = queue.pop(); chain; chain = budget > 0 ? queue.pop() : undefined) {
        budget--
        chain.writer.vector(this.#vector.clear(), MAX_BYTES)
        queue.push(chain, this.#vector.count > 0 ? Math.max(0, source.readv(this.#vector)) : 0)
      }
    } while (queue.enableNotifications() && budget > 0)
    if (budget <= 0) turn.later()
    if (queue.flush()) context.interrupt(0)
  }

  reset(): void {
    this.#active?.source.close()
    this.#active?.turn[Symbol.dispose]()
    this.#active = undefined
  }

  save(): null {
    return null
  }
}
