import { type Fd, VNET_HEADER } from '@coracle/sys'

/** Bytes before each frame: struct virtio_net_hdr_v1 (linux/virtio_net.h). */
export const HEADER = VNET_HEADER
/** The longest frame with its header: a segment of 64 KiB, which the kernel is to cut, with a VLAN tag. */
export const MAX_FRAME = HEADER + 14 + 4 + 65535

/**
 * What stands behind a network device: each read and write of `fd` is one Ethernet frame behind its header of
 * {@link HEADER} bytes, and neither blocks. A tap, or a Unix socket of type SOCK_SEQPACKET.
 */
export interface Wire {
  readonly fd: Fd
  /** For logs. */
  readonly name: string
  /** @param flags `TUN_F_*`: what the guest takes unfinished */
  setOffload(flags: number): void
}

/** Who moves frames between the driver's queues and a wire, from its making to its end. */
export interface Carrier extends Disposable {
  /** The doorbell of a queue. @throws VirtioError */
  notify(index: number): void
  /** For a snapshot: nothing stays in flight, and nothing happens until the loop runs again; then it goes on. */
  rest(): void
}
