import { CoracleError } from '../../errors.js'

/*
 * The bytes between the host and the guest's agent: firmware/agent/PROTOCOL.md. The host trusts none that comes from
 * the guest.
 */

export const PROTOCOL_VERSION = 1
/** vsock ports of the host, CID 2. */
export const PORT_CONTROL = 1024
export const PORT_STREAM = 1025
export const TOKEN_SIZE = 16
export const STREAM_MAGIC = 0x4d525453
export const STREAM_HEADER_SIZE = 4 + TOKEN_SIZE
export const FRAME_HEADER_SIZE = 12
/** The longest body that the agent takes from us, and that we take from it. */
export const MAX_REQUEST = 4 << 20
export const MAX_ANSWER = 4096

export const CONFIGURE = 0x01
export const CREATE = 0x02
export const START = 0x03
export const SIGNAL = 0x04
export const RESIZE = 0x05
export const SYNC = 0x06
export const SHUTDOWN = 0x07
export const MOUNT = 0x08
export const READ = 0x09
export const EXEC = 0x10
export const RESCAN = 0x14
export const STATS = 0x11
export const EXEC_SIGNAL = 0x15
export const EXEC_RESIZE = 0x16
export const NETWORK = 0x17
export const ARCHIVE_STAT = 0x20
export const ARCHIVE_READ = 0x21
export const ARCHIVE_WRITE = 0x22
export const PROCESSES = 0x23
export const NETWORK_DOWN = 0x18
export const UNPLUG = 0x19
export const SHARE = 0x1a
export const HOLD = 0x1b
export const RELEASE = 0x1c
export const REATTACH = 0x1d
export const LIMIT_PROCESSES = 0x1e
export const REHEARSE = 0x1f
export const HELLO = 0x4001
export const EXIT = 0x4002
export const NOTICE = 0x4003
export const EXEC_EXIT = 0x4004
export const OK = 0x8001
export const ERROR = 0x8002
export const DATA = 0x8003

export const CREATE_TTY = 1
export const CREATE_STDIN = 2
export const EXIT_OOM_KILLED = 1
/** The longest list of processes, in bytes: what is in all of them, and their frame. */
export const MAX_PROCESS_LIST = (256 << 10) + 64
/** What {@link REATTACH} has connected. */
export const REATTACHED_STDIN = 1
export const REATTACHED_STDOUT = 2
export const REATTACHED_STDERR = 4

/** One message, either way. */
export interface Frame {
  readonly type: number
  readonly flags: number
  /** What a reply answers; 0 for an event. */
  readonly request: number
  readonly body: Buffer
}

/** What the guest did against the protocol ends its VM. */
export function violation(what: string): CoracleError {
  return new CoracleError('GUEST_FAILED', `the guest broke the protocol: ${what}`)
}

/** Header and body as they go over the wire. @throws RangeError for a body of more than {@link MAX_REQUEST} bytes */
export function encodeFrame({ type, flags, request, body }: Frame): Buffer {
  if (body.length > MAX_REQUEST) throw new RangeError(`a message of ${body.length} bytes is too long`)
  const header = Buffer.alloc(FRAME_HEADER_SIZE)
  header.writeUInt32LE(body.length, 0)
  header.writeUInt16LE(type, 4)
  header.writeUInt16LE(flags, 6)
  header.writeUInt32LE(request, 8)
  return Buffer.concat([header, body])
}

/** Cuts a byte stream from the guest into frames. Holds at most one frame and one chunk. */
export class FrameParser {
  #held: Buffer

  constructor() {
    this.#held = Buffer.alloc(0)
  }

  /** The frames that `chunk` completes. @throws {@link CoracleError} GUEST_FAILED for one that is too long */
  *push(chunk: Buffer): Generator<Frame, void, void> {
    let bytes = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk])
    for (;;) {
      if (bytes.length < FRAME_HEADER_SIZE) break
      const length = bytes.readUInt32LE(0)
      if (length > MAX_ANSWER) throw violation(`a message of ${length} bytes`)
      const end = FRAME_HEADER_SIZE + length
      if (bytes.length < end) break
      const frame: Frame = {
        type: bytes.readUInt16LE(4),
        flags: bytes.readUInt16LE(6),
        request: bytes.readUInt32LE(8),
        body: bytes.subarray(FRAME_HEADER_SIZE, end),
      }
      bytes = bytes.subarray(end)
      this.#held = bytes
      yield frame
    }
    // A copy: a view would keep a large chunk alive for a few bytes.
    this.#held = Buffer.from(bytes)
  }
}

/** Writes a body field by field; strings and bytes carry their length before them. */
export class BodyWriter {
  readonly #parts: Buffer[] = []

  u32(value: number): this {
    const bytes = Buffer.alloc(4)
    bytes.writeUInt32LE(value)
    this.#parts.push(bytes)
    return this
  }

  u64(value: bigint): this {
    const bytes = Buffer.alloc(8)
    bytes.writeBigUInt64LE(value)
    this.#parts.push(bytes)
    return this
  }

  bytes(value: Uint8Array): this {
    this.u32(value.length)
    return this.fixed(value)
  }

  string(value: string): this {
    if (value.includes('\0')) throw new RangeError('a string for the guest holds a NUL')
    return this.bytes(Buffer.from(value))
  }

  fixed(value: Uint8Array): this {
    this.#parts.push(Buffer.from(value))
    return this
  }

  end(): Buffer {
    return Buffer.concat(this.#parts)
  }
}

/** Reads a body field by field. Each method throws {@link CoracleError} GUEST_FAILED past the end. */
export class BodyReader {
  readonly #body: Buffer
  #at = 0

  constructor(body: Buffer) {
    this.#body = body
  }

  u32(): number {
    return this.#take(4).readUInt32LE()
  }

  u64(): bigint {
    return this.#take(8).readBigUInt64LE()
  }

  bytes(): Buffer {
    return this.#take(this.u32())
  }

  /** Text for people: what is no UTF-8 or could drive a terminal is replaced. */
  string(): string {
    return this.bytes()
      .toString('utf8')
      .replace(/\p{Cc}/gu, '\ufffd')
  }

  /** Bytes that are not read yet. */
  get remaining(): number {
    return this.#body.length - this.#at
  }

  /** @throws {@link CoracleError} GUEST_FAILED where anything is left */
  end(): void {
    if (this.remaining !== 0) throw violation(`${this.remaining} bytes too many`)
  }

  #take(length: number): Buffer {
    if (length > this.remaining) throw violation('a field longer than its message')
    const part = this.#body.subarray(this.#at, this.#at + length)
    this.#at += length
    return part
  }
}
