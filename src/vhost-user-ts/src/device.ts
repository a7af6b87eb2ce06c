import type { Epoll, EventFd } from '@coracle/sys'
import type { GuestMemory } from './guest-memory.js'
import type { Virtqueue } from './virtqueue.js'

/**
 * What a device gets when its driver has set DRIVER_OK (virtio 1.2 §3.1.1 step 8). All of it is valid until
 * {@link VirtioDevice.reset}; nothing of it may be kept beyond.
 */
export interface DeviceContext {
  readonly memory: GuestMemory
  /** By queue index; undefined where the driver left that queue disabled. */
  readonly queues: readonly (Virtqueue | undefined)[]
  /** The feature bits that device and driver agreed on. */
  readonly features: bigint
  /** The loop of the thread that serves the device, for its own sockets, taps and timers. */
  readonly loop: Epoll
  /** Tells the driver that queue `index` has used buffers (the transport's call eventfd). */
  interrupt(index: number): void
  /** Tells the driver that the configuration space changed (virtio 1.2 §2.5). */
  configChanged(): void
  /**
   * Gives queue `index` into other hands: the kernel's (vhost) or another process's (vhost-user). From then on, until
   * {@link VirtioDevice.reset}, the transport neither reads that queue's doorbell nor calls
   * {@link VirtioDevice.notify} for it; whoever serves the queue waits for `kick` and signals `call`. Both stay the
   * transport's own: duplicate or send them. Absent where a transport cannot; call it once a queue.
   */
  handOver?(index: number): { readonly kick: EventFd; readonly call: EventFd }
  /** Sets DEVICE_NEEDS_RESET (virtio 1.2 §2.1.2), stops serving the device, and logs why. */
  fail(reason: Error): void
}

/** JSON: what a device keeps beside its queues. It goes through a file, which may come back damaged or edited. */
export type SavedState =
  null | boolean | number | string | readonly SavedState[] | { readonly [name: string]: SavedState }

/**
 * A virtio device, written once: our VMM serves it in process behind virtio-pci, and a vhost-user backend serves
 * it to any other VMM. Everything here runs on one thread, the one that owns {@link DeviceContext.loop}; nothing
 * here may block. What the driver wrote is hostile: a method that meets a violation throws (VirtioError), and the
 * transport turns that into {@link DeviceContext.fail}.
 */
export interface VirtioDevice {
  /** For logs and `inspect`, such as `blk root`. */
  readonly name: string
  /** The device ID of virtio 1.2 §5, such as 2 for a block device. */
  readonly type: number
  /** The largest size the driver may choose for each queue; its length is the number of queues. */
  readonly queueSizes: readonly number[]
  /** Device-specific feature bits on offer (bits 0 to 23 and 50 up). The transport adds its own (24 to 49). */
  readonly features: bigint
  /**
   * Of the ring's own features ({@link RING_FEATURES}) those that whoever serves the queues can do.
   * @default all
   */
  readonly ringFeatures?: bigint
  /** The device-specific configuration space as the driver reads it; the device may change it in place. */
  readonly config: Uint8Array
  /** The driver wrote the configuration space. Without this method such writes are ignored. */
  writeConfig?(offset: number, data: Uint8Array): void
  /** The driver is ready. */
  activate(context: DeviceContext): void
  /** The driver rang the doorbell of queue `index`; also called once a queue at activation, since rings may be full. */
  notify(index: number): void
  /** Stops all I/O before it returns, and forgets the context. The device may be activated again. */
  reset(): void
  /**
   * For a snapshot: what the device needs to go on in another process, beside what the transport keeps (features,
   * the queues' addresses and indices). Called between two events of the loop while no processor runs, active or not;
   * nothing happens to the device until the snapshot is taken or given up, then it goes on. What was begun is
   * finished and given back to its queue when this returns, and what a driver was told to be on disk is there.
   * A device without this method cannot be in a snapshot.
   * @throws Error where it cannot be saved now, with the reason
   */
  save?(): SavedState
  /**
   * Takes up what {@link save} gave, on a new device, before {@link activate} and only then. Queues go on where they
   * stood; each is notified once, and its driver gets one interrupt, so neither a doorbell nor an interrupt under way
   * at the time of the snapshot is part of the state.
   * @throws Error where this is no state of such a device
   */
  restore?(state: SavedState): void
}
