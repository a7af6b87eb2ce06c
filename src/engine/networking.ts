import { readFileSync } from 'node:fs'
import { hostname as hostHostname } from 'node:os'
import { join } from 'node:path'
import { CoracleError } from '../errors.js'
import { processToJoin } from '../isolation/process/join.js'
import type { Sandbox, SandboxSpec } from '../isolation/sandbox.js'
import type { AttachPlan, Networks, Plug } from '../network/networks.js'
import type { PortRequest } from '../network/ports.js'
import type { Attachment, EndpointRequest, NetworkRecord } from '../network/record.js'
import { nextSpec } from './going-on.js'
import { refusePaused } from './pauses.js'
import { linkedHosts } from './links.js'
import type { ContainerRecord, CreateRequest } from './record.js'

/** What containers need of networks. Tests pass a fake. */
export type ContainerNetworks = Pick<
  Networks,
  | 'attach'
  | 'attachment'
  | 'attachments'
  | 'connect'
  | 'create'
  | 'detach'
  | 'disconnect'
  | 'find'
  | 'forget'
  | 'forgetOthers'
  | 'launched'
  | 'list'
  | 'remove'
>

/** Where a container is on networks, for those who show it. */
export interface Place {
  /** While it runs and has interfaces. */
  readonly attachment: Attachment | undefined
  readonly endpoints: readonly { readonly network: NetworkRecord }[]
  /** The ports that its image exposes, as `80/tcp`. */
  readonly exposed: readonly string[]
  /** The id of the network `none` or `host`, where it is on that. */
  readonly plain: string | undefined
}

/** The sandbox of a container. @throws CoracleError NOT_RUNNING */
export type RunningSandbox = () => Promise<Pick<Sandbox, 'setInterfaces'>>

/** A running container on a network. */
export interface NetworkUser {
  readonly container: string
  readonly name: string
  readonly endpoint: string
  readonly mac: string
  /** In CIDR. */
  readonly addresses: readonly string[]
}

/* linux/capability.h */
const CAP_NET_ADMIN = 1n << 12n
const CAP_SYS_ADMIN = 1n << 21n

/** Modes that are no networks to be connected to, but for their one place in a container's life. */
const PLAIN = ['none', 'host']
const JOIN = 'container:'

type NetworkPart = Pick<CreateRequest, 'networkMode' | 'endpoints'>

/** How a container's settings of its network become what is made of them at each start. */
export class Networking {
  readonly #networks: ContainerNetworks
  /** What is held of the host's network by the runs that this process starts. */
  readonly #runs = new Map<string, string | undefined>()

  constructor(networks: ContainerNetworks) {
    this.#networks = networks
  }

