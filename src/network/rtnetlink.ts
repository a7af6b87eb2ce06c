import {
  NETLINK_ROUTE,
  NLM_F_CREATE,
  NLM_F_DUMP,
  NLM_F_EXCL,
  NLM_F_REPLACE,
  NetlinkSocket,
  SysError,
  inNetworkNamespace,
  type Fd,
} from '@coracle/sys'
import { Subnet, addressBytes, addressOfBytes, parseAddress, type Address } from './address.js'

/* linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/if_bridge.h, linux/veth.h, linux/pkt_sched.h,
   linux/pkt_cls.h, linux/tc_act/tc_mirred.h */
const RTM_NEWLINK = 16
const RTM_DELLINK = 17
const RTM_GETLINK = 18
const RTM_SETLINK = 19
const RTM_NEWADDR = 20
const RTM_NEWROUTE = 24
const RTM_GETROUTE = 26
const RTM_NEWQDISC = 36
const RTM_NEWTFILTER = 44
const IFLA_ADDRESS = 1
const IFLA_IFNAME = 3
const IFLA_MTU = 4
const IFLA_LINK = 5
const IFLA_MASTER = 10
const IFLA_PROTINFO = 12
const IFLA_LINKINFO = 18
const IFLA_IFALIAS = 20
const IFLA_NET_NS_FD = 28
const IFLA_INFO_KIND = 1
const IFLA_INFO_DATA = 2
const VETH_INFO_PEER = 1
const IFLA_MACVLAN_MODE = 1
const MACVLAN_MODE_BRIDGE = 4
const IFLA_BRPORT_MODE = 4
const IFF_UP = 1
const IFF_ALLMULTI = 0x200
const IFA_ADDRESS = 1
const IFA_LOCAL = 2
const IFA_BROADCAST = 4
/** No duplicate address detection: addresses come from one place here, and DAD would hold them back for a second. */
const IFA_F_NODAD = 2
const RTA_DST = 1
const RTA_OIF = 4
const RTA_GATEWAY = 5
const RT_TABLE_MAIN = 254
const RTPROT_BOOT = 3
const RT_SCOPE_UNIVERSE = 0
const RTN_UNICAST = 1
const TC_H_INGRESS = 0xffff_fff1
const INGRESS_HANDLE = 0xffff_0000
const TCA_KIND = 1
const TCA_OPTIONS = 2
const TCA_U32_SEL = 5
const TCA_U32_ACT = 7
const TC_U32_TERMINAL = 1
const TCA_ACT_KIND = 1
const TCA_ACT_OPTIONS = 2
const TCA_MIRRED_PARMS = 2
const TCA_EGRESS_REDIR = 1
const TC_ACT_STOLEN = 4
const ETH_P_ALL = 3
const AF_UNSPEC = 0
const AF_INET = 2
const AF_BRIDGE = 7
const AF_INET6 = 10
const NESTED = 0x8000

type Value = Uint8Array | string | number | boolean | readonly Attribute[]
type Attribute = readonly [type: number, value: Value]

/** What is told of a link. */
export interface Link {
  readonly index: number
  readonly name: string
  readonly alias: string
  readonly up: boolean
  /** Its hardware address in lower case; empty where it has none. */
  readonly mac: string
}

/** How a link is made. */
export interface LinkInit {
  readonly name: string
  readonly mtu?: number
  readonly mac?: string
  /** Index of the bridge that it becomes a port of. */
  readonly master?: number
}

/**
 * The links, addresses and routes of a network namespace, by rtnetlink(7). Making what is there already throws a
 * SysError EEXIST; deleting what is not there does nothing.
 */
export class Rtnetlink implements Disposable {
  readonly #socket: NetlinkSocket

  /** @param namespace undefined: the caller's own @throws SysError */
  constructor(namespace?: Fd) {
    const open = (): NetlinkSocket => new NetlinkSocket(NETLINK_ROUTE)
    this.#socket = namespace ? inNetworkNamespace(namespace, open) : open()
  }

  createBridge(init: LinkInit): void {
    this.#create(init, [[IFLA_INFO_KIND, 'bridge']])
  }

