import { addressOf, libc } from './libc.js'
import { SysError, check, checkAgain } from './error.js'
import { Fd } from './fd.js'

export const SOCK_STREAM = 1
export const SOCK_SEQPACKET = 5
const AF_UNIX = 1
const AF_VSOCK = 40
const VMADDR_CID_ANY = 0xffff_ffff
const SOCK_CLOEXEC = 0o2000000
const SOCK_NONBLOCK = 0o4000
const SOL_SOCKET = 1
const SO_SNDTIMEO = 21
const SCM_RIGHTS = 1
const MSG_CTRUNC = 0x8
const MSG_NOSIGNAL = 0x4000
const MSG_CMSG_CLOEXEC = 0x40000000
const CMSG_HEADER = 16
/** The kernel's SCM_MAX_FD is 253; vhost-user needs 8 (one a memory region). */
const MAX_FDS = 32
const SUN_PATH = 108

export const SHUT_RD = 0
export const SHUT_WR = 1

/** Two connected Unix stream sockets, non-blocking. */
export function socketPair(type = SOCK_STREAM): [Fd, Fd] {
  const pair = new Int32Array(2)
  check(libc.socketpair(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 'socketpair')
  return [new Fd(pair[0]!), new Fd(pair[1]!)]
}

/** A Unix stream socket listening at `path`, non-blocking. */
export function listenUnix(path: string, backlog = 16): Fd {
  const fd = newSocket()
  try {
    const address = sockaddr(path)
    check(libc.bind(fd.number, address, address.byteLength), 'bind', path)
    check(libc.listen(fd.number, backlog), 'listen', path)
    return fd
  } catch (error) {
    fd.close()
    throw error
  }
}

/**
 * A vsock stream socket (vsock(7)) listening on `port` for connections from any guest of the kernel's own vsock
 * (vhost-vsock), non-blocking.
 */
export function listenVsock(port: number, backlog = 16): Fd {
  const fd = new Fd(check(libc.socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), 'socket'))
  try {
    // struct sockaddr_vm (linux/vm_sockets.h): family, reserved, port, cid, flags.
    const address = new DataView(new ArrayBuffer(16))
    address.setUint16(0, AF_VSOCK, true)
    address.setUint32(4, port, true)
    address.setUint32(8, VMADDR_CID_ANY, true)
    check(libc.bind(fd.number, address, address.byteLength), 'bind', `vsock port ${port}`)
    check(libc.listen(fd.number, backlog), 'listen', `vsock port ${port}`)
    return fd
  } catch (error) {
    fd.close()
    throw error
  }
}

/**
 * Connects to the Unix stream socket at `path`; blocks for the moment this takes, non-blocking after.
 * @param timeout ms to wait for a listener whose backlog is full; without it, for ever
 * @throws SysError, EAGAIN after the timeout
 */
export function connectUnix(path: string, timeout?: number): Fd {
  const fd = new Fd(check(libc.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), 'socket'))
  try {
    if (timeout !== undefined) {
      // struct timeval; zero would mean for ever. connect(2) on a Unix socket keeps to it.
      const time = new BigInt64Array([
        BigInt(Math.floor(timeout / 1000)),
        BigInt(Math.floor((timeout % 1000) * 1000) + 1),
      ])
      check(libc.setsockopt(fd.number, SOL_SOCKET, SO_SNDTIMEO, time, time.byteLength), 'setsockopt')
    }
    const address = sockaddr(path)
    check(libc.connect(fd.number, address, address.byteLength), 'connect', path)
    fd.setNonBlocking()
    return fd
  } catch (error) {
    fd.close()
    throw error
  }
}

/** @returns the next connection, non-blocking, or undefined where none waits. */
export function accept(listener: Fd): Fd | undefined {
  const number = checkAgain(libc.accept(listener.number, null, null, SOCK_CLOEXEC | SOCK_NONBLOCK), 'accept')
  return number === -1 ? undefined : new Fd(number)
}

/** @param how SHUT_RD or SHUT_WR. A peer that is gone is no error. */
export function shutdown(fd: Fd, how: number): void {
  try {
    check(libc.shutdown(fd.number, how), 'shutdown')
  } catch (error) {
    if (!(error instanceof SysError && error.code === 'ENOTCONN')) throw error
  }
}

