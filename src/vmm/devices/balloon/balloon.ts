import {
  type DescriptorChain,
  type DeviceContext,
  type SavedState,
  VirtioError,
  type VirtioDevice,
  type Virtqueue,
} from 'vhost-user-ts'
import { CoracleError } from '../../../errors.js'
import { Turn } from '../turn.js'

/** linux/virtio_balloon.h */
const VIRTIO_ID_BALLOON = 5
const VIRTIO_BALLOON_F_STATS_VQ = 1n << 1n
const VIRTIO_BALLOON_F_REPORTING = 1n << 5n
/** Pages of the balloon are 4 KiB, whatever the guest's own are (virtio 1.2 §5.5.6). */
const BALLOON_PAGE = 4096
/** struct virtio_balloon_config: num_pages, actual. */
const CONFIG_SIZE = 8
const NUM_PAGES = 0
const ACTUAL = 4
const INFLATE = 0
const DEFLATE = 1
/** The queues behind: of those that a driver did not ask for none is left out, the others move up. */
const FIRST_OPTIONAL = 2
const QUEUE_SIZE = 128
/** Page numbers in one request; Linux sends 256. */
const MAX_PAGES = 1024
/** Requests handled before other devices get their turn. */
const BUDGET = 16
/** struct virtio_balloon_stat: a tag (le16) and a value (le64), packed. */
const STAT_SIZE = 10
const MAX_STATS = 32
/** Its tags, in their order (VIRTIO_BALLOON_S_*). */
const STATS = [
  'swapIn',
  'swapOut',
  'majorFaults',
  'minorFaults',
  'free',
  'total',
  'available',
  'caches',
  'hugePagesAllocated',
  'hugePagesFailed',
] as const

/** What a guest says of its memory: bytes, and counts of faults. Hostile like all that it says. */
export type BalloonStats = { readonly [K in (typeof STATS)[number]]?: number }

/** What {@link Balloon.control} is asked: nothing, for the state alone. */
export interface BalloonRequest {
  /** Bytes that the balloon is to take from the guest. */
  readonly target?: number
}

export interface BalloonState {
  /** Bytes that the balloon is to take. */
  readonly target: number
  /** Bytes that the guest says it has given. */
  readonly actual: number
  /** Bytes given back to the host since the start, by balloon and by reports; a page may count often. */
  readonly discarded: number
  /** As the guest had them when it was asked last; asking this time makes it bring them up to date. */
  readonly stats: BalloonStats
}

export interface BalloonInit {
  /** Bytes of the guest's RAM: more is never asked for. */
  readonly memory: number
  /** Gives whole pages back to the host, as far as they are RAM. @returns bytes @throws SysError */
  readonly discard: (address: number, length: number) => number
  readonly log?: (line: string) => void
}

/**
 * The memory balloon (virtio 1.2 §5.5): pages that the guest puts in, or reports to be free, go back to the host. It
 * gives them up of its own free will, so this limits a guest only as far as its kernel is what it seems to be. What it
 * has given up it does not take back when its memory runs out (DEFLATE_ON_OOM is not offered): less memory is then as
 * if there never had been more.
 *
 * What a page holds after it was given up is not promised: zeros, or in a clone what the snapshot has there, which is
 * this guest's own past. Without PAGE_POISON the driver must take such a page for uninitialized (§5.5.6.7.1), and a
 * Linux that counts on the content of its free pages (init_on_free, page_poison) reports none then.
 */
