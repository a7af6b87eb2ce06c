import type { ProcessIdentity } from '../isolation/liveness.js'
import type { SandboxFile } from '../isolation/sandbox.js'

/** What carries a network. */
export type DriverName = 'bridge' | 'macvlan' | 'sriov' | 'host' | 'none'

/** A subnet of a network, as Docker's IPAM has it. */
export interface SubnetRecord {
  /** In CIDR. */
  readonly subnet: string
  /** The address of the host in it, or with macvlan and sriov of the router; undefined where there is none. */
  readonly gateway?: string
  /** Addresses are given out of this part of it alone, in CIDR. */
  readonly range?: string
  /** Addresses that are never given out, by the names of whose they are. */
  readonly reserved?: Readonly<Record<string, string>>
}

/** A container's place on a network: kept from run to run, so that its addresses are too. */
export interface Endpoint {
  readonly id: string
  readonly mac: string
  /** Without their prefixes; at most one of each family. */
  readonly addresses: readonly string[]
}

/** All that is kept of a network: one JSON file, replaced as a whole. */
export interface NetworkRecord {
  readonly version: 1
  /** 64 hexadecimal digits. */
  readonly id: string
  readonly name: string
  /** RFC 3339. */
  readonly created: string
  readonly driver: DriverName
  /** The bridge, macvlan's parent, or sriov's adapter; empty for the other drivers. */
  readonly device: string
  /** Nothing outside is reached from it, nor does anything outside reach it. */
  readonly internal: boolean
  readonly attachable: boolean
  readonly ipv4: boolean
  readonly ipv6: boolean
  readonly subnets: readonly SubnetRecord[]
  readonly options: Readonly<Record<string, string>>
  readonly ipamOptions: Readonly<Record<string, string>>
  readonly labels: Readonly<Record<string, string>>
  /** By the ids of their containers. */
  readonly endpoints: Readonly<Record<string, Endpoint>>
}

/** What a container asks of one network. */
export interface EndpointRequest {
  /** Names by which the others on the network find it, beside its own. */
  readonly aliases?: readonly string[]
  readonly ipv4?: string
  readonly ipv6?: string
  readonly mac?: string
  readonly links?: readonly string[]
  readonly driverOptions?: Readonly<Record<string, string>>
}

export type Protocol = 'tcp' | 'udp'

/** A port of a container that is reached at an address of the host. */
export interface PublishedPort {
  readonly protocol: Protocol
  readonly containerPort: number
  /** `0.0.0.0` and `::` stand for all of the host's. */
  readonly hostAddress: string
  readonly hostPort: number
}

/** One interface of a running container. */
export interface AttachedInterface {
  /** The network's id. */
  readonly network: string
  readonly endpoint: string
  /** The link on the host: of a pair of links, or a tap. Empty where it is in the container alone. */
  readonly link: string
  /** The macvlan that a microVM's tap is joined with. */
  readonly macvlan?: string
  /** Its number among the container's virtual functions, where it is one. */
  readonly function?: number
  /** As the container sees it. */
  readonly name: string
  readonly mac: string
  /** In CIDR. */
  readonly addresses: readonly string[]
  readonly names: readonly string[]
}

/**
 * What a running container has of the host's network: written before any of it is made, so that whoever finds it can
 * take all of it away. In the run folder, since none of it outlives a boot.
 */
export interface Attachment {
  readonly version: 1
  readonly container: string
  /** Tells one run of a container from the next. */
  readonly run: string
  /** Who prepares the run, and, once it is launched, who owns it: with the last of them it ends. */
  readonly owner: ProcessIdentity
  readonly launched: boolean
  /** The monitor's control socket, whose connections end with it. */
  readonly control: string
  /** Path of the network namespace; only with process isolation. */
  readonly namespace?: string
  readonly interfaces: readonly AttachedInterface[]
  readonly ports: readonly PublishedPort[]
  /** Where its questions for other names go; empty: to the host's resolvers. */
  readonly resolvers: readonly string[]
  /** Its files of names, for who joins its network. */
  readonly files: readonly SandboxFile[]
}
