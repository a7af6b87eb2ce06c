import { NETLINK_ROUTE, NetlinkSocket, SysError } from '@coracle/sys'
import { CoracleError } from '../errors.js'

/* linux/rtnetlink.h, linux/if_link.h */
const RTM_GETLINK = 18
const RTM_SETLINK = 19
const IFLA_IFNAME = 3
const IFLA_VFINFO_LIST = 22
const IFLA_EXT_MASK = 29
const IFLA_VF_INFO = 1
const IFLA_VF_MAC = 1
const IFLA_VF_VLAN = 2
const RTEXT_FILTER_VF = 1
const IFF_UP = 1
const NLA_TYPE_MASK = 0x3fff
const NLA_F_NESTED = 0x8000
/** sizeof(struct ifinfomsg): family, type, index, flags, change. */
const IFINFO = 16

/** What a physical function holds its virtual ones to. */
export interface PortSettings {
  /** Six octets; all zero: the function may choose. */
  readonly mac: string
  /** 1 to 4094: what the function sends is tagged, and it gets that alone. 0: none. */
  readonly vlan: number
}

/**
 * Tells a physical function about one of its virtual ones, by rtnetlink(7), and brings it up: the port of a virtual
 * function whose physical one is down has no link.
 * @param index of the physical function's interface
 * @throws CoracleError DEVICE_UNUSABLE where its driver refuses
 */
export function setPort(index: number, vf: number, { mac, vlan }: PortSettings): void {
  const vfMac = Buffer.alloc(36)
  vfMac.writeUInt32LE(vf, 0)
  vfMac.set(octets(mac), 4)
  const vfVlan = Buffer.alloc(12)
  vfVlan.writeUInt32LE(vf, 0)
  vfVlan.writeUInt32LE(vlan, 4)
  using socket = new NetlinkSocket(NETLINK_ROUTE)
  const set = (body: Buffer, what: string): void => {
    try {
      socket.request(RTM_SETLINK, 0, body, what)
    } catch (error) {
      if (!(error instanceof SysError)) throw error
      throw new CoracleError(
        'DEVICE_UNUSABLE',
        `the adapter's driver does not set the ${what} of virtual function ${vf}: ${error.message}`,
        { cause: error },
      )
    }
  }
  const about = (type: number, value: Buffer): Buffer =>
    Buffer.concat([
      link(index),
      attribute(
        IFLA_VFINFO_LIST | NLA_F_NESTED,
        attribute(IFLA_VF_INFO | NLA_F_NESTED, attribute(type, value)),
      ),
    ])
  set(about(IFLA_VF_MAC, vfMac), 'MAC address')
  set(about(IFLA_VF_VLAN, vfVlan), 'VLAN')
  set(link(index, IFF_UP, IFF_UP), 'state')
}

/** What a physical function was told about one of its virtual ones. */
export function getPort(index: number, vf: number): PortSettings {
  using socket = new NetlinkSocket(NETLINK_ROUTE)
  const mask = Buffer.alloc(4)
  mask.writeUInt32LE(RTEXT_FILTER_VF)
  const body = Buffer.concat([link(index), attribute(IFLA_EXT_MASK, mask)])
  const [answer] = socket.request(RTM_GETLINK, 0, body, 'ask for virtual functions')
  let mac = NO_MAC
  let vlan = 0
  for (const list of children(answer?.body.subarray(IFINFO), IFLA_VFINFO_LIST))
    for (const info of children(list, IFLA_VF_INFO)) {
      const [theirs] = children(info, IFLA_VF_MAC)
      if (!theirs || theirs.length < 10 || theirs.readUInt32LE(0) !== vf) continue
      mac = [...theirs.subarray(4, 10)].map((octet) => octet.toString(16).padStart(2, '0')).join(':')
      vlan = children(info, IFLA_VF_VLAN)[0]?.readUInt32LE(4) ?? 0
    }
  return { mac, vlan }
}

/** Gives an interface that is down another name. @throws SysError EEXIST where another one has it */
export function renameInterface(index: number, name: string): void {
  using socket = new NetlinkSocket(NETLINK_ROUTE)
  const body = Buffer.concat([link(index), attribute(IFLA_IFNAME, Buffer.from(`${name}\0`))])
  socket.request(RTM_SETLINK, 0, body, `call interface ${index} ${name}`)
}

/** What a function that nobody set up has. */
export const NO_MAC = '00:00:00:00:00:00'

const octets = (mac: string): number[] => mac.split(':').map((part) => Number.parseInt(part, 16))

function link(index: number, flags = 0, change = 0): Buffer {
  const info = Buffer.alloc(IFINFO)
  info.writeInt32LE(index, 4)
  info.writeUInt32LE(flags, 8)
  info.writeUInt32LE(change, 12)
  return info
}

function attribute(type: number, value: Buffer): Buffer {
  const all = Buffer.alloc((4 + value.length + 3) & ~3)
  all.writeUInt16LE(4 + value.length, 0)
  all.writeUInt16LE(type, 2)
  all.set(value, 4)
  return all
}

function children(attributes: Buffer | undefined, type: number): Buffer[] {
  const found: Buffer[] = []
  for (let at = 0; attributes && at + 4 <= attributes.length;) {
    const size = attributes.readUInt16LE(at)
    if (size < 4 || at + size > attributes.length) break
    if ((attributes.readUInt16LE(at + 2) & NLA_TYPE_MASK) === type)
      found.push(attributes.subarray(at + 4, at + size))
    at += (size + 3) & ~3
  }
  return found
}
