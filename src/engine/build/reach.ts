import { BlockList, isIP } from 'node:net'

/** What a RUN could not reach either: this host's loopback, and what is on its link alone, such as a cloud's metadata. */
const FORBIDDEN = new BlockList()
FORBIDDEN.addSubnet('0.0.0.0', 8)
FORBIDDEN.addSubnet('127.0.0.0', 8)
FORBIDDEN.addSubnet('169.254.0.0', 16)
FORBIDDEN.addSubnet('224.0.0.0', 3)
FORBIDDEN.addAddress('::', 'ipv6')
FORBIDDEN.addAddress('::1', 'ipv6')
FORBIDDEN.addSubnet('fe80::', 10, 'ipv6')
FORBIDDEN.addSubnet('ff00::', 8, 'ipv6')

/** Why ADD does not go to an IP address, since the host does it; undefined where it does. */
export function whyNotTo(ip: string): string | undefined {
  const plain = ip.replace(/^::ffff:(?=\d+\.)/i, '')
  return FORBIDDEN.check(plain, isIP(plain) === 6 ? 'ipv6' : 'ipv4')
    ? `${ip} is this host's own, or of its link alone: no RUN reaches it, and no ADD (--network host does)`
    : undefined
}

/** A URL's host without the brackets of IPv6. */
export const literalOf = (url: URL): string => url.hostname.replace(/^\[(.*)\]$/, '$1')
