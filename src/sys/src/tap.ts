import { check } from './error.js'
import { Fd, O_NONBLOCK, O_RDWR } from './fd.js'
import { libc } from './libc.js'
import { SysError } from './error.js'

/* linux/if_tun.h */
const TUNSETIFF = 0x400454ca
const TUNSETPERSIST = 0x400454cb
const TUNSETOWNER = 0x400454cc
const TUNSETOFFLOAD = 0x400454d0
const TUNGETIFF = 0x800454d2
const TUNSETVNETHDRSZ = 0x400454d8
const IFF_TAP = 0x0002
const IFF_NO_PI = 0x1000
const IFF_VNET_HDR = 0x4000
const IFF_TUN_EXCL = 0x8000
/** What the other end of a tap takes, so that the kernel need not do it before: {@link Tap.setOffload}. */
export const TUN_F_CSUM = 0x01
export const TUN_F_TSO4 = 0x02
export const TUN_F_TSO6 = 0x04
export const TUN_F_TSO_ECN = 0x08
/** linux/if.h */
const IFNAMSIZ = 16
/** sizeof(struct ifreq), and where its flags are. */
const IFREQ_SIZE = 40
const IFREQ_FLAGS = 16
/** sizeof(struct virtio_net_hdr_v1): with the count of buffers, which the kernel neither reads nor writes. */
export const VNET_HEADER = 12

/**
 * An open tap: our end of an Ethernet cable whose other end is a network interface of the host. Each read and write is
 * one frame behind a virtio_net_hdr of {@link VNET_HEADER} bytes; neither blocks. The interface has a carrier for as
 * long as somebody has it open.
 */
export class Tap implements Disposable {
  /** The interface's name. */
  readonly name: string
  readonly fd: Fd

  private constructor(name: string, fd: Fd) {
    this.name = name
    this.fd = fd
  }

  /**
   * Opens the tap `name` of this thread's network namespace, which must be there: {@link createTap}.
   * @throws SysError ENODEV where it is not there, EBUSY where somebody else has it open, EINVAL where it is no tap or
   *   has several queues
   */
  static open(name: string): Tap {
    // TUNSETIFF would make a new one.
    if (libc.interfaceIndex(name) === 0) throw new SysError(19, 'TUNSETIFF', name)
    return new Tap(name, attach(name, 0))
  }

  /**
   * Takes over an open tap, as another process has handed it over.
   * @param fd becomes ours, also where this throws
   * @throws SysError EBADFD where it is no tap
   */
  static adopt(fd: Fd): Tap {
    try {
      const request = new Uint8Array(IFREQ_SIZE)
      fd.ioctl(TUNGETIFF, request, 'TUNGETIFF')
      const flags = new DataView(request.buffer).getUint16(IFREQ_FLAGS, true)
      if ((flags & IFF_TAP) === 0 || (flags & IFF_VNET_HDR) === 0) throw new SysError(77, 'TUNGETIFF')
      prepare(fd)
      const end = request.indexOf(0)
      return new Tap(Buffer.from(request.subarray(0, Math.min(end, IFNAMSIZ))).toString('latin1'), fd)
    } catch (error) {
      fd.close()
      throw error
    }
  }

  /** @param flags `TUN_F_*`: what the kernel may leave undone in the frames that are read here */
  setOffload(flags: number): void {
    this.fd.ioctl(TUNSETOFFLOAD, flags, 'TUNSETOFFLOAD')
  }

  close(): void {
    this.fd.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }
}

/**
 * Makes a tap that stays until {@link deleteTap}, with one queue and no carrier.
 * @param owner the user who may open it without the right to change networks
 * @throws SysError EBUSY where there is an interface of that name
 */
export function createTap(name: string, owner?: number): void {
  using fd = attach(name, IFF_TUN_EXCL)
  if (owner !== undefined) fd.ioctl(TUNSETOWNER, owner, 'TUNSETOWNER')
  fd.ioctl(TUNSETPERSIST, 1, 'TUNSETPERSIST')
}

/** Deletes a tap that nobody has open, or lets it go with who has. @throws SysError as {@link Tap.open} */
export function deleteTap(name: string): void {
  using tap = Tap.open(name)
  tap.fd.ioctl(TUNSETPERSIST, 0, 'TUNSETPERSIST')
}

function attach(name: string, flags: number): Fd {
  const bytes = Buffer.from(name)
  if (bytes.length === 0 || bytes.length >= IFNAMSIZ || bytes.includes(0))
    throw new SysError(22, 'TUNSETIFF', `'${name}' is no name of an interface`)
  const fd = Fd.open('/dev/net/tun', O_RDWR | O_NONBLOCK)
  try {
    const request = new Uint8Array(IFREQ_SIZE)
    request.set(bytes)
    new DataView(request.buffer).setUint16(IFREQ_FLAGS, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | flags, true)
    check(libc.ioctl(fd.number, TUNSETIFF, request), 'TUNSETIFF', name)
    prepare(fd)
    return fd
  } catch (error) {
    fd.close()
    throw error
  }
}

function prepare(fd: Fd): void {
  fd.setNonBlocking()
  fd.ioctl(TUNSETVNETHDRSZ, new Int32Array([VNET_HEADER]), 'TUNSETVNETHDRSZ')
}
