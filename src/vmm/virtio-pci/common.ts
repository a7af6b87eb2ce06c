import type { Saved } from '../snapshot/saved.js'

/** struct virtio_pci_common_cfg (virtio 1.2 §4.1.4.3), by offset, and device status bits (§2.1). */
export const DEVICE_FEATURE_SELECT = 0
export const DEVICE_FEATURE = 4
export const DRIVER_FEATURE_SELECT = 8
export const DRIVER_FEATURE = 12
export const CONFIG_MSIX_VECTOR = 16
export const NUM_QUEUES = 18
export const DEVICE_STATUS = 20
export const CONFIG_GENERATION = 21
export const QUEUE_SELECT = 22
export const QUEUE_SIZE = 24
export const QUEUE_MSIX_VECTOR = 26
export const QUEUE_ENABLE = 28
export const QUEUE_NOTIFY_OFF = 30
export const QUEUE_DESC = 32
export const QUEUE_DRIVER = 40
export const QUEUE_DEVICE = 48
export const COMMON_SIZE = 56

export const VIRTIO_MSI_NO_VECTOR = 0xffff
export const ACKNOWLEDGE = 1
export const DRIVER = 2
export const DRIVER_OK = 4
export const FEATURES_OK = 8
export const DEVICE_NEEDS_RESET = 64
export const FAILED = 128

const STATUS_NAMES: readonly (readonly [bit: number, name: string])[] = [
  [ACKNOWLEDGE, 'ACKNOWLEDGE'],
  [DRIVER, 'DRIVER'],
  [FEATURES_OK, 'FEATURES_OK'],
  [DRIVER_OK, 'DRIVER_OK'],
  [DEVICE_NEEDS_RESET, 'DEVICE_NEEDS_RESET'],
  [FAILED, 'FAILED'],
]

/** The bits of a device status by name, for people. */
export const statusNames = (status: number): string[] =>
  STATUS_NAMES.filter(([bit]) => (status & bit) !== 0).map(([, name]) => name)

/** One queue's registers as the driver left them. */
export interface QueueRegisters {
  size: number
  vector: number
  enabled: boolean
  /** Guest-physical addresses; exact below 2^53, and larger ones are no guest memory anyway. */
  descriptorTable: number
  availableRing: number
  usedRing: number
}

/** The registers in a snapshot. */
export interface SavedCommon {
  readonly accepted: string
  readonly status: number
  readonly generation: number
  readonly configVector: number
  readonly selected: readonly number[]
  readonly queues: readonly Readonly<QueueRegisters>[]
}

/** What the registers tell the transport. */
export interface CommonEvents {
  /** The driver wrote 0 into the status. */
  reset(): void
  /** The driver set DRIVER_OK. */
  activate(): void
}

/**
 * The registers that configure a device, in memory that the driver reads without an exit: so each write leaves the
 * whole page as the driver must see it next, the selected halves and queues included.
 *
 * Whatever the driver may not write at a time (§2.1, §3.1.1, §4.1.4.3.2) is ignored.
 */
export class CommonConfig {
  readonly #view: DataView
  readonly #offered: bigint
  readonly #maxSizes: readonly number[]
  readonly #vectors: number
  readonly #events: CommonEvents
  #accepted = 0n
  #status = 0
  #configVector = VIRTIO_MSI_NO_VECTOR
  #queues: QueueRegisters[] = []

  /**
   * @param view the page's memory
   * @param offered the feature bits on offer
   * @param maxSizes of the queues
   * @param vectors of the MSI-X table
   */
  constructor(
    view: DataView,
    offered: bigint,
    maxSizes: readonly number[],
    vectors: number,
    events: CommonEvents,
  ) {
    this.#view = view
    this.#offered = offered
    this.#maxSizes = maxSizes
    this.#vectors = vectors
    this.#events = events
    this.clear()
  }

  get offered(): bigint {
    return this.#offered
  }
  get status(): number {
    return this.#status
  }
  /** The feature bits that the driver took. */
  get features(): bigint {
    return this.#accepted
  }
  get configVector(): number {
    return this.#configVector
  }
  get queues(): readonly QueueRegisters[] {
    return this.#queues
  }