  /** A pair of links, the peer in the namespace `into`. */
  createVeth(init: LinkInit, peer: LinkInit, into: Fd): void {
    const inside = Buffer.concat([
      linkHeader(0, 0, 0),
      attributes([...describe(peer), [IFLA_NET_NS_FD, into.number]]),
    ])
    this.#create(init, [
      [IFLA_INFO_KIND, 'veth'],
      [IFLA_INFO_DATA, [[VETH_INFO_PEER, inside]]],
    ])
  }

  /** A link of its own hardware address on `parent`. @param into its namespace, where it is not ours */
  createMacvlan(init: LinkInit, parent: number, into?: Fd): void {
    this.#create(
      init,
      [
        [IFLA_INFO_KIND, 'macvlan'],
        [IFLA_INFO_DATA, [[IFLA_MACVLAN_MODE, MACVLAN_MODE_BRIDGE]]],
      ],
      [[IFLA_LINK, parent], ...(into ? [[IFLA_NET_NS_FD, into.number] as const] : [])],
    )
  }

  #create(init: LinkInit, info: readonly Attribute[], more: readonly Attribute[] = []): void {
    const body = [linkHeader(0, 0, 0), attributes([...describe(init), ...more, [IFLA_LINKINFO, info]])]
    this.#socket.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, Buffer.concat(body), `create ${init.name}`)
  }

  /**
   * Changes a link: whether it is up, whether it takes all multicasts, the bridge that it belongs to, the words that
   * `ip link` shows of it.
   */
  setLink(
    index: number,
    {
      up,
      allMulticast,
      master,
      alias,
      mtu,
    }: { up?: boolean; allMulticast?: boolean; master?: number; alias?: string; mtu?: number },
  ): void {
    const changes: Attribute[] = []
    if (master !== undefined) changes.push([IFLA_MASTER, master])
    if (mtu !== undefined) changes.push([IFLA_MTU, mtu])
    if (alias !== undefined) changes.push([IFLA_IFALIAS, Buffer.from(alias).subarray(0, 255)])
    const flags = (up === true ? IFF_UP : 0) | (allMulticast === true ? IFF_ALLMULTI : 0)
    const changed = (up === undefined ? 0 : IFF_UP) | (allMulticast === undefined ? 0 : IFF_ALLMULTI)
    const header = linkHeader(index, flags, changed)
    this.#socket.request(RTM_NEWLINK, 0, Buffer.concat([header, attributes(changes)]), `change link ${index}`)
  }

  /** Moves a link that is down into another namespace, where it has this name. */
  moveLink(index: number, { name, mtu }: LinkInit, into: Fd): void {
    const changes: Attribute[] = [
      ...describe({ name, ...(mtu === undefined ? {} : { mtu }) }),
      [IFLA_NET_NS_FD, into.number],
    ]
    const body = Buffer.concat([linkHeader(index, 0, 0), attributes(changes)])
    this.#socket.request(RTM_NEWLINK, 0, body, `move link ${index}`)
  }

  /** Lets a port of a bridge send back what came from it: a container that calls its own published port. */
  setHairpin(index: number): void {
    const header = linkHeader(index, 0, 0)
    header[0] = AF_BRIDGE
    const body = Buffer.concat([header, attributes([[IFLA_PROTINFO, [[IFLA_BRPORT_MODE, true]]]])])
    this.#socket.request(RTM_SETLINK, 0, body, `set hairpin of link ${index}`)
  }

  /**
   * Has whatever arrives at a link leave by another one, past the host's own network: what `tc` calls an ingress qdisc
   * with a filter that matches everything and the action mirred. It goes with the link.
   * @throws SysError ENOENT where the kernel has none of these
   */
  redirect(from: number, to: number): void {
    const qdisc = Buffer.concat([
      trafficHeader(from, INGRESS_HANDLE, TC_H_INGRESS, 0),
      attributes([[TCA_KIND, 'ingress\0']]),
    ])
    this.#socket.request(
      RTM_NEWQDISC,
      NLM_F_CREATE | NLM_F_EXCL,
      qdisc,
      `look at what arrives at link ${from}`,
    )
    // struct tc_u32_sel with one key whose mask is empty.
    const selector = Buffer.alloc(16 + 16)
    selector[0] = TC_U32_TERMINAL
    selector[2] = 1
    // struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex.
    const mirred = Buffer.alloc(28)
    mirred.writeInt32LE(TC_ACT_STOLEN, 8)
    mirred.writeInt32LE(TCA_EGRESS_REDIR, 20)
    mirred.writeUInt32LE(to, 24)
    const action: Attribute[] = [
      [TCA_ACT_KIND, 'mirred\0'],
      [TCA_ACT_OPTIONS, [[TCA_MIRRED_PARMS, mirred]]],
    ]
    const filter = Buffer.concat([
      // The priority, and the protocol in the order of the network.
      trafficHeader(from, 0, INGRESS_HANDLE, (1 << 16) | (ETH_P_ALL << 8)),
      attributes([
        [TCA_KIND, 'u32\0'],
        [
          TCA_OPTIONS,
          [
            [TCA_U32_SEL, selector],
            [TCA_U32_ACT, [[1, action]]],
          ],
        ],
      ]),
    ])
    this.#socket.request(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, filter, `redirect link ${from} to ${to}`)
  }

  deleteLink(name: string): void {
    try {
      const body = Buffer.concat([linkHeader(0, 0, 0), attributes([[IFLA_IFNAME, `${name}\0`]])])
      this.#socket.request(RTM_DELLINK, 0, body, `delete ${name}`)
    } catch (error) {
      if (!(error instanceof SysError && error.code === 'ENODEV')) throw error
    }
  }

  /** @returns undefined where there is none of this name */
  link(name: string): Link | undefined {
    try {
      const body = Buffer.concat([linkHeader(0, 0, 0), attributes([[IFLA_IFNAME, `${name}\0`]])])
      const [message] = this.#socket.request(RTM_GETLINK, 0, body, `get ${name}`)
      return message && linkOf(message.body)
    } catch (error) {
      if (error instanceof SysError && error.code === 'ENODEV') return undefined
      throw error
    }
  }

  links(): Link[] {
    return this.#socket
      .request(RTM_GETLINK, NLM_F_DUMP, linkHeader(0, 0, 0), 'list links')
      .map(({ body }) => linkOf(body))
  }

  /** @param cidr such as `10.1.0.2/16` @throws SysError */
  addAddress(index: number, cidr: string): void {
    const [text = '', prefix] = cidr.split('/')
    const address = parseAddress(text)!
    const bytes = addressBytes(address)
    const header = Buffer.alloc(8)
    header[0] = address.family === 4 ? AF_INET : AF_INET6
    header[1] = Number(prefix)
    header[2] = address.family === 4 ? 0 : IFA_F_NODAD
    header.writeUInt32LE(index, 4)
    const all: Attribute[] = [
      [IFA_LOCAL, bytes],
      [IFA_ADDRESS, bytes],
    ]
    if (address.family === 4 && header[1] < 31) {
      const { last } = new Subnet(address, header[1])
      all.push([IFA_BROADCAST, addressBytes({ family: 4, value: last })])
    }
    const body = Buffer.concat([header, attributes(all)])
    this.#socket.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body, `add address ${cidr}`)
  }

  /** The default route of the gateway's family. @throws SysError */
  addDefaultRoute(index: number, gateway: Address): void {
    const header = routeHeader(gateway.family === 4 ? AF_INET : AF_INET6)
    const body = attributes([
      [RTA_OIF, index],
      [RTA_GATEWAY, addressBytes(gateway)],
    ])
    this.#socket.request(
      RTM_NEWROUTE,
      NLM_F_CREATE | NLM_F_REPLACE,
      Buffer.concat([header, body]),
      'add the default route',
    )
  }

  /** Where packets go by more than the default route: the destinations, and the index of the link to each. */
  routes(): { destination: Subnet; link: number }[] {
    const found: { destination: Subnet; link: number }[] = []
    for (const family of [AF_INET, AF_INET6]) {
      const header = Buffer.alloc(12)
      header[0] = family
      for (const { body } of this.#socket.request(RTM_GETROUTE, NLM_F_DUMP, header, 'list routes')) {
        const own = parse(body.subarray(12))
        const destination = own.get(RTA_DST)
        const length = body[1]!
        if (destination === undefined || length === 0 || body[4] !== RT_TABLE_MAIN) continue
        found.push({
          destination: new Subnet(addressOfBytes(destination), length),
          link: own.get(RTA_OIF)?.readUInt32LE(0) ?? 0,
        })
      }
    }
    return found
  }

  [Symbol.dispose](): void {
    this.#socket[Symbol.dispose]()
  }
}

