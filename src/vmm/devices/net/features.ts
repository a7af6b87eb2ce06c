import { TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN } from '@coracle/sys'

/** linux/virtio_net.h */
export const VIRTIO_ID_NET = 1
export const VIRTIO_NET_F_CSUM = 1n << 0n
export const VIRTIO_NET_F_GUEST_CSUM = 1n << 1n
export const VIRTIO_NET_F_MTU = 1n << 3n
export const VIRTIO_NET_F_MAC = 1n << 5n
export const VIRTIO_NET_F_GUEST_TSO4 = 1n << 7n
export const VIRTIO_NET_F_GUEST_TSO6 = 1n << 8n
export const VIRTIO_NET_F_GUEST_ECN = 1n << 9n
export const VIRTIO_NET_F_HOST_TSO4 = 1n << 11n
export const VIRTIO_NET_F_HOST_TSO6 = 1n << 12n
export const VIRTIO_NET_F_HOST_ECN = 1n << 13n
export const VIRTIO_NET_F_MRG_RXBUF = 1n << 15n
export const VIRTIO_NET_F_STATUS = 1n << 16n
export const VIRTIO_NET_S_LINK_UP = 1

/** The queues, §5.1.2. */
export const RECEIVE = 0
export const TRANSMIT = 1

/** What the guest takes in place of finished frames, as the tap is told it. */
const OFFLOADS: readonly (readonly [bigint, number])[] = [
  [VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM],
  [VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4],
  [VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6],
  [VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN],
]

/** `TUN_F_*` for the features that the driver took. */
export function offloadsOf(features: bigint): number {
  return OFFLOADS.reduce((flags, [feature, flag]) => ((features & feature) === 0n ? flags : flags | flag), 0)
}
