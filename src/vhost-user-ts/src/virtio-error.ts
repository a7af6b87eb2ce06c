/**
 * What a driver can do wrong, by permanent code: a message may change, a code does not.
 * Rules are those of virtio 1.2 §2.7 (split virtqueues).
 */
export type VirtioErrorCode =
  /** Guest memory regions overlap, are empty or leave their mapping. */
  | 'MEMORY_LAYOUT'
  /** An access outside guest memory. */
  | 'MEMORY_ADDRESS'
  /** A write to memory that the guest may only read. */
  | 'MEMORY_READ_ONLY'
  /** Queue size zero, no power of two, or above the device's maximum (§2.7). */
  | 'QUEUE_SIZE'
  /** A ring address off its alignment of 16, 2 or 4 bytes (§2.7). */
  | 'QUEUE_ALIGNMENT'
  /** A ring that is not wholly in guest memory. */
  | 'QUEUE_ADDRESS'
  /** `avail.idx` ran so far ahead that more chains were out than a queue has descriptors (§2.7.6). */
  | 'AVAILABLE_INDEX'
  /** A head or `next` at or beyond its table's size (§2.7.5). */
  | 'DESCRIPTOR_INDEX'
  /** A chain longer than the queue: it has a loop (§2.7.5.1). */
  | 'DESCRIPTOR_LOOP'
  /** A buffer that is not wholly in guest memory, or writable where the guest itself may only read. */
  | 'DESCRIPTOR_ADDRESS'
  /** A device-readable descriptor after a device-writable one (§2.7.4.2). */
  | 'DESCRIPTOR_ORDER'
  /** A chain of 2^32 bytes or more (§2.7.5.2). */
  | 'CHAIN_LENGTH'
  /** An indirect table whose length is zero, no multiple of 16, or more than the queue's size (§2.7.5.3). */
  | 'INDIRECT_LENGTH'
  /** An indirect table that is not wholly in guest memory. */
  | 'INDIRECT_ADDRESS'
  /** An indirect descriptor inside an indirect table, or with NEXT set (§2.7.5.3.1). */
  | 'INDIRECT_NESTED'
  /** An indirect descriptor though VIRTIO_F_INDIRECT_DESC was not negotiated. */
  | 'INDIRECT_NOT_NEGOTIATED'
  /** A request that ends before its fields do. */
  | 'CHAIN_SHORT'
  /** A chain given back twice, or never taken: our own mistake. */
  | 'CHAIN_STATE'
  /** A request that the device's own section forbids. */
  | 'DEVICE_REQUEST'
  /** What serves the device from another process is gone, stalls or breaks the protocol. */
  | 'BACKEND'

/** A driver, or what stands behind it, broke a rule: the device stops and sets DEVICE_NEEDS_RESET. */
export class VirtioError extends Error {
  override readonly name = 'VirtioError'
  constructor(
    readonly code: VirtioErrorCode,
    message: string,
  ) {
    super(message)
  }
}
