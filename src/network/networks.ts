import { createHash, randomBytes } from 'node:crypto'
import { existsSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { removeNetworkNamespace } from '@coracle/sys'
import { CoracleError } from '../errors.js'
import { identify, isAlive } from '../isolation/liveness.js'
import type {
  IsolationName,
  SandboxDevice,
  SandboxFile,
  SandboxInterface,
  SandboxNetwork,
} from '../isolation/sandbox.js'
import { formatAddress } from './address.js'
import { hostFiles, nameFiles } from './files.js'
import { Functions, isFunction, refuseLive, type FunctionHost } from './functions.js'
import { Firewall, isReachedFromLoopback } from './firewall.js'
import { JsonFolder } from './json-folder.js'
import { askKeeper, type Looked } from './keeper/client.js'
import { choosePorts, type PortRequest } from './ports.js'
import type { AttachedInterface, Attachment, EndpointRequest, NetworkRecord } from './record.js'
import type { NetworkRequest } from './request.js'
import { NetworkStore, isPredefined, optionsOf } from './store.js'
import { Wiring, gatewaysOf, hostSubnets, setting, withPrefix } from './wiring.js'

/** Where a host's networks are kept. */
export interface NetworksInit {
  /** Folder of what lasts. */
  readonly state: string
  /** Folder of what ends with a boot. */
  readonly run: string
  /** Tells the keeper that something changed; the default starts one where one is needed. */
  readonly keeper?: (needed: boolean) => Promise<Looked | undefined>
  /** @default those of the host's adapters */
  readonly functions?: FunctionHost
}

/** What a container needs of networks for one run. */
export interface AttachPlan {
  readonly container: string
  readonly name: string
  readonly isolation: IsolationName
  readonly hostname: string
  readonly domainname: string
  /** The control socket of the monitor to come. */
  readonly control: string
  /** `none`, `host`, `container:ID`, or anything else: then it is on `networks`. */
  readonly mode: string
  /** By name or id, in the order of its interfaces. */
  readonly networks: readonly (readonly [reference: string, request: EndpointRequest])[]
  readonly ports: readonly PortRequest[]
  readonly resolvers: readonly string[]
  readonly search: readonly string[] | undefined
  readonly resolverOptions: readonly string[] | undefined
  readonly extraHosts: readonly string[]
}

/** What a sandbox is launched with. `run` is undefined where nothing of the host's is held. */
export interface Attached {
  readonly run: string | undefined
  readonly network: SandboxNetwork | undefined
  /** Those of a microVM's interfaces that are virtual functions. */
  readonly devices?: readonly SandboxDevice[]
}

/** Gives a running microVM its interfaces. */
export type Plug = (interfaces: readonly SandboxInterface[]) => Promise<void>

/** The namespace of who asks: what the host has, for `host`. */
const HOST_NAMESPACE = '/proc/self/ns/net'
/** Has the host's kernel carry the frames of a microVM. */
const VHOST_NET = '/dev/vhost-net'

/**
 * Networks, and which containers are on them. Any number of these, in one process or several, may stand on the same
 * folders: what is on disk counts, and every change is made under one lock. What a container has of the host's network
 * is written down before it is made; whatever is written of one that lives no more is taken away by {@link sweep}.
 */
export class Networks {
  readonly #init: NetworksInit
  readonly #store: NetworkStore
  readonly #attachments: JsonFolder<Attachment>
  readonly #wiring: Wiring
  readonly #firewall: Firewall
  readonly #functions: Functions

  /** Looks at nothing yet: for who must not wait for the lock. */
  constructor(init: NetworksInit) {
    this.#init = init
    const { state, run, functions } = init
    this.#functions = new Functions(functions)
    this.#store = new NetworkStore({ state, run, taken: hostSubnets })
    this.#attachments = new JsonFolder(join(run, 'net', 'attachments'))
    this.#wiring = new Wiring(run)
    const tag = createHash('sha256').update(run).digest('hex').slice(0, 8)
    const table = run === '/run/coracle' ? 'coracle' : `coracle_${tag}`
    this.#firewall = new Firewall(table, join(run, 'net', 'rules'))
  }

  /** Makes the predefined networks where they are missing, and sweeps. */
  static async open(init: NetworksInit): Promise<Networks> {
    const networks = new this(init)
    if (!networks.#store.complete) {
      using _lock = await networks.#store.lock()
      networks.#store.addPredefined()
    }
    await networks.sweep()
    return networks
  }

  list(): NetworkRecord[] {
    return this.#store.list()
  }

  /** By name, id, or the start of an id. @throws CoracleError NO_SUCH_NETWORK */
  find(reference: string): NetworkRecord {
    return this.#store.find(reference)
  }

  /** What runs now. */
  attachments(): Attachment[] {
    return this.#attachments.list()
  }

  /** What a container has while it runs. */
  attachment(container: string): Attachment | undefined {
    return this.#attachments.read(container)
  }

  /**
   * @throws CoracleError INVALID_ARGUMENT, CONFLICT, FORBIDDEN, and with driver sriov NO_SUCH_DEVICE, DEVICE_UNUSABLE
   * for an adapter that has no virtual functions to give
   */
  async create(request: NetworkRequest): Promise<NetworkRecord> {
    const { driver, options: { parent } = {} } = request
    if (driver === 'sriov' && parent) this.#functions.check(parent)
    using _lock = await this.#store.lock()
    return this.#store.add(request)
  }

  /** @throws CoracleError NO_SUCH_NETWORK, FORBIDDEN where it is predefined or in use */
  async remove(reference: string): Promise<NetworkRecord> {
    using _lock = await this.#store.lock()
    const record = this.#store.find(reference)
    const { id, name } = record
    if (isPredefined(record))
      throw new CoracleError('FORBIDDEN', `${name} is a pre-defined network and cannot be removed`)
    const user = this.attachments().find(({ interfaces }) => interfaces.some(({ network }) => network === id))
    if (user)
      throw new CoracleError(
        'FORBIDDEN',
        `error while removing network: network ${name} id ${id} has active endpoints (container ${user.container.slice(0, 12)})`,
      )
    this.#store.remove(id)
    return record
  }

  /**
   * Makes what a run of a container needs of the host's network, before its sandbox is launched. The owner is this
   * process until {@link launched}.
   * @throws CoracleError NO_SUCH_NETWORK, INVALID_ARGUMENT, PORT_IN_USE, ADDRESS_IN_USE, CONFLICT, NETWORK_FAILED, and
   *   those of {@link Functions.take}
   */
  async attach(plan: AttachPlan): Promise<Attached> {
    const { mode, container, isolation } = plan
    if (mode === 'none') return { run: undefined, network: { interfaces: [], files: this.#files(plan, []) } }
    if (mode === 'host')
      return {
        run: undefined,
        network: { interfaces: [], namespace: HOST_NAMESPACE, files: hostFiles(plan.hostname) },
      }
    if (mode.startsWith('container:')) return this.#join(mode.slice('container:'.length))
    using _lock = await this.#store.lock()
    const earlier = this.attachment(container)
    if (earlier) await this.#release(earlier)
    const run = randomBytes(8).toString('hex')
    const names = [plan.name, container.slice(0, 12)]
    const interfaces = plan.networks.map(([reference, request], index) =>
      this.#interface(plan, names, reference, request, index),
    )
    // One that was killed has its function until somebody looks.
    if (interfaces.some(isFunction)) await this.#releaseOver()
    const taken = this.attachments().flatMap(({ ports }) => ports)
    const first = interfaces[0]
    const known = this.#networks()
    const hostAddress = interfaces
      .map(({ network }) => optionsOf(known.get(network)!).hostBinding)
      .find(Boolean)
    const wanted = plan.ports.map((port) => (hostAddress ? { hostAddress, ...port } : port))
    const attachment: Attachment = {
      version: 1,
      container,
      run,
      owner: identify('self')!,
      launched: false,
      control: plan.control,
      ...(isolation === 'process' ? { namespace: this.#namespace(container) } : {}),
      interfaces,
      ports: await choosePorts(wanted, taken, `${plan.name} (${first?.endpoint ?? ''})`),
      resolvers: plan.resolvers,
      files: this.#files(plan, interfaces),
    }
    this.#attachments.write(container, attachment)
    try {
      const networks = this.#networks()
      const taken = await this.#functions.take(attachment, interfaces, networks)
      this.#wiring.attach(attachment, networks, taken)
      this.#reachFromLoopback(attachment, networks)
      await this.#firewall.apply(networks, this.attachments())
      await this.#askKeeper(container)
      return { run, ...this.#described(attachment, networks) }
    } catch (error) {
      await this.#release(attachment)
      throw error
    }
  }

  /** Hands what a run has over to the sandbox's monitor: it goes with that. @param pid the monitor's */
  async launched(container: string, run: string | undefined, pid: number): Promise<void> {
    if (run === undefined) return
    using _lock = await this.#store.lock()
    const attachment = this.attachment(container)
    const owner = identify(pid)
    if (attachment?.run !== run || !owner) return
    this.#attachments.write(container, { ...attachment, owner, launched: true })
    await this.#askKeeper()
  }

  /**
   * Takes away what a container's run had, once it is over, or waits until another has done so. Idempotent.
   */
  async detach(container: string): Promise<void> {
    using _lock = await this.#store.lock()
    const attachment = this.attachment(container)
    if (attachment) await this.#release(attachment)
    else await this.#askKeeper()
  }

  /** Gives up the places of containers that are no more: who removed them may have died over it. */
  async forgetOthers(known: ReadonlySet<string>): Promise<void> {
    const lost = this.list().flatMap(({ endpoints }) => Object.keys(endpoints).filter((id) => !known.has(id)))
    if (lost.length === 0) return
    using _lock = await this.#store.lock()
    for (const id of lost) this.#store.free(id)
  }

  /** Gives up a container's places on networks: on all, or on one. For one that is removed. */
  async forget(container: string, network?: string): Promise<void> {
    if (!this.list().some(({ endpoints }) => endpoints[container])) return
    using _lock = await this.#store.lock()
    this.#store.free(container, network)
  }

  /**
   * Adds an interface to a container that runs.
   * @param plug gives a microVM the interfaces that it is to have; a process container has them by its namespace
   * @throws CoracleError NO_SUCH_NETWORK, FORBIDDEN where it is on that network, ADDRESS_IN_USE, INVALID_ARGUMENT, what
   *   `plug` throws: nothing is changed then
   */
  async connect(plan: AttachPlan, reference: string, request: EndpointRequest, plug: Plug): Promise<void> {
    using _lock = await this.#store.lock()
    const attachment = this.attachment(plan.container)
    if (!attachment) return
    refuseLive(attachment, this.#store.find(reference), plan.name)
    const names = [plan.name, plan.container.slice(0, 12)]
    const used = new Set(attachment.interfaces.map(({ name }) => name))
    let index = 0
    while (used.has(`eth${index}`)) index++
    const each = this.#interface(plan, names, reference, request, index)
    const changed = { ...attachment, interfaces: [...attachment.interfaces, each] }
    this.#attachments.write(plan.container, changed)
    try {
      const networks = this.#networks()
      this.#wiring.plug(attachment, each, networks, await this.#functions.take(attachment, [each], networks))
      await this.#changed(changed, networks, plug)
    } catch (error) {
      this.#attachments.write(plan.container, attachment)
      await this.#unplug(each, attachment)
      this.#store.free(plan.container, each.network)
      throw error
    }
  }

  /** Takes an interface of a running container away, and its place on the network. @param plug as of {@link connect} */
  async disconnect(container: string, network: string, plug: Plug): Promise<void> {
    using _lock = await this.#store.lock()
    const attachment = this.attachment(container)
    const gone = attachment?.interfaces.find((each) => each.network === network)
    if (attachment && gone) {
      const changed = { ...attachment, interfaces: attachment.interfaces.filter((each) => each !== gone) }
      const networks = this.#networks()
      refuseLive(attachment, networks.get(network)!, container.slice(0, 12))
      if (!attachment.namespace) await this.#plug(changed, networks, plug)
      await this.#unplug(gone, attachment)
      this.#attachments.write(container, changed)
      await this.#changed(changed, networks)
    }
    this.#store.free(container, network)
  }

  /**
   * Takes away what processes that died left of runs that are over, and makes sure that a keeper runs where one is
   * needed. What lives is untouched.
   */
  async sweep(): Promise<void> {
    const isTorn = this.#attachments.isTorn || this.#store.isTorn
    if (this.attachments().length === 0 && !this.#leftRules && !isTorn) return
    using _lock = await this.#store.lock()
    this.#attachments.sweep()
    this.#store.sweep()
    await this.#releaseOver()
    await this.#settle()
  }

  /** Under the lock. */
  async #releaseOver(): Promise<void> {
    for (const each of this.attachments()) if (!isAlive(each.owner)) await this.#release(each)
  }

  get #leftRules(): boolean {
    return existsSync(join(this.#init.run, 'net', 'rules'))
  }

  /** Under the lock. The order matters: what is not written down any more is found by nobody but {@link #settle}. */
  async #release(attachment: Attachment): Promise<void> {
    for (const each of attachment.interfaces) if (each.link !== '') this.#wiring.unplug(each, undefined)
    if (attachment.interfaces.some(isFunction)) await this.#functions.giveBack(attachment)
    if (attachment.namespace !== undefined) removeNetworkNamespace(attachment.namespace)
    this.#attachments.remove(attachment.container)
    await this.#settle()
  }

  async #unplug(each: AttachedInterface, attachment: Attachment): Promise<void> {
    this.#wiring.unplug(each, attachment.namespace)
    if (each.function !== undefined) await this.#functions.giveBack(attachment, each.function)
  }

  /** Makes the host's side fit what is attached: rules, bridges, the keeper. Under the lock. */
  async #settle(): Promise<void> {
    const attachments = this.attachments()
    const networks = this.#networks()
    await this.#firewall.apply(networks, attachments)
    const kept = attachments.flatMap(({ interfaces }) =>
      interfaces.flatMap(({ link, macvlan = '', network }) => [
        link,
        macvlan,
        networks.get(network)?.device ?? '',
      ]),
    )
    this.#wiring.prune(new Set(kept))
    await this.#askKeeper()
  }

  async #changed(
    attachment: Attachment,
    networks: ReadonlyMap<string, NetworkRecord>,
    plug?: Plug,
  ): Promise<void> {
    if (attachment.namespace !== undefined) this.#wiring.route(attachment, networks)
    else if (plug) await this.#plug(attachment, networks, plug)
    this.#reachFromLoopback(attachment, networks)
    await this.#settle()
  }

  /** @param container whose failure is one of the caller's @throws CoracleError PORT_IN_USE */
  async #askKeeper(container?: string): Promise<void> {
    const needed = this.#attachments.ids().length > 0
    const { keeper, run, state } = this.#init
    const looked = await (keeper ? keeper(needed) : askKeeper(run, state, needed))
    const error = container === undefined ? undefined : looked?.errors[container]
    if (error !== undefined) throw new CoracleError('PORT_IN_USE', error)
  }

  /** What the host sends from 127.0.0.1 to a published port leaves by the bridge: the kernel must be told to let it. */
  #reachFromLoopback({ ports, interfaces }: Attachment, networks: ReadonlyMap<string, NetworkRecord>): void {
    if (!ports.some(isReachedFromLoopback)) return
    for (const { network } of interfaces) {
      const { driver, device } = networks.get(network)!
      if (driver === 'bridge') setting(`ipv4/conf/${device}/route_localnet`, '1')
    }
  }

  #interface(
    { container, isolation }: AttachPlan,
    names: readonly string[],
    reference: string,
    request: EndpointRequest,
    index: number,
  ): AttachedInterface {
    const record = this.#store.find(reference)
    const { driver, id } = record
    if (driver === 'host' || driver === 'none')
      throw new CoracleError(
        'INVALID_ARGUMENT',
        `container cannot be connected to network ${driver} beside others`,
      )
    const endpoint = this.#store.reserve(id, container, request)
    const link = (kind: string): string => `${kind}${endpoint.id.slice(0, 12)}`
    return {
      network: id,
      endpoint: endpoint.id,
      ...(driver === 'sriov'
        ? { link: '', function: index }
        : isolation === 'microvm'
          ? { link: link('ct'), ...(driver === 'macvlan' ? { macvlan: link('cm') } : {}) }
          : { link: driver === 'macvlan' ? '' : link('cv') }),
      name: `eth${index}`,
      mac: endpoint.mac,
      addresses: endpoint.addresses.map((text) => withPrefix(record, text)),
      names: [...new Set([...names, ...(request.aliases ?? [])])],
    }
  }

  /** The network of another container, joined. */
  #join(container: string): Attached {
    const other = this.attachment(container)
    if (other?.namespace === undefined)
      throw new CoracleError(
        'CONFLICT',
        `cannot join the network of container ${container.slice(0, 12)}: it does not run, is a microVM, or has no network of its own`,
      )
    return { run: undefined, network: { interfaces: [], namespace: other.namespace, files: other.files } }
  }

  #plug(attachment: Attachment, networks: ReadonlyMap<string, NetworkRecord>, plug: Plug): Promise<void> {
    return plug(this.#described(attachment, networks).network.interfaces)
  }

  #described(
    { namespace, interfaces, files }: Attachment,
    networks: ReadonlyMap<string, NetworkRecord>,
  ): { network: SandboxNetwork; devices: SandboxDevice[] } {
    const described: SandboxInterface[] = []
    const devices: SandboxDevice[] = []
    const carrier = existsSync(VHOST_NET) ? { vhost: VHOST_NET } : {}
    const routed = new Set<number>()
    for (const { name, mac, addresses, link, network, function: order } of interfaces) {
      const record = networks.get(network)!
      const gateways = record.internal ? [] : gatewaysOf(record).filter(({ family }) => !routed.has(family))
      gateways.forEach(({ family }) => routed.add(family))
      const { mtu, vlan } = optionsOf(record)
      const one = { name, mac, addresses, gateways: gateways.map(formatAddress), mtu }
      if (namespace !== undefined) described.push(one)
      else if (order === undefined) described.push({ ...one, tap: link, ...carrier })
      else devices.push({ kind: 'sriov', adapter: record.device, vlan, ...one })
    }
    return {
      network: { interfaces: described, files, ...(namespace === undefined ? {} : { namespace }) },
      devices,
    }
  }

  #files(plan: AttachPlan, interfaces: readonly AttachedInterface[]): SandboxFile[] {
    const networks = this.#networks()
    const gateways = interfaces.map(({ network }) => {
      const record = networks.get(network)!
      return record.driver === 'bridge' ? gatewaysOf(record).map(formatAddress) : []
    })
    const { hostname, domainname, resolvers, search, resolverOptions, extraHosts } = plan
    return nameFiles({
      hostname,
      domainname,
      addresses: interfaces.flatMap(({ addresses }) => addresses.map((cidr) => cidr.split('/')[0]!)),
      // One is enough, since it answers for all of the container's networks.
      servers: gateways.find((each) => each.length > 0)?.slice(0, 1) ?? [],
      resolvers,
      search,
      options: resolverOptions,
      extraHosts,
      gateway: gateways.flat()[0],
    })
  }

  #networks(): Map<string, NetworkRecord> {
    return new Map(this.list().map((record) => [record.id, record]))
  }

  #namespace(container: string): string {
    const folder = join(this.#init.run, 'net', 'ns')
    mkdirSync(folder, { recursive: true, mode: 0o700 })
    return join(folder, container.slice(0, 16))
  }
}
