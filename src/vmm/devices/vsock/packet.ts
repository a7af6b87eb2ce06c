import type { ChainReader, ChainWriter } from 'vhost-user-ts'

/** linux/virtio_vsock.h */
export const VIRTIO_VSOCK_OP_REQUEST = 1
export const VIRTIO_VSOCK_OP_RESPONSE = 2
export const VIRTIO_VSOCK_OP_RST = 3
export const VIRTIO_VSOCK_OP_SHUTDOWN = 4
export const VIRTIO_VSOCK_OP_RW = 5
export const VIRTIO_VSOCK_OP_CREDIT_UPDATE = 6
export const VIRTIO_VSOCK_OP_CREDIT_REQUEST = 7
export const VIRTIO_VSOCK_TYPE_STREAM = 1
/** "The peer will not receive any more data": flags of VIRTIO_VSOCK_OP_SHUTDOWN. */
export const VIRTIO_VSOCK_SHUTDOWN_RCV = 1
/** "The peer will not send any more data". */
export const VIRTIO_VSOCK_SHUTDOWN_SEND = 2
export const VIRTIO_VSOCK_SHUTDOWN_BOTH = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND
export const VIRTIO_VSOCK_EVENT_TRANSPORT_RESET = 0
/** The context id that every guest knows its host by (linux/vm_sockets.h). */
export const VMADDR_CID_HOST = 2
/** sizeof(struct virtio_vsock_hdr) */
export const HEADER_SIZE = 44

/** struct virtio_vsock_hdr (virtio 1.2 §5.10.6), the fields in their order. One object is used again and again. */
export class PacketHeader {
  sourceCid = 0
  destinationCid = 0
  sourcePort = 0
  destinationPort = 0
  length = 0
  type = VIRTIO_VSOCK_TYPE_STREAM
  operation = 0
  flags = 0
  bufferSize = 0
  forwarded = 0

  /** @throws VirtioError CHAIN_SHORT */
  read(from: ChainReader): void {
    this.sourceCid = from.u32() + from.u32() * 2 ** 32
    this.destinationCid = from.u32() + from.u32() * 2 ** 32
    this.sourcePort = from.u32()
    this.destinationPort = from.u32()
    this.length = from.u32()
    this.type = from.u16()
    this.operation = from.u16()
    this.flags = from.u32()
    this.bufferSize = from.u32()
    this.forwarded = from.u32()
  }

  /** @throws VirtioError CHAIN_SHORT */
  write(to: ChainWriter): void {
    to.u32(this.sourceCid)
    to.u32(0)
    to.u32(this.destinationCid)
    to.u32(0)
    to.u32(this.sourcePort)
    to.u32(this.destinationPort)
    to.u32(this.length)
    to.u16(this.type)
    to.u16(this.operation)
    to.u32(this.flags)
    to.u32(this.bufferSize)
    to.u32(this.forwarded)
  }
}
