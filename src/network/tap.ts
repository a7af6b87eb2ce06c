import { Fd, O_RDWR } from '@coracle/sys'

/* linux/if_tun.h */
const TUNSETIFF = 0x400454ca
const TUNSETPERSIST = 0x400454cb
const IFF_TAP = 0x0002
const IFF_NO_PI = 0x1000
const IFF_VNET_HDR = 0x4000
/** sizeof(struct ifreq) */
const IFREQ = 40

/**
 * Makes a tap that lasts until its link is deleted: whoever runs the microVM opens it by its name, or is given it.
 * @throws SysError
 */
export function createTap(name: string): void {
  using tun = Fd.open('/dev/net/tun', O_RDWR)
  const request = Buffer.alloc(IFREQ)
  request.write(name, 'latin1')
  request.writeUInt16LE(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, 16)
  tun.ioctl(TUNSETIFF, request, 'TUNSETIFF')
  tun.ioctl(TUNSETPERSIST, 1, 'TUNSETPERSIST')
}