/** struct ifinfomsg: family, type, index, flags, the flags that change. */
function linkHeader(index: number, flags: number, change: number): Buffer {
  const header = Buffer.alloc(16)
  header[0] = AF_UNSPEC
  header.writeInt32LE(index, 4)
  header.writeUInt32LE(flags, 8)
  header.writeUInt32LE(change, 12)
  return header
}

/** struct tcmsg: family, index, handle, parent, info. */
function trafficHeader(index: number, handle: number, parent: number, info: number): Buffer {
  const header = Buffer.alloc(20)
  header.writeInt32LE(index, 4)
  header.writeUInt32LE(handle, 8)
  header.writeUInt32LE(parent, 12)
  header.writeUInt32LE(info, 16)
  return header
}

/** struct rtmsg of the main table. */
function routeHeader(family: number): Buffer {
  const header = Buffer.alloc(12)
  header[0] = family
  header[4] = RT_TABLE_MAIN
  header[5] = RTPROT_BOOT
  header[6] = RT_SCOPE_UNIVERSE
  header[7] = RTN_UNICAST
  return header
}

function linkOf(body: Buffer): Link {
  const own = parse(body.subarray(16))
  const text = (type: number): string => own.get(type)?.toString('utf8').replace(/\0.*$/, '') ?? ''
  return {
    index: body.readInt32LE(4),
    name: text(IFLA_IFNAME),
    alias: text(IFLA_IFALIAS),
    up: (body.readUInt32LE(8) & IFF_UP) !== 0,
    mac:
      own
        .get(IFLA_ADDRESS)
        ?.toString('hex')
        .replace(/..(?!$)/g, '$&:') ?? '',
  }
}

