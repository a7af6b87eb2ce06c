/*
 * What a queue counts, as places in a Float64Array of {@link QUEUE_COUNTERS}: plain numbers, which another thread may
 * read while they change if the array stands on a SharedArrayBuffer.
 */
/** Requests given back to the driver. */
export const QUEUE_REQUESTS = 0
/** Bytes in the buffers that the device reads, of those requests. */
export const QUEUE_BYTES_OUT = 1
/** Bytes that the device wrote for the driver. */
export const QUEUE_BYTES_IN = 2
/** Requests that were answered with an error. */
export const QUEUE_ERRORS = 3
/** Requests taken and not given back. */
export const QUEUE_IN_FLIGHT = 4
/** The most of them at once. */
export const QUEUE_DEPTH = 5
/** Doorbells that reached the device. */
export const QUEUE_NOTIFICATIONS = 6
export const QUEUE_INTERRUPTS = 7
/** From here on {@link LATENCY_BUCKETS} counts: of requests that took less than 1, 2, 4, 8, … µs, the last of all others. */
export const QUEUE_LATENCY = 8
export const LATENCY_BUCKETS = 24
export const QUEUE_COUNTERS = QUEUE_LATENCY + LATENCY_BUCKETS

/** The bucket of a time in ms. */
export function latencyBucket(milliseconds: number): number {
  const bucket = 32 - Math.clz32(Math.min(milliseconds * 1000, 0xffff_ffff))
  return Math.min(bucket, LATENCY_BUCKETS - 1)
}
