import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { Fd, O_RDONLY, SysError, createNetworkNamespace, createTap, inNetworkNamespace } from '@coracle/sys'
import { CoracleError } from '../errors.js'
import { Subnet, parseAddress, type Address } from './address.js'
import type { AttachedInterface, Attachment, NetworkRecord } from './record.js'
import { Rtnetlink, type Link } from './rtnetlink.js'
import { optionsOf } from './store.js'

/** The links of the host that belong to one run folder: `ip link` shows it as their alias. */
export const aliasOf = (run: string): string => `coracle ${run}`

/** Where packets of this host go by more than the default route, and where its resolvers are. */
export function hostSubnets(): Subnet[] {
  using netlink = new Rtnetlink()
  const found = netlink.routes().map(({ destination }) => destination)
  for (const address of hostResolvers()) {
    const parsed = parseAddress(address)
    if (parsed) found.push(new Subnet(parsed, parsed.family === 4 ? 32 : 128))
  }
  return found
}

/** The resolvers of the host's resolv.conf. */
export function hostResolvers(): string[] {
  return [...hostResolvConf().matchAll(/^nameserver\s+(\S+)/gm)].map((match) => match[1]!)
}

/** The text of the host's resolv.conf; empty where it has none. */
export function hostResolvConf(): string {
  try {
    return readFileSync('/etc/resolv.conf', 'utf8')
  } catch {
    return ''
  }
}

/** Of a network, its gateways by family. */
export function gatewaysOf({ subnets }: NetworkRecord): Address[] {
  const all = subnets.map(({ gateway }) => (gateway === undefined ? undefined : parseAddress(gateway)))
  return ([4, 6] as const).flatMap((family) => all.find((each) => each?.family === family) ?? [])
}

/** The address with the prefix of the network's subnet that it is in. */
export function withPrefix({ subnets }: NetworkRecord, text: string): string {
  const address = parseAddress(text)!
  const home = subnets.map(({ subnet }) => Subnet.parse(subnet)!).find((each) => each.contains(address))
  return `${text}/${home?.prefix ?? (address.family === 4 ? 32 : 128)}`
}

/** Makes and takes away what networks need of the host's kernel: bridges, pairs of links, taps, namespaces. */
export class Wiring {
  readonly #alias: string

  /** @param run the run folder: links carry its name */
  constructor(run: string) {
    this.#alias = aliasOf(run)
  }

  /**
   * Makes what an attachment describes.
   * @param taken the virtual functions that it has on the host: an index of a link each, by the names that they get
   * @throws CoracleError NETWORK_FAILED
   */
  attach(
    attachment: Attachment,
    networks: ReadonlyMap<string, NetworkRecord>,
    taken: ReadonlyMap<string, number>,
  ): void {
    const { namespace, interfaces } = attachment
    try {
      using netlink = new Rtnetlink()
      if (namespace !== undefined) {
        createNetworkNamespace(namespace)
        using fd = Fd.open(namespace, O_RDONLY)
        using inside = new Rtnetlink(fd)
        inside.setLink(inside.link('lo')!.index, { up: true })
      }
      for (const each of interfaces) this.#plug(netlink, attachment, each, networks.get(each.network)!, taken)
      if (namespace !== undefined) this.route(attachment, networks)
    } catch (error) {
      throw failure(error)
    }
  }

  /** Adds one interface to an attachment that runs, as {@link attach} does. @throws CoracleError NETWORK_FAILED */
  plug(
    attachment: Attachment,
    each: AttachedInterface,
    networks: ReadonlyMap<string, NetworkRecord>,
    taken: ReadonlyMap<string, number>,
  ): void {
    try {
      using netlink = new Rtnetlink()
      this.#plug(netlink, attachment, each, networks.get(each.network)!, taken)
    } catch (error) {
      throw failure(error)
    }
  }

  /** Takes an interface away, but for a virtual function, which is given back. Idempotent. */
  unplug({ link, macvlan, name, function: its }: AttachedInterface, namespace: string | undefined): void {
    if (its !== undefined) return
    using netlink = new Rtnetlink()
    if (macvlan !== undefined) netlink.deleteLink(macvlan)
    // With one of a pair the other goes.
    if (link !== '') netlink.deleteLink(link)
    else if (namespace !== undefined) {
      using fd = Fd.open(namespace, O_RDONLY)
      using inside = new Rtnetlink(fd)
      inside.deleteLink(name)
    }
  }