function describe({ name, mtu, mac, master }: LinkInit): Attribute[] {
  const all: Attribute[] = [[IFLA_IFNAME, `${name}\0`]]
  if (mtu !== undefined) all.push([IFLA_MTU, mtu])
  if (mac !== undefined) all.push([IFLA_ADDRESS, Buffer.from(mac.replaceAll(':', ''), 'hex')])
  if (master !== undefined) all.push([IFLA_MASTER, master])
  return all
}

/** struct rtattr: length and type, the value, padded to four bytes. A number is an u32, a boolean an u8. */
function attributes(all: readonly Attribute[]): Buffer {
  return Buffer.concat(
    all.map(([type, value]) => {
      const nested = Array.isArray(value)
      const bytes = bytesOf(value)
      const size = 4 + bytes.length
      const buffer = Buffer.alloc((size + 3) & ~3)
      buffer.writeUInt16LE(size, 0)
      buffer.writeUInt16LE(nested ? type | NESTED : type, 2)
      buffer.set(bytes, 4)
      return buffer
    }),
  )
}

function bytesOf(value: Value): Uint8Array {
  if (typeof value === 'string') return Buffer.from(value)
  if (value instanceof Uint8Array) return value
  if (typeof value === 'boolean') return Buffer.from([value ? 1 : 0])
  if (typeof value !== 'number') return attributes(value)
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value, 0)
  return bytes
}

function parse(bytes: Buffer): Map<number, Buffer> {
  const found = new Map<number, Buffer>()
  for (let at = 0; at + 4 <= bytes.length;) {
    const size = bytes.readUInt16LE(at)
    if (size < 4 || at + size > bytes.length) break
    found.set(bytes.readUInt16LE(at + 2) & 0x3fff, bytes.subarray(at + 4, at + size))
    at += (size + 3) & ~3
  }
  return found
}