  /**
   * Checks and settles what a container asks of networks: references become names, and the default is chosen.
   * @param resolve of a reference to a container its id
   * @throws CoracleError INVALID_ARGUMENT, NO_SUCH_NETWORK, NO_SUCH_CONTAINER
   */
  settle(
    request: CreateRequest,
    spec: Pick<SandboxSpec, 'isolation' | 'hypervisor'>,
    resolve: (reference: string) => string,
  ): { request: NetworkPart; warnings: string[] } {
    const asked = request.networkMode ?? 'default'
    const isDefault = asked === '' || asked === 'default'
    const missing = whyNone()
    if (isDefault && missing !== undefined && !request.endpoints) {
      const warnings = publishes(request) ? [`${missing}: published ports are discarded`] : []
      return { request: { networkMode: 'none' }, warnings }
    }
    const mode = isDefault ? 'bridge' : asked
    if (mode.startsWith(JOIN)) {
      refuseInGuest(spec, 'the network of another container')
      if (publishes(request)) throw conflicting('port publishing and the container type network mode')
      if (request.hostname) throw conflicting('hostname and the network mode')
      return { request: { networkMode: JOIN + resolve(mode.slice(JOIN.length)) }, warnings: [] }
    }
    if (/^sriov(=|$)/.test(mode) && !this.#networks.list().some(({ name }) => name === mode))
      throw new CoracleError(
        'INVALID_ARGUMENT',
        'a virtual function alone is a device, not a network: use --device sriov=ADAPTER,ip=ADDRESS/PREFIX, or make a network of them: network create -d sriov -o parent=ADAPTER',
      )
    if (PLAIN.includes(mode)) {
      if (mode === 'host') refuseInGuest(spec, "the host's network")
      if (Object.keys(request.endpoints ?? {}).some((name) => name !== mode))
        throw new CoracleError(
          'INVALID_ARGUMENT',
          `container cannot be connected to network endpoints: ${mode} is alone`,
        )
      const warnings = publishes(request)
        ? [`published ports are discarded when using ${mode} network mode`]
        : []
      return { request: { networkMode: mode }, warnings }
    }
    if (missing !== undefined) throw new CoracleError('INVALID_ARGUMENT', `${missing}: use --network none`)
    const endpoints: Record<string, EndpointRequest> = {}
    // Where networks are named and no mode, they are all that it is on.
    if (!isDefault || Object.keys(request.endpoints ?? {}).length === 0)
      endpoints[this.#networks.find(mode).name] = {}
    const given = Object.entries(request.endpoints ?? {}).sort(([a], [b]) => (a < b ? -1 : 1))
    for (const [reference, endpoint] of given)
      endpoints[reference === 'default' ? 'bridge' : this.#networks.find(reference).name] = endpoint
    const on = Object.keys(endpoints).map((name) => this.#networks.find(name))
    on.forEach((network) => refuseFunctions(network, spec, request.from))
    const isReached = on.some(({ driver }) => driver === 'bridge')
    const warnings =
      publishes(request) && !isReached
        ? ['published ports are discarded: they are those of bridge networks']
        : []
    return { request: { networkMode: this.#networks.find(mode).name, endpoints }, warnings }
  }

  /** @see RunnerHost.prepare */
  async prepare(
    record: ContainerRecord,
    image: readonly string[],
    read: (id: string) => ContainerRecord | undefined,
  ): Promise<SandboxSpec> {
    const { links = [], endpoints = {} } = record.request
    const own = this.#networks.list().filter(({ name }) => Object.hasOwn(endpoints, name))
    const linked = linkedHosts(links, read, (id) => {
      const there = this.#networks.attachment(id)?.interfaces ?? []
      const shared = there.find(({ network }) => own.some((each) => each.id === network))
      return shared?.addresses.map((each) => each.split('/')[0]!).find((each) => !each.includes(':'))
    })
    const plan = planOf(record, image)
    // A container of before there were networks has loopback alone.
    const spec = nextSpec(record)
    if (record.request.networkMode === undefined) return spec
    const other = ownerOf(record, read)
    // One that is on no networks has a namespace that nothing but its processes tells of, or the host's.
    const joined = other && !isOnNetworks(other.request) ? planOf(other, []) : undefined
    const {
      run,
      network,
      devices = [],
    } = await this.#networks.attach(
      joined ?? {
        ...plan,
        ...(other && { mode: JOIN + other.id }),
        extraHosts: [...plan.extraHosts, ...linked],
      },
    )
    this.#runs.set(record.id, run)
    const joins =
      joined?.mode === 'none' ? { joins: { network: processToJoin(other!.spec, 'the network') } } : undefined
    const all = [...(spec.devices ?? []), ...devices]
    return { ...spec, ...(network && { network }), ...(all.length > 0 && { devices: all }), ...joins }
  }

  place({ id, request }: ContainerRecord, exposed: readonly string[]): Place {
    const all = this.#networks.list()
    const named = Object.keys(request.endpoints ?? {})
    return {
      attachment: isOnNetworks(request) ? this.#networks.attachment(id) : undefined,
      endpoints: all.filter(({ name }) => named.includes(name)).map((network) => ({ network })),
      exposed,
      plain: all.find(
        ({ name, driver }) => name === driver && name === request.networkMode && PLAIN.includes(name),
      )?.id,
    }
  }

  /** Who is on a network now. @param nameOf a container's name, undefined where it is gone */
  users(network: string, nameOf: (container: string) => string | undefined): NetworkUser[] {
    return this.#networks.attachments().flatMap(({ container, interfaces }) => {
      const each = interfaces.find((one) => one.network === network)
      const name = nameOf(container)
      if (!each || name === undefined) return []
      const { endpoint, mac, addresses } = each
      return [{ container, name, endpoint, mac, addresses }]
    })
  }

  /**
   * Puts a container on a further network: at once where it runs, else with its next start.
   * @param running its sandbox, where it has one
   * @returns the record as it is then
   * @throws CoracleError NO_SUCH_NETWORK, FORBIDDEN, CONFLICT, and those of an attachment
   */
  async connect(
    record: ContainerRecord,
    reference: string,
    endpoint: EndpointRequest,
    running: RunningSandbox,
  ): Promise<ContainerRecord> {
    const network = this.#networks.find(reference)
    const { request, name } = record
    if (PLAIN.includes(network.name) || !isOnNetworks(request))
      throw new CoracleError(
        'FORBIDDEN',
        `container ${name} cannot be connected to network ${network.name}: one of ${request.networkMode ?? 'none'} and ${network.name} is alone`,
      )
    if (request.endpoints?.[network.name])
      throw new CoracleError(
        'FORBIDDEN',
        `endpoint with name ${name} already exists in network ${network.name}`,
      )
    refuseFunctions(network, record.spec, nextSpec(record).from)
    if (this.#networks.attachment(record.id)) {
      refuseStill(record)
      await this.#networks.connect(planOf(record, []), network.name, endpoint, plugOf(running))
    }
    return {
      ...record,
      request: { ...request, endpoints: { ...request.endpoints, [network.name]: endpoint } },
    }
  }

  /** Takes it off a network. @throws CoracleError NO_SUCH_NETWORK, FORBIDDEN, CONFLICT */
  async disconnect(
    record: ContainerRecord,
    reference: string,
    running: RunningSandbox,
  ): Promise<ContainerRecord> {
    const network = this.#networks.find(reference)
    const { request, name, id } = record
    const { [network.name]: there, ...endpoints } = request.endpoints ?? {}
    if (!there)
      throw new CoracleError('FORBIDDEN', `container ${name} is not connected to network ${network.name}`)
    if (this.#networks.attachment(id)) refuseStill(record)
    await this.#networks.disconnect(id, network.id, plugOf(running))
    return { ...record, request: { ...request, endpoints } }
  }

  async launched({ id }: ContainerRecord, pid: number): Promise<void> {
    await this.#networks.launched(id, this.#runs.get(id), pid)
  }

  async release({ id, request }: ContainerRecord): Promise<void> {
    this.#runs.delete(id)
    if (isOnNetworks(request)) await this.#networks.detach(id)
  }

  async forget({ id, request }: ContainerRecord): Promise<void> {
    if (isOnNetworks(request)) await this.#networks.forget(id)
  }
}

/**
 * The container whose network one joins, maybe by others that join it; undefined where it joins none.
 * @throws CoracleError CONFLICT where it is gone
 */
function ownerOf(
  { request: { networkMode = '' } }: ContainerRecord,
  read: (id: string) => ContainerRecord | undefined,
): ContainerRecord | undefined {
  if (!networkMode.startsWith(JOIN)) return undefined
  const id = networkMode.slice(JOIN.length)
  const other = read(id)
  if (other) return ownerOf(other, read) ?? other
  throw new CoracleError('CONFLICT', `cannot join the network of container ${id.slice(0, 12)}: it is gone`)
}

/** Whether a container has interfaces, and with them something of the host's. */
export const isOnNetworks = ({ networkMode }: NetworkPart): boolean =>
  networkMode !== undefined && !PLAIN.includes(networkMode) && !networkMode.startsWith(JOIN)

/** The host name of a container whose user named none. */
export const defaultHostname = (
  id: string,
  { networkMode, hostNamespaces }: Pick<CreateRequest, 'networkMode' | 'hostNamespaces'>,
): string =>
  networkMode === 'host' || hostNamespaces?.includes('uts') ? hostHostname().slice(0, 64) : id.slice(0, 12)

/** @param image the ports that the image exposes */
export function planOf({ id, name, request, spec }: ContainerRecord, image: readonly string[]): AttachPlan {
  return {
    container: id,
    name,
    isolation: spec.isolation,
    hostname: spec.hostname,
    domainname: request.domainname ?? '',
    control: join(spec.runDirectory, 'control.sock'),
    mode: request.networkMode ?? 'none',
    networks: Object.entries(request.endpoints ?? {}),
    ports: portsOf(request, image),
    resolvers: request.dns ?? [],
    search: request.dnsSearch?.length ? request.dnsSearch : undefined,
    resolverOptions: request.dnsOptions?.length ? request.dnsOptions : undefined,
    extraHosts: request.extraHosts ?? [],
  }
}

/** The ports to publish: those asked for, and with `publishAll` those that are exposed and not among them. */
function portsOf(
  { ports = [], publishAll, exposedPorts = [] }: CreateRequest,
  image: readonly string[],
): PortRequest[] {
  if (!publishAll) return [...ports]
  const more = [...new Set([...exposedPorts, ...image])].flatMap((text) => {
    const match = /^(\d{1,5})(?:\/(tcp|udp))?$/.exec(text)
    return match ? [{ protocol: (match[2] ?? 'tcp') as 'tcp' | 'udp', containerPort: Number(match[1]) }] : []
  })
  return [
    ...ports,
    ...more.filter(
      (each) =>
        !ports.some(
          ({ protocol, containerPort }) => protocol === each.protocol && containerPort === each.containerPort,
        ),
    ),
  ]
}

const publishes = ({ ports, publishAll }: CreateRequest): boolean =>
  (ports?.length ?? 0) > 0 || publishAll === true

/** Why a container can have no network interface here; undefined where it can. */
function whyNone(): string | undefined {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'latin1'))?.[1] ?? '0'
  const needed = CAP_NET_ADMIN | CAP_SYS_ADMIN
  return (BigInt(`0x${effective}`) & needed) === needed
    ? undefined
    : 'networks need root (CAP_NET_ADMIN and CAP_SYS_ADMIN)'
}

function refuseInGuest({ isolation }: Pick<SandboxSpec, 'isolation'>, what: string): void {
  if (isolation === 'microvm')
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `a microVM has a kernel of its own and cannot share ${what}: use --isolation process`,
    )
}

/** @throws CoracleError INVALID_ARGUMENT where the network is of virtual functions, which not every guest can have */
function refuseFunctions(
  { driver, name }: NetworkRecord,
  { isolation, hypervisor }: Pick<SandboxSpec, 'isolation' | 'hypervisor'>,
  from: string | undefined,
): void {
  if (driver !== 'sriov' || isolation === 'process') return
  const refuse = (why: string): never => {
    throw new CoracleError('INVALID_ARGUMENT', `network ${name} gives out virtual functions, ${why}`)
  }
  if (hypervisor === 'qemu')
    refuse('which a microVM has with --hypervisor kvm alone: use that, or --isolation process')
  if (from !== undefined)
    refuse('which a container that goes on from a snapshot has not: use another network')
}

/** A guest that stands still lets go of nothing, and finds nothing. */
function refuseStill(record: ContainerRecord): void {
  if (record.spec.isolation === 'microvm') refusePaused(record, 'its networks are changed')
}

const plugOf =
  (running: RunningSandbox): Plug =>
  async (interfaces) =>
    (await running()).setInterfaces(interfaces)

const conflicting = (what: string): CoracleError =>
  new CoracleError('INVALID_ARGUMENT', `conflicting options: ${what}`)