  /** The default routes in an attachment's namespace: by the first of its networks that leads outside. */
  route({ namespace, interfaces }: Attachment, networks: ReadonlyMap<string, NetworkRecord>): void {
    using fd = Fd.open(namespace!, O_RDONLY)
    using inside = new Rtnetlink(fd)
    for (const family of [4, 6] as const)
      for (const { name, network, addresses } of interfaces) {
        const record = networks.get(network)
        const gateway =
          record && !record.internal ? gatewaysOf(record).find((each) => each.family === family) : undefined
        if (!gateway || !addresses.some((text) => Subnet.parse(text)?.family === family)) continue
        inside.addDefaultRoute(inside.link(name)!.index, gateway)
        break
      }
  }

  #plug(
    netlink: Rtnetlink,
    { namespace, ports }: Attachment,
    each: AttachedInterface,
    record: NetworkRecord,
    taken: ReadonlyMap<string, number>,
  ): void {
    const { mtu } = optionsOf(record)
    const { name, mac, link } = each
    using into = namespace === undefined ? undefined : Fd.open(namespace, O_RDONLY)
    if (record.driver === 'macvlan') this.#macvlan(netlink, each, record, into)
    else if (record.driver === 'sriov') {
      // A microVM has the device itself, by whoever launches it.
      if (into) netlink.moveLink(taken.get(name)!, { name, mtu }, into)
    } else {
      const master = this.#bridge(netlink, record).index
      if (into) netlink.createVeth({ name: link, mtu, master }, { name, mac, mtu }, into)
      else createTap(link)
      const index = this.#own(netlink, link, into ? {} : { master, mtu })
      if (ports.length > 0) netlink.setHairpin(index)
      netlink.setLink(index, { up: true })
    }
    if (into) configure(into, each, record)
  }

  /** Marks a link of the host as ours, and keeps the host's own network off it. @returns its index */
  #own(netlink: Rtnetlink, name: string, more: { master?: number; mtu?: number } = {}): number {
    const { index } = netlink.link(name)!
    netlink.setLink(index, { alias: this.#alias, ...more })
    // The host has no address on it: what comes here belongs to others.
    setting(`ipv6/conf/${name}/disable_ipv6`, '1')
    return index
  }

  /** A macvlan, in the container's namespace; for a microVM one on the host, that a tap exchanges all frames with. */
  #macvlan(netlink: Rtnetlink, each: AttachedInterface, record: NetworkRecord, into: Fd | undefined): void {
    const parent = netlink.link(record.device)
    if (!parent)
      throw new CoracleError(
        'NETWORK_FAILED',
        `network ${record.name} needs the device ${record.device}: there is none`,
      )
    const { name, mac, link, macvlan } = each
    const { mtu } = optionsOf(record)
    netlink.createMacvlan({ name: macvlan ?? name, mac, mtu }, parent.index, into)
    if (macvlan === undefined) return
    const inner = this.#own(netlink, macvlan)
    createTap(link)
    const tap = this.#own(netlink, link, { mtu })
    try {
      netlink.redirect(inner, tap)
      netlink.redirect(tap, inner)
    } catch (error) {
      throw new CoracleError(
        'NETWORK_FAILED',
        `a microVM on the macvlan ${record.name} needs sch_ingress, cls_u32 and act_mirred of this host's kernel: ${(error as Error).message}`,
        { cause: error },
      )
    }
    // Of its groups, which the guest alone knows, it would be told nothing.
    netlink.setLink(inner, { up: true, allMulticast: true })
    netlink.setLink(tap, { up: true })
  }

  /** The network's bridge, made where it is not there. */
  #bridge(netlink: Rtnetlink, record: NetworkRecord): Link {
    const { device } = record
    const there = netlink.link(device)
    if (there?.up) return there
    this.#checkFree(netlink, record, there?.index)
    const gateways = gatewaysOf(record)
    if (!there) {
      const v4 = gateways.find(({ family }) => family === 4)
      // Of its own: else it would be that of a port, and change with the ports.
      const mac = v4
        ? {
            mac: `02:42:${v4.value
              .toString(16)
              .padStart(8, '0')
              .replace(/..(?!$)/g, '$&:')}`,
          }
        : {}
      netlink.createBridge({ name: device, mtu: optionsOf(record).mtu, ...mac })
    }
    const { index } = netlink.link(device)!
    if (!there) netlink.setLink(index, { alias: this.#alias })
    setting(`ipv6/conf/${device}/disable_ipv6`, record.ipv6 ? '0' : '1')
    setting(`ipv6/conf/${device}/accept_ra`, '0')
    for (const { gateway } of record.subnets)
      if (gateway !== undefined) netlink.addAddress(index, withPrefix(record, gateway))
    netlink.setLink(index, { up: true })
    forward(record)
    return netlink.link(device)!
  }

  /** A network that was made when the host had other routes may be in the way of one by now. */
  #checkFree(netlink: Rtnetlink, record: NetworkRecord, own: number | undefined): void {
    const routes = netlink.routes().filter(({ link }) => link !== own)
    for (const { subnet } of record.subnets) {
      const parsed = Subnet.parse(subnet)!
      // A route to a larger part of the world, through a router, is only made more exact.
      if (
        routes.some(({ destination }) => destination.overlaps(parsed) && destination.prefix >= parsed.prefix)
      )
        throw new CoracleError(
          'NETWORK_FAILED',
          `network ${record.name} (${subnet}) overlaps with a route that this host has: remove it and make it with another subnet`,
        )
    }
  }

  /** Takes away what carries our mark and is not in `kept`, by name. */
  prune(kept: ReadonlySet<string>): void {
    using netlink = new Rtnetlink()
    for (const { name, alias } of netlink.links())
      if (alias === this.#alias && !kept.has(name)) netlink.deleteLink(name)
  }
}