  /** All registers as after power-on, but for the generation. */
  clear(): void {
    this.#accepted = 0n
    this.#status = 0
    this.#configVector = VIRTIO_MSI_NO_VECTOR
    this.#queues = this.#maxSizes.map((size) => ({
      size,
      vector: VIRTIO_MSI_NO_VECTOR,
      enabled: false,
      descriptorTable: 0,
      availableRing: 0,
      usedRing: 0,
    }))
    const view = this.#view
    for (const at of [DEVICE_FEATURE_SELECT, DRIVER_FEATURE_SELECT]) view.setUint32(at, 0, true)
    view.setUint16(QUEUE_SELECT, 0, true)
    view.setUint16(NUM_QUEUES, this.#maxSizes.length, true)
    this.#show()
  }

  /** For a snapshot. */
  save(): SavedCommon {
    const view = this.#view
    return {
      accepted: String(this.#accepted),
      status: this.#status,
      generation: view.getUint8(CONFIG_GENERATION),
      configVector: this.#configVector,
      selected: [
        view.getUint32(DEVICE_FEATURE_SELECT, true),
        view.getUint32(DRIVER_FEATURE_SELECT, true),
        view.getUint16(QUEUE_SELECT, true),
      ],
      queues: this.#queues.map((queue) => ({ ...queue })),
    }
  }

  /** Takes up what {@link save} gave; nothing is activated. @throws CoracleError SNAPSHOT_INVALID */
  restore(state: Saved): void {
    this.#accepted = state.get('accepted').u64()
    this.#status = state.get('status').number(0xff)
    this.#configVector = this.#vector(state.get('configVector').number(VIRTIO_MSI_NO_VECTOR))
    this.#queues = state
      .get('queues')
      .list(this.#maxSizes.length)
      .map((queue) => ({
        size: queue.get('size').number(0xffff),
        vector: this.#vector(queue.get('vector').number(VIRTIO_MSI_NO_VECTOR)),
        enabled: queue.get('enabled').boolean(),
        descriptorTable: queue.get('descriptorTable').number(),
        availableRing: queue.get('availableRing').number(),
        usedRing: queue.get('usedRing').number(),
      }))
    const view = this.#view
    view.setUint8(CONFIG_GENERATION, state.get('generation').number(0xff))
    const [device, driver, queue] = state.get('selected').list(3)
    view.setUint32(DEVICE_FEATURE_SELECT, device!.number(0xffff_ffff), true)
    view.setUint32(DRIVER_FEATURE_SELECT, driver!.number(0xffff_ffff), true)
    view.setUint16(QUEUE_SELECT, queue!.number(0xffff), true)
    this.#show()
  }

  /** Whether device and driver have agreed on what is offered. */
  get agreed(): boolean {
    return this.#featuresFit()
  }

  setNeedsReset(): void {
    this.#status |= DEVICE_NEEDS_RESET
    this.#show()
  }

  /** After a change of the device's configuration (§2.5.1). */
  nextGeneration(): void {
    this.#view.setUint8(CONFIG_GENERATION, (this.#view.getUint8(CONFIG_GENERATION) + 1) & 0xff)
  }

  /** The driver's write; one of another width than the register's is ignored (§4.1.3.1), but for halves of 64 bits. */
  write(offset: number, size: number, data: DataView, at: number): void {
    if (size === 8) {
      // A 64-bit register may be written in one access too.
      this.write(offset, 4, data, at)
      this.write(offset + 4, 4, data, at + 4)
      return
    }
    if (offset >= QUEUE_DESC && offset < COMMON_SIZE) {
      if (size === 4 && offset % 4 === 0) this.#writeAddress(offset, data.getUint32(at, true))
    } else if (size === 1 && offset === DEVICE_STATUS) this.#writeStatus(data.getUint8(at))
    else if (size === 2) this.#writeWord(offset, data.getUint16(at, true))
    else if (size === 4) this.#writeFeature(offset, data.getUint32(at, true))
    this.#show()
  }

  #writeFeature(offset: number, value: number): void {
    if (offset === DEVICE_FEATURE_SELECT || offset === DRIVER_FEATURE_SELECT)
      this.#view.setUint32(offset, value, true)
    if (offset !== DRIVER_FEATURE) return
    const select = this.#view.getUint32(DRIVER_FEATURE_SELECT, true)
    if (select > 1 || (this.#status & (DRIVER | FEATURES_OK)) !== DRIVER) return
    const shift = BigInt(select * 32)
    this.#accepted = (this.#accepted & ~(0xffff_ffffn << shift)) | (BigInt(value) << shift)
  }

  #writeStatus(value: number): void {
    if (value === 0) {
      this.#events.reset()
      this.clear()
      return
    }
    const old = this.#status
    const kept = old & ~DEVICE_NEEDS_RESET
    if ((value & kept) !== kept) return
    const added = value & ~old & (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED)
    let status = old | (added & (ACKNOWLEDGE | FAILED))
    if ((added & DRIVER) !== 0 && (status & ACKNOWLEDGE) !== 0) status |= DRIVER
    if ((added & FEATURES_OK) !== 0 && (status & DRIVER) !== 0 && this.#featuresFit()) status |= FEATURES_OK
    const starts = (added & DRIVER_OK) !== 0 && (status & FEATURES_OK) !== 0
    this.#status = starts ? status | DRIVER_OK : status
    if (starts) this.#events.activate()
  }

  /** A driver must take only what is offered, and VIRTIO_F_VERSION_1 (§6.1). */
  #featuresFit(): boolean {
    return (this.#accepted & ~this.#offered) === 0n && (this.#accepted & (1n << 32n)) !== 0n
  }

  #writeWord(offset: number, value: number): void {
    if (offset === QUEUE_SELECT) this.#view.setUint16(QUEUE_SELECT, value, true)
    if (offset === CONFIG_MSIX_VECTOR) this.#configVector = this.#vector(value)
    const queue = this.#writableQueue()
    if (!queue) return
    if (offset === QUEUE_MSIX_VECTOR) queue.vector = this.#vector(value)
    if (queue.enabled) return
    if (offset === QUEUE_SIZE) queue.size = value
    if (offset === QUEUE_ENABLE && value === 1) queue.enabled = true
  }

  /** A vector beyond the table is answered with NO_VECTOR (§4.1.5.1.2.1). */
  #vector(value: number): number {
    return value < this.#vectors ? value : VIRTIO_MSI_NO_VECTOR
  }

  #writeAddress(offset: number, value: number): void {
    const queue = this.#writableQueue()
    if (!queue || queue.enabled) return
    const high = offset % 8 === 4
    const set = (old: number): number =>
      high ? value * 2 ** 32 + (old % 2 ** 32) : Math.floor(old / 2 ** 32) * 2 ** 32 + value
    const register = offset - (offset % 8)
    if (register === QUEUE_DESC) queue.descriptorTable = set(queue.descriptorTable)
    else if (register === QUEUE_DRIVER) queue.availableRing = set(queue.availableRing)
    else queue.usedRing = set(queue.usedRing)
  }

  get #selected(): QueueRegisters | undefined {
    return this.#queues[this.#view.getUint16(QUEUE_SELECT, true)]
  }

  /** The selected queue, in the time between FEATURES_OK and DRIVER_OK. */
  #writableQueue(): QueueRegisters | undefined {
    return (this.#status & (FEATURES_OK | DRIVER_OK)) === FEATURES_OK ? this.#selected : undefined
  }

  #show(): void {
    const view = this.#view
    const half = (bits: bigint, at: number): number => {
      const select = view.getUint32(at, true)
      return select > 1 ? 0 : Number((bits >> BigInt(select * 32)) & 0xffff_ffffn)
    }
    view.setUint32(DEVICE_FEATURE, half(this.#offered, DEVICE_FEATURE_SELECT), true)
    view.setUint32(DRIVER_FEATURE, half(this.#accepted, DRIVER_FEATURE_SELECT), true)
    view.setUint16(CONFIG_MSIX_VECTOR, this.#configVector, true)
    view.setUint8(DEVICE_STATUS, this.#status)
    const queue = this.#selected
    view.setUint16(QUEUE_SIZE, queue?.size ?? 0, true)
    view.setUint16(QUEUE_MSIX_VECTOR, queue?.vector ?? VIRTIO_MSI_NO_VECTOR, true)
    view.setUint16(QUEUE_ENABLE, queue?.enabled === true ? 1 : 0, true)
    view.setUint16(QUEUE_NOTIFY_OFF, queue ? view.getUint16(QUEUE_SELECT, true) : 0, true)
    const address = (at: number, value: number): void => {
      view.setUint32(at, value % 2 ** 32, true)
      view.setUint32(at + 4, Math.floor(value / 2 ** 32), true)
    }
    address(QUEUE_DESC, queue?.descriptorTable ?? 0)
    address(QUEUE_DRIVER, queue?.availableRing ?? 0)
    address(QUEUE_DEVICE, queue?.usedRing ?? 0)
  }
}
