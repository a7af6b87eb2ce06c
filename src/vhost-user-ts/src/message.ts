import { type Fd, SysError, receiveWithFds, sendWithFds } from '@coracle/sys'

const VERSION = 1
const VERSION_MASK = 3
const FLAG_REPLY = 4
const FLAG_NEED_REPLY = 8
const HEADER_SIZE = 12
/** The largest we know is a configuration space of 256 bytes with its 12 bytes of header; a memory table has 264. */
const MAX_PAYLOAD = 512
/** One a memory region: VHOST_MEMORY_BASELINE_NREGIONS. */
export const MAX_FDS = 8

/** The other end broke the protocol, or left: the connection ends. */
export class VhostUserError extends Error {
  override readonly name = 'VhostUserError'
}

/** One message of the other end. Its descriptors belong to whoever handles it. */
export interface Message {
  readonly request: number
  /** The sender waits for a reply even where the request itself has none (VHOST_USER_PROTOCOL_F_REPLY_ACK). */
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
  readonly #expected: 'requests' | 'replies'
  readonly #bytes = new Uint8Array(HEADER_SIZE + MAX_PAYLOAD)
  readonly #view = new DataView(this.#bytes.buffer)
  #length = 0
  #fds: Fd[] = []

  constructor(fd: Fd, expected: 'requests' | 'replies') {
    this.#fd = fd
    this.#expected = expected
  }

  /**
   * @returns the next message, undefined where the rest of it is yet to come, or `end` once the other end has closed
   * @throws VhostUserError when what comes is no message; SysError
   */
  next(): Message | 'end' | undefined {
    for (;;) {
      const wanted = this.#length < HEADER_SIZE ? HEADER_SIZE : HEADER_SIZE + this.#payloadSize()
      // A message without payload is whole with its header.
      if (this.#length === wanted) return this.#take(wanted)
      const { length, fds } = receiveWithFds(this.#fd, this.#bytes.subarray(this.#length, wanted))
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
    const isReply = (flags & FLAG_REPLY) !== 0
    if (isReply !== (this.#expected === 'replies'))
      throw new VhostUserError(
        isReply ? 'a reply where a request belongs' : 'a request where a reply belongs',
      )
    if (size > MAX_PAYLOAD) throw new VhostUserError(`a payload of ${size} bytes; at most ${MAX_PAYLOAD}`)
    return size
  }

  [Symbol.dispose](): void {
    for (const fd of this.#fds) fd.close()
    this.#fds = []
  }
}

/** What {@link sendMessage} sends beside request and payload. */
export interface MessageOptions {
  /** It answers a request of the other end. */
  readonly reply?: boolean
  /** Asks for an acknowledgement. */
  readonly needReply?: boolean
  /** Descriptors to go with it; they stay the caller's. */
  readonly fds?: readonly Fd[]
}

/**
 * Sends a message.
 * @throws VhostUserError when the other end does not take it: nothing here waits
 */
export function sendMessage(
  fd: Fd,
  request: number,
  payload: Uint8Array,
  { reply = false, needReply = false, fds = [] }: MessageOptions = {},
): void {
  const bytes = new Uint8Array(HEADER_SIZE + payload.length)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, request, true)
  view.setUint32(4, VERSION | (reply ? FLAG_REPLY : 0) | (needReply ? FLAG_NEED_REPLY : 0), true)
  view.setUint32(8, payload.length, true)
  bytes.set(payload, HEADER_SIZE)
  let sent: number
  try {
    sent = sendWithFds(fd, bytes, fds)
  } catch (error) {
    if (!(error instanceof SysError)) throw error
    throw new VhostUserError(`the other end is gone: ${error.message}`, { cause: error })
  }
  if (sent !== bytes.length) throw new VhostUserError('the other end does not take our messages')
}

/** A payload of numbers of 64 bits. */
export function u64s(...values: readonly (bigint | number)[]): Uint8Array {
  return new Uint8Array(new BigUint64Array(values.map(BigInt)).buffer)
}

/** A payload of numbers of 32 bits. */
export function u32s(...values: readonly number[]): Uint8Array {
  return new Uint8Array(new Uint32Array(values).buffer)
}