/** Names, addresses and state of an interface inside its namespace. */
function configure(into: Fd, { name, mac, addresses }: AttachedInterface, record: NetworkRecord): void {
  using inside = new Rtnetlink(into)
  const { index } = inside.link(name)!
  inNetworkNamespace(into, () => {
    setting(`ipv6/conf/${name}/disable_ipv6`, record.ipv6 ? '0' : '1')
    setting(`ipv6/conf/${name}/accept_ra`, '0')
  })
  for (const cidr of addresses) inside.addAddress(index, cidr)
  inside.setLink(index, { up: true })
  // A virtual function has what its adapter tells it, by its driver.
  const has = inside.link(name)!.mac
  if (has !== mac.toLowerCase())
    throw new CoracleError(
      'NETWORK_FAILED',
      `interface ${name} does not take the address ${mac}: it has ${has}`,
    )
}

/** Lets the host pass packets on between its networks, where a network leads outside. */
function forward({ internal, ipv6 }: NetworkRecord): void {
  if (internal) return
  setting('ipv4/ip_forward', '1')
  if (!ipv6 || read('ipv6/conf/all/forwarding') === '1') return
  // A router does not listen to others' advertisements, unless it is told to: the host keeps its own addresses.
  for (const device of readdirSync('/proc/sys/net/ipv6/conf'))
    if (read(`ipv6/conf/${device}/accept_ra`) === '1') setting(`ipv6/conf/${device}/accept_ra`, '2')
  setting('ipv6/conf/all/forwarding', '1')
}

/** Sets a value of /proc/sys/net of the calling thread's namespace. A kernel without IPv6 has none of its. */
export function setting(path: string, value: string): void {
  const file = `/proc/sys/net/${path}`
  try {
    if (read(path) !== value) writeFileSync(file, value)
  } catch (error) {
    if (!(path.startsWith('ipv6/') && (error as NodeJS.ErrnoException).code === 'ENOENT'))
      throw new CoracleError('NETWORK_FAILED', `cannot set ${file} to ${value}: ${(error as Error).message}`)
  }
}

const read = (path: string): string => readFileSync(`/proc/sys/net/${path}`, 'utf8').trim()

function failure(error: unknown): unknown {
  if (!(error instanceof SysError)) return error
  const hint =
    error.code === 'EPERM' || error.code === 'EACCES' ? ': networks need root; use --network none' : ''
  return new CoracleError('NETWORK_FAILED', `the network cannot be set up: ${error.message}${hint}`, {
    cause: error,
  })
}
