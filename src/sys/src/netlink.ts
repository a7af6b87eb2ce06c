import { libc } from './libc.js'
import { SysError, check } from './error.js'
import { Fd } from './fd.js'

export const NETLINK_ROUTE = 0
const AF_NETLINK = 16
const SOCK_RAW = 3
const SOCK_CLOEXEC = 0o2000000
const SOL_NETLINK = 270
/** linux/netlink.h: errors come with a text; what was asked is not repeated in them; dumps filter strictly. */
const NETLINK_CAP_ACK = 10
const NETLINK_EXT_ACK = 11
const NETLINK_GET_STRICT_CHK = 12

const NLMSG_ERROR = 2
const NLMSG_DONE = 3
export const NLM_F_REQUEST = 0x1
export const NLM_F_ACK = 0x4
export const NLM_F_REPLACE = 0x100
export const NLM_F_EXCL = 0x200
export const NLM_F_CREATE = 0x400
export const NLM_F_DUMP = 0x300
const NLM_F_ACK_TLVS = 0x200
const NLMSGERR_ATTR_MSG = 1
/** struct nlmsghdr: length, type, flags, sequence, port. */
const HEADER = 16
const BUFFER = 64 * 1024

/** A message of the kernel's, without its header. */
export interface NetlinkMessage {
  readonly type: number
  readonly body: Buffer
}

/**
 * A netlink socket (netlink(7)) of the network namespace in which it is opened. Each request is answered before its
 * call returns: the kernel works on it while it is sent.
 */
export class NetlinkSocket implements Disposable {
  readonly #fd: Fd
  readonly #buffer = Buffer.alloc(BUFFER)
  #sequence = 0

  /** @param protocol `NETLINK_*` @throws {@link SysError} */
  constructor(protocol: number) {
    this.#fd = new Fd(check(libc.socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol), 'socket', 'netlink'))
    for (const option of [NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK])
      libc.setsockopt(this.#fd.number, SOL_NETLINK, option, new Int32Array([1]), 4)
  }

  /**
   * Sends one request.
   * @param flags `NLM_F_*` beside NLM_F_REQUEST; with NLM_F_DUMP the answer has any number of messages
   * @param what it does, for the error
   * @throws {@link SysError} with the kernel's own words where it gave some
   */
  request(type: number, flags: number, body: Uint8Array, what: string): NetlinkMessage[] {
    const isDump = (flags & NLM_F_DUMP) === NLM_F_DUMP
    const sequence = ++this.#sequence
    const message = Buffer.alloc(HEADER + body.length)
    message.writeUInt32LE(message.length, 0)
    message.writeUInt16LE(type, 4)
    message.writeUInt16LE(flags | NLM_F_REQUEST | (isDump ? 0 : NLM_F_ACK), 6)
    message.writeUInt32LE(sequence, 8)
    message.set(body, HEADER)
    check(libc.send(this.#fd.number, message, message.length, 0), 'send', what)
    const answer: NetlinkMessage[] = []
    while (!this.#receive(sequence, answer, what));
    return answer
  }

  /** @returns whether that was all */
  #receive(sequence: number, answer: NetlinkMessage[], what: string): boolean {
    const all = this.#buffer
    const length = check(libc.recv(this.#fd.number, all, all.length, 0), 'recv', what)
    for (let at = 0; at + HEADER <= length;) {
      const size = all.readUInt32LE(at)
      if (size < HEADER || at + size > length) break
      const type = all.readUInt16LE(at + 4)
      const body = Buffer.from(all.subarray(at + HEADER, at + size))
      if (all.readUInt32LE(at + 8) === sequence) {
        if (type === NLMSG_DONE) return true
        if (type === NLMSG_ERROR) {
          const code = -body.readInt32LE(0)
          if (code === 0) return true
          const said =
            (all.readUInt16LE(at + 6) & NLM_F_ACK_TLVS) !== 0 ? textOf(body.subarray(4 + HEADER)) : ''
          throw new SysError(code, what, said === '' ? '' : `(${said})`)
        }
        answer.push({ type, body })
      }
      at += (size + 3) & ~3
    }
    return false
  }

  [Symbol.dispose](): void {
    this.#fd.close()
  }
}

/** The words in an error's attributes. */
function textOf(attributes: Buffer): string {
  for (let at = 0; at + 4 <= attributes.length;) {
    const size = attributes.readUInt16LE(at)
    if (size < 4 || at + size > attributes.length) break
    if (attributes.readUInt16LE(at + 2) === NLMSGERR_ATTR_MSG)
      return attributes.toString('utf8', at + 4, at + size).replace(/\0.*$/, '')
    at += (size + 3) & ~3
  }
  return ''
}