export class Balloon implements VirtioDevice {
  readonly name = 'balloon'
  readonly type = VIRTIO_ID_BALLOON
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE]
  readonly features = VIRTIO_BALLOON_F_STATS_VQ | VIRTIO_BALLOON_F_REPORTING
  readonly config = new Uint8Array(CONFIG_SIZE)
  readonly #view = new DataView(this.config.buffer)
  readonly #init: BalloonInit
  #active: { context: DeviceContext; turn: Turn; stats: number; reports: number } | undefined
  #stats: BalloonStats = {}
  #discarded = 0

  constructor(init: BalloonInit) {
    this.#init = init
  }

  /** `actual` is the driver's to write (§5.5.6.2). */
  writeConfig(offset: number, data: Uint8Array): void {
    if (offset >= ACTUAL) this.config.set(data, offset)
  }

  activate(context: DeviceContext): void {
    const has = (feature: bigint): boolean => (context.features & feature) !== 0n
    const stats = has(VIRTIO_BALLOON_F_STATS_VQ) ? FIRST_OPTIONAL : -1
    const reports = has(VIRTIO_BALLOON_F_REPORTING) ? FIRST_OPTIONAL + (stats < 0 ? 0 : 1) : -1
    const turn = Turn.of(context, () => {
      for (const index of [INFLATE, DEFLATE, reports]) this.notify(index)
    })
    this.#active = { context, turn, stats, reports }
  }

  /** The driver's statistics stay in their queue until somebody asks for them. */
  notify(index: number): void {
    const queue = this.#active?.context.queues[index]
    if (!this.#active || !queue) return
    const { context, turn, reports } = this.#active
    if (index !== INFLATE && index !== DEFLATE && index !== reports) return
    let budget = BUDGET
    do {
      for (let chain = queue.pop(); chain; chain = budget > 0 ? queue.pop() : undefined) {
        budget--
        if (index === INFLATE) this.#inflate(chain)
        else if (index === reports) this.#report(chain)
        queue.push(chain, 0)
      }
    } while (queue.enableNotifications() && budget > 0)
    if (budget <= 0) turn.later()
    if (queue.flush()) context.interrupt(index)
  }

  reset(): void {
    this.#active?.turn[Symbol.dispose]()
    this.#active = undefined
    this.#stats = {}
    this.#view.setUint32(ACTUAL, 0, true)
  }

  /** @throws CoracleError INVALID_ARGUMENT */
  control(request: BalloonRequest): BalloonState {
    const { target } = request
    if (target !== undefined) {
      if (!Number.isSafeInteger(target) || target < 0 || target > this.#init.memory)
        throw new CoracleError('INVALID_ARGUMENT', `a balloon of ${target} bytes does not fit this guest`)
      this.#view.setUint32(NUM_PAGES, Math.floor(target / BALLOON_PAGE), true)
      this.#active?.context.configChanged()
    }
    this.#askStats()
    const pages = (at: number): number => this.#view.getUint32(at, true) * BALLOON_PAGE
    const actual = Math.min(pages(ACTUAL), this.#init.memory)
    return { target: pages(NUM_PAGES), actual, discarded: this.#discarded, stats: this.#stats }
  }

  save(): { readonly target: number; readonly actual: number } {
    return { target: this.#view.getUint32(NUM_PAGES, true), actual: this.#view.getUint32(ACTUAL, true) }
  }

  restore(state: SavedState): void {
    const { target, actual } = (state ?? {}) as Record<string, unknown>
    const most = this.#init.memory / BALLOON_PAGE
    const valid = (value: unknown): value is number => Number.isInteger(value) && Number(value) >= 0
    if (!valid(target) || target > most || !valid(actual)) throw new RangeError('no state of a balloon')
    this.#view.setUint32(NUM_PAGES, target, true)
    this.#view.setUint32(ACTUAL, actual, true)
  }

  /** §5.5.6.1: page numbers, in any order. Runs of them are given back at once. */
  #inflate({ reader }: DescriptorChain): void {
    if (reader.length > MAX_PAGES * 4 || reader.length % 4 !== 0)
      throw new VirtioError('DEVICE_REQUEST', `${this.name}: ${reader.length} bytes of page numbers`)
    const pages = Uint32Array.from({ length: reader.length / 4 }, () => reader.u32()).sort()
    for (let i = 0; i < pages.length;) {
      const first = i++
      while (i < pages.length && pages[i]! - pages[i - 1]! <= 1) i++
      this.#discard(pages[first]! * BALLOON_PAGE, (pages[i - 1]! - pages[first]! + 1) * BALLOON_PAGE)
    }
  }

  /** §5.5.6.7: each buffer is a stretch of free pages. */
  #report({ writer }: DescriptorChain): void {
    writer.each((address, length) => this.#discard(address, length))
  }

  #discard(address: number, length: number): void {
    try {
      this.#discarded += this.#init.discard(address, length)
    } catch (error) {
      // The host keeps the pages a while longer; for the guest nothing is lost.
      this.#init.log?.(`${this.name}: ${error instanceof Error ? error.message : String(error)}`)
    }
  }

  /** §5.5.6.3: takes what the driver wrote down last, and has it write anew by giving its buffer back. */
  #askStats(): void {
    const { context, stats } = this.#active ?? { stats: -1 }
    const queue: Virtqueue | undefined = context?.queues[stats]
    if (!context || !queue) return
    try {
      const chain = queue.pop()
      if (!chain) return
      this.#stats = parseStats(chain)
      queue.push(chain, 0)
      if (queue.flush()) context.interrupt(stats)
    } catch (error) {
      context.fail(error as Error)
    }
  }
}

function parseStats({ reader }: DescriptorChain): BalloonStats {
  const stats: Record<string, number> = {}
  for (let i = 0; i < MAX_STATS && reader.length >= STAT_SIZE; i++) {
    const name = STATS[reader.u16()]
    const value = Number(reader.u64())
    if (name !== undefined) stats[name] = value
  }
  return stats
}
