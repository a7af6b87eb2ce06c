import {
  LATENCY_BUCKETS,
  QUEUE_BYTES_IN,
  QUEUE_BYTES_OUT,
  QUEUE_COUNTERS,
  QUEUE_DEPTH,
  QUEUE_ERRORS,
  QUEUE_INTERRUPTS,
  QUEUE_IN_FLIGHT,
  QUEUE_LATENCY,
  QUEUE_NOTIFICATIONS,
  QUEUE_REQUESTS,
} from 'vhost-user-ts'

/** One device a slot of the bus. */
const DEVICES = 32
/** Further queues of a device are not counted. */
const QUEUES = 16
// A device's own numbers, before those of its queues.
const ACTIVATIONS = 0
const FAILURES = 1
const OWN = 8
const BLOCK = OWN + QUEUES * QUEUE_COUNTERS

/** What a queue did since the machine began. */
export interface QueueMetrics {
  readonly requests: number
  readonly errors: number
  /** Bytes that the guest handed to the device, the requests' headers included. */
  readonly bytesOut: number
  /** Bytes that the device wrote for the guest. */
  readonly bytesIn: number
  readonly inFlight: number
  /** The most requests in flight at once. */
  readonly depth: number
  readonly notifications: number
  readonly interrupts: number
  /** Requests by the time from taken to answered: under 1, 2, 4, 8, … µs. Cut after the last that is not 0. */
  readonly latency: readonly number[]
}

/** What a device did since the machine began. */
export interface DeviceMetrics {
  /** How often a driver started it. */
  readonly activations: number
  /** How often it stopped because its driver broke a rule, or it failed. */
  readonly failures: number
  readonly queues: readonly QueueMetrics[]
}

/** The memory in which all devices of a machine count; the thread of the devices writes, any other reads. */
export function newMetrics(): SharedArrayBuffer {
  return new SharedArrayBuffer(DEVICES * BLOCK * Float64Array.BYTES_PER_ELEMENT)
}

/** Where one device counts. Plain numbers in place: cheap enough for every request. */
export class DeviceCounters {
  readonly #block: Float64Array

  /** @param slot the device's slot of the bus @throws RangeError where there is none of that number */
  constructor(metrics: SharedArrayBuffer, slot: number) {
    if (!(slot >= 0 && slot < DEVICES)) throw new RangeError(`a bus has ${DEVICES} slots`)
    this.#block = new Float64Array(metrics, slot * BLOCK * Float64Array.BYTES_PER_ELEMENT, BLOCK)
  }

  /** For a new device: nothing of one that had the slot before is left. */
  clear(): void {
    this.#block.fill(0)
  }

  noteActivation(): void {
    this.#block[ACTIVATIONS]!++
  }

  noteFailure(): void {
    this.#block[FAILURES]!++
  }

  noteNotification(queue: number): void {
    if (queue < QUEUES) this.#block[OWN + queue * QUEUE_COUNTERS + QUEUE_NOTIFICATIONS]!++
  }

  noteInterrupt(queue: number): void {
    if (queue < QUEUES) this.#block[OWN + queue * QUEUE_COUNTERS + QUEUE_INTERRUPTS]!++
  }

  /** Where queue `queue` counts; undefined for one of those that are not counted. */
  queue(queue: number): Float64Array | undefined {
    const at = OWN + queue * QUEUE_COUNTERS
    return queue < QUEUES ? this.#block.subarray(at, at + QUEUE_COUNTERS) : undefined
  }

  /** @param queues how many the device has */
  read(queues: number): DeviceMetrics {
    const read = (queue: number): QueueMetrics[] => {
      const at = this.queue(queue)
      return at ? [readQueue(at)] : []
    }
    return {
      activations: this.#block[ACTIVATIONS]!,
      failures: this.#block[FAILURES]!,
      queues: Array.from({ length: queues }, (_, i) => i).flatMap(read),
    }
  }
}

function readQueue(at: Float64Array): QueueMetrics {
  const latency = Array.from(at.subarray(QUEUE_LATENCY, QUEUE_LATENCY + LATENCY_BUCKETS))
  return {
    requests: at[QUEUE_REQUESTS]!,
    errors: at[QUEUE_ERRORS]!,
    bytesOut: at[QUEUE_BYTES_OUT]!,
    bytesIn: at[QUEUE_BYTES_IN]!,
    inFlight: at[QUEUE_IN_FLIGHT]!,
    depth: at[QUEUE_DEPTH]!,
    notifications: at[QUEUE_NOTIFICATIONS]!,
    interrupts: at[QUEUE_INTERRUPTS]!,
    latency: latency.slice(0, latency.findLastIndex((count) => count > 0) + 1),
  }
}