/** Sends bytes with descriptors beside them (SCM_RIGHTS, unix(7)). @returns bytes sent, -1 where it would block. */
export function sendWithFds(fd: Fd, data: Uint8Array, fds: readonly Fd[] = []): number {
  if (fds.length > MAX_FDS) throw new RangeError(`at most ${MAX_FDS} descriptors a message`)
  const control = new DataView(new ArrayBuffer(CMSG_HEADER + Math.ceil((fds.length * 4) / 8) * 8))
  control.setBigUint64(0, BigInt(CMSG_HEADER + fds.length * 4), true)
  control.setInt32(8, SOL_SOCKET, true)
  control.setInt32(12, SCM_RIGHTS, true)
  fds.forEach((each, i) => control.setInt32(CMSG_HEADER + i * 4, each.number, true))
  const { header } = messageHeader(data, fds.length > 0 ? control : undefined)
  return checkAgain(libc.sendmsg(fd.number, header, MSG_NOSIGNAL), 'sendmsg')
}

/** What {@link receiveWithFds} got. `length` is 0 at the end and -1 where it would block. */
export interface Received {
  length: number
  fds: Fd[]
}

/**
 * Receives bytes and the descriptors beside them; the caller owns those.
 * @throws SysError EMSGSIZE when the peer sent more descriptors than fit: none is kept then
 */
export function receiveWithFds(fd: Fd, into: Uint8Array): Received {
  const control = new DataView(new ArrayBuffer(CMSG_HEADER + MAX_FDS * 4))
  const { header } = messageHeader(into, control)
  const length = checkAgain(libc.recvmsg(fd.number, header, MSG_CMSG_CLOEXEC), 'recvmsg')
  if (length === -1) return { length, fds: [] }
  const fds: Fd[] = []
  const used = Number(header.getBigUint64(40, true))
  for (let at = 0; at + CMSG_HEADER <= used;) {
    const size = Number(control.getBigUint64(at, true))
    if (size < CMSG_HEADER || at + size > used) break
    if (control.getInt32(at + 8, true) === SOL_SOCKET && control.getInt32(at + 12, true) === SCM_RIGHTS)
      for (let i = at + CMSG_HEADER; i + 4 <= at + size; i += 4) fds.push(new Fd(control.getInt32(i, true)))
    at += Math.ceil(size / 8) * 8
  }
  if ((header.getInt32(48, true) & MSG_CTRUNC) !== 0) {
    fds.forEach((each) => each.close())
    throw new SysError(90, 'recvmsg', 'too many descriptors in one message')
  }
  return { length, fds }
}

/**
 * struct msghdr (sys/socket.h, x86-64): name 0, namelen 8, iov 16, iovlen 24, control 32, controllen 40, flags 48.
 * The iovec is returned too, since only the caller's stack keeps it from the garbage collector.
 */
function messageHeader(
  data: Uint8Array,
  control: DataView | undefined,
): { header: DataView; iovec: BigUint64Array } {
  const iovec = new BigUint64Array([addressOf(data), BigInt(data.byteLength)])
  const header = new DataView(new ArrayBuffer(56))
  header.setBigUint64(16, addressOf(iovec), true)
  header.setBigUint64(24, 1n, true)
  if (control) {
    header.setBigUint64(32, addressOf(control), true)
    header.setBigUint64(40, BigInt(control.byteLength), true)
  }
  return { header, iovec }
}

function newSocket(): Fd {
  return new Fd(check(libc.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), 'socket'))
}

function sockaddr(path: string): Uint8Array {
  const bytes = Buffer.from(path)
  if (bytes.length >= SUN_PATH)
    throw new SysError(36, 'bind', `${path}: a socket's path has at most ${SUN_PATH - 1} bytes`)
  // An empty path, or one that begins with a zero, would be a socket in the abstract namespace.
  if (bytes.length === 0 || bytes.includes(0)) throw new SysError(22, 'bind', `'${path}' is no path`)
  const address = new Uint8Array(2 + bytes.length + 1)
  address[0] = AF_UNIX
  address.set(bytes, 2)
  return address
}
