import { type Fd, IoVector, SHUT_RD, SHUT_WR, SysError, shutdown } from '@coracle/sys'
import type { ChainReader, ChainWriter } from 'vhost-user-ts'
import { ByteQueue } from './byte-queue.js'
import {
  VIRTIO_VSOCK_SHUTDOWN_BOTH,
  VIRTIO_VSOCK_SHUTDOWN_RCV,
  VIRTIO_VSOCK_SHUTDOWN_SEND,
} from './packet.js'

/** Bytes that the guest may have on their way to one socket: what `buf_alloc` tells it (§5.10.6.3). */
export const BUFFER_SIZE = 256 << 10
/** The guest hears of freed buffer space once this much came together, not at each byte. */
const CREDIT_STEP = BUFFER_SIZE / 4

/** What a connection owes the guest; several can be due at once, and each is sent once however often it came up. */
export const DUE_REQUEST = 1
export const DUE_RESPONSE = 2
export const DUE_CREDIT = 4
export const DUE_SHUTDOWN = 8
/** The socket may have bytes for the guest. */
export const DUE_DATA = 16

/** One vector for all: filled and used within one call. */
const vector = new IoVector()

/**
 * One stream: a socket on our side, two ports towards the guest. Counters are free-running and 32 bits wide, as
 * on the wire.
 *
 * Guest to socket: bytes go by writev straight from guest memory; what the socket does not take waits in a buffer
 * that the guest's credit bounds. Socket to guest: bytes are read only into a buffer that the guest has offered
 * and within the credit it gave, else they stay in the socket, whose writer feels it.
 */
export class Connection {
  /** `requested`: ours, unanswered. `lingering`: the guest is through with it, its last bytes are on their way. */
  state: 'requested' | 'open' | 'lingering' = 'open'
  /** `DUE_*` */
  due = 0
  /** In the device's list of connections with something due. */
  listed = false
  /** What epoll watches for; undefined where it does not know the socket. */
  watched: number | undefined
  /** VIRTIO_VSOCK_SHUTDOWN_*: what the guest will not do any more. */
  guestShutdown = 0
  /** What we told the guest that we will not do any more. */
  toldShutdown = 0
  /** The socket's other end will write no more, and the guest has got all of it. */
  endOfInput = false
  /** The socket's other end reads no more: what the guest sends is dropped. */
  deaf = false
  /** Settles a connection of ours: with the other end of the socket once the guest answered. */
  answer: ((fd: Fd | undefined) => void) | undefined
  /** The end to hand out with {@link answer}. */
  handout: Fd | undefined
  #peerBuffer = 0
  #peerForwarded = 0
  #sent = 0
  #received = 0
  #forwarded = 0
  #announced = 0
  #waiting: ByteQueue | undefined
  #ended = false

  constructor(
    readonly fd: Fd,
    readonly hostPort: number,
    readonly guestPort: number,
  ) {}

  /** Bytes that the guest can still take. */
  get credit(): number {
    const onTheWay = (this.#sent - this.#peerForwarded) >>> 0
    return Math.max(0, this.#peerBuffer - onTheWay)
  }

  /** `fwd_cnt`: bytes of the guest that have left our buffer. Telling it makes the guest's credit up to date. */
  announce(): number {
    this.#announced = this.#forwarded
    return this.#forwarded
  }

  /** Whether bytes wait for the socket to take them. */
  get backlog(): boolean {
    return this.#waiting !== undefined
  }

  /** What we will not do any more, as the flags of VIRTIO_VSOCK_OP_SHUTDOWN. */
  get shutdown(): number {
    return (this.endOfInput ? VIRTIO_VSOCK_SHUTDOWN_SEND : 0) | (this.deaf ? VIRTIO_VSOCK_SHUTDOWN_RCV : 0)
  }

  /** Takes in the guest's buffer state, which every packet carries. */
  updateCredit(bufferSize: number, forwarded: number): void {
    this.#peerBuffer = bufferSize
    this.#peerForwarded = forwarded
  }

  /**
   * Moves `length` bytes from the guest into the socket.
   * @returns false where the guest sent more than its credit allowed
   */
  fromGuest(reader: ChainReader, length: number): boolean {
    if (((this.#received - this.#forwarded) >>> 0) + length > BUFFER_SIZE) return false
    if ((this.guestShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) !== 0) return false
    this.#received = (this.#received + length) >>> 0
    let left = length
    while (left > 0 && !this.deaf && !this.#waiting) {
      const covered = reader.vector(vector.clear(), left)
      const written = this.#attempt(() => this.fd.writev(vector))
      if (written < 0) break
      reader.skip(written)
      left -= written
      this.#forward(written)
      if (written < covered) break
    }
    if (this.deaf) this.#forward(left)
    else if (left > 0) {
      this.#waiting ??= new ByteQueue(BUFFER_SIZE)
      this.#waiting.fill(reader, left)
    }
    return true
  }

  /** The socket may take more. */
  drain(): void {
    const waiting = this.#waiting
    if (!waiting) return
    const before = waiting.length
    const written = this.#attempt(() => waiting.drain(this.fd))
    if (this.deaf) this.#forward(before)
    else if (written > 0) this.#forward(written)
    if (this.deaf || waiting.length === 0) this.#waiting = undefined
  }

  /**
   * Moves bytes from the socket into the guest's buffer, whose header has been skipped, as credit allows.
   * @returns bytes moved, 0 where the other end has ended, -1 where there is nothing now
   */
  toGuest(writer: ChainWriter): number {
    writer.vector(vector.clear(), this.credit)
    try {
      const moved = this.fd.readv(vector)
      if (moved > 0) this.#sent = (this.#sent + moved) >>> 0
      return moved
    } catch (error) {
      this.#closed(error)
      return 0
    }
  }

  /** The guest will not do these any more: passes that on to the socket's other end. */
  shutDown(flags: number): void {
    this.guestShutdown |= flags & VIRTIO_VSOCK_SHUTDOWN_BOTH
    if ((flags & VIRTIO_VSOCK_SHUTDOWN_RCV) !== 0) shutdown(this.fd, SHUT_RD)
    this.endWrites()
  }

  /** Ends our direction of the socket once the guest's last byte is in it. */
  endWrites(): void {
    if ((this.guestShutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) === 0 || this.#waiting || this.#ended) return
    this.#ended = true
    shutdown(this.fd, SHUT_WR)
  }

  /** Writes, or finds that nobody reads any more: -1 then. */
  #attempt(write: () => number): number {
    try {
      return write()
    } catch (error) {
      this.#closed(error)
      return -1
    }
  }

  #closed(error: unknown): void {
    if (!(error instanceof SysError) || (error.code !== 'EPIPE' && error.code !== 'ECONNRESET')) throw error
    this.deaf = true
    this.due |= DUE_SHUTDOWN
  }

  #forward(bytes: number): void {
    this.#forwarded = (this.#forwarded + bytes) >>> 0
    if ((this.#forwarded - this.#announced) >>> 0 >= CREDIT_STEP) this.due |= DUE_CREDIT
  }
}
