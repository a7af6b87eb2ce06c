import { type Fd, receiveWithFds, sendWithFds } from '@coracle/sys'

/** Request codes of the frontend (QEMU docs/interop/vhost-user.rst, "Front-end message types"). */
export const VHOST_USER_GET_FEATURES = 1
export const VHOST_USER_SET_FEATURES = 2
export const VHOST_USER_SET_OWNER = 3
export const VHOST_USER_RESET_OWNER = 4
export const VHOST_USER_SET_MEM_TABLE = 5
export const VHOST_USER_SET_VRING_NUM = 8
export const VHOST_USER_SET_VRING_ADDR = 9
export const VHOST_USER_SET_VRING_BASE = 10
export const VHOST_USER_GET_VRING_BASE = 11
export const VHOST_USER_SET_VRING_KICK = 12
export const VHOST_USER_SET_VRING_CALL = 13
export const VHOST_USER_SET_VRING_ERR = 14
export const VHOST_USER_GET_PROTOCOL_FEATURES = 15
export const VHOST_USER_SET_PROTOCOL_FEATURES = 16
export const VHOST_USER_GET_QUEUE_NUM = 17
export const VHOST_USER_SET_VRING_ENABLE = 18
export const VHOST_USER_SET_BACKEND_REQ_FD = 21
export const VHOST_USER_GET_CONFIG = 24
export const VHOST_USER_SET_CONFIG = 25
/** Request code of the backend, on the channel of VHOST_USER_SET_BACKEND_REQ_FD. */
export const VHOST_USER_BACKEND_CONFIG_CHANGE_MSG = 2

/** A feature bit of virtio's space that stands for the protocol's own features. */
export const VHOST_USER_F_PROTOCOL_FEATURES = 1n << 30n
export const VHOST_USER_PROTOCOL_F_MQ = 1n << 0n
export const VHOST_USER_PROTOCOL_F_REPLY_ACK = 1n << 3n
export const VHOST_USER_PROTOCOL_F_BACKEND_REQ = 1n << 5n
export const VHOST_USER_PROTOCOL_F_CONFIG = 1n << 9n

/** In the payload of VHOST_USER_SET_VRING_KICK, CALL and ERR: no descriptor comes with it. */
export const VHOST_USER_VRING_NOFD_MASK = 0x100
export const VHOST_USER_VRING_INDEX_MASK = 0xff

const VERSION = 1
const VERSION_MASK = 3
const FLAG_REPLY = 4
const FLAG_NEED_REPLY = 8
const HEADER_SIZE = 12
/** The largest we know is a configuration space of 256 bytes with its 12 bytes of header; a memory table has 264. */
const MAX_PAYLOAD = 512
/** One a memory region. */
export const MAX_FDS = 8

/** The other end broke the protocol: the connection ends. */
export class VhostUserError extends Error {
  override readonly name = 'VhostUserError'
}

/** One message of the frontend. Its descriptors belong to whoever handles it. */
export interface Message {
  readonly request: number
  /** The frontend waits for a reply even where the request itself has none (VHOST_USER_PROTOCOL_F_REPLY_ACK). */
  readonly needReply: boolean
  readonly payload: DataView
  readonly fds: Fd[]
}

/**
 * Cuts a connection's bytes into messages. Sizes and numbers of descriptors are bounded before anything is kept.
 *
 *     request u32 | flags u32: version 1, reply 4, need reply 8 | size u32 | payload: size bytes
 */
export class MessageReader implements Disposable {
  readonly #fd: Fd
  readonly #bytes = new Uint8Array(HEADER_SIZE + MAX_PAYLOAD)
  readonly #view = new DataView(this.#bytes.buffer)
  #length = 0
  #fds: Fd[] = []

  constructor(fd: Fd) {
    this.#fd = fd
  }

  /**
   * @returns the next message, undefined where the rest of it is yet to come, or `end` once the other end has closed
   * @throws VhostUserError when what comes is no message; SysError
   */
  next(): Message | 'end' | undefined {
    for (;;) {
      const wanted = this.#length < HEADER_SIZE ? HEADER_SIZE : HEADER_SIZE + this.#payloadSize()
      if (this.#length === wanted) {
        // A message without payload is whole with its header; else the header was just checked.
        const message = this.#take(wanted)
        if (message) return message
      }
      const end = this.#length < HEADER_SIZE ? HEADER_SIZE : wanted
      const { length, fds } = receiveWithFds(this.#fd, this.#bytes.subarray(this.#length, end))
      this.#fds.push(...fds)
      if (this.#fds.length > MAX_FDS)
        throw new VhostUserError(`more than ${MAX_FDS} descriptors in one message`)
      if (length === -1) return undefined
      if (length === 0) {
        if (this.#length > 0) throw new VhostUserError('the connection ended within a message')
        return 'end'
      }
      this.#length += length
    }
  }

  #take(size: number): Message {
    const flags = this.#view.getUint32(4, true)
    const fds = this.#fds
    this.#fds = []
    this.#length = 0
    return {
      request: this.#view.getUint32(0, true),
      needReply: (flags & FLAG_NEED_REPLY) !== 0,
      payload: new DataView(this.#bytes.slice(HEADER_SIZE, size).buffer),
      fds,
    }
  }

  #payloadSize(): number {
    const flags = this.#view.getUint32(4, true)
    const size = this.#view.getUint32(8, true)
    if ((flags & VERSION_MASK) !== VERSION)
      throw new VhostUserError(`protocol version ${flags & VERSION_MASK}; we know ${VERSION}`)
    if ((flags & FLAG_REPLY) !== 0) throw new VhostUserError('a reply where a request belongs')
    if (size > MAX_PAYLOAD) throw new VhostUserError(`a payload of ${size} bytes; at most ${MAX_PAYLOAD}`)
    return size
  }

  [Symbol.dispose](): void {
    for (const fd of this.#fds) fd.close()
    this.#fds = []
  }
}

/**
 * Sends a message.
 * @param reply whether it answers a request
 * @throws VhostUserError when the other end does not take it: nothing here waits
 */
export function sendMessage(fd: Fd, request: number, payload: Uint8Array, reply: boolean): void {
  const bytes = new Uint8Array(HEADER_SIZE + payload.length)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, request, true)
  view.setUint32(4, VERSION | (reply ? FLAG_REPLY : 0), true)
  view.setUint32(8, payload.length, true)
  bytes.set(payload, HEADER_SIZE)
  if (sendWithFds(fd, bytes) !== bytes.length)
    throw new VhostUserError('the frontend does not take our replies')
}
