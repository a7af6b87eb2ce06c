import { createHash, randomBytes } from 'node:crypto'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { CoracleError } from '../errors.js'
import { waitForLock } from '../isolation/file-lock.js'
import { Subnet, formatAddress, parseAddress } from './address.js'
import { allocate, defaultGateway, freeSubnet } from './ipam.js'
import { JsonFolder } from './json-folder.js'
import type { DriverName, Endpoint, EndpointRequest, NetworkRecord, SubnetRecord } from './record.js'
import {
  checkAdapter,
  checkDevice,
  checkNetworkName,
  checkSubnets,
  invalid,
  type NetworkRequest,
} from './request.js'

/** The networks that are always there, and what a user may not call a network. */
export const PREDEFINED = ['bridge', 'host', 'none'] as const
export const isPredefined = ({ name }: Pick<NetworkRecord, 'name'>): boolean =>
  (PREDEFINED as readonly string[]).includes(name)

const RESERVED: readonly string[] = [...PREDEFINED, 'default']
const BRIDGE_NAME = 'com.docker.network.bridge.name'

/** Where the run folder is the system's own, the default bridge has a name that people can know. */
const SYSTEM_RUN = '/run/coracle'

/** What the store needs to know of the host. */
export interface StoreInit {
  readonly state: string
  readonly run: string
  /** Where packets go already: subnets avoid it. */
  readonly taken: () => readonly Subnet[]
}

/**
 * The records of networks and of who is on them. Any number of processes may use the same folder: each change is made
 * under one lock, on what is there then, so that no address is given out twice.
 */
export class NetworkStore {
  readonly #init: StoreInit
  readonly #folder: string
  readonly #records: JsonFolder<NetworkRecord>

  constructor(init: StoreInit) {
    this.#init = init
    this.#folder = join(init.state, 'networks')
    this.#records = new JsonFolder(this.#folder)
  }

  /** Held for each change, of records as of what is made of them on the host. */
  lock(): Promise<Disposable> {
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 })
    return waitForLock(join(this.#folder, '.lock'), 'the list of networks')
  }

  /** Makes those of {@link PREDEFINED} that are not there. Under the lock. */
  addPredefined(): void {
    const there = this.list()
    for (const driver of PREDEFINED)
      if (!there.some(({ name }) => name === driver)) this.#add({ name: driver }, driver)
  }

  /** Whether {@link addPredefined} has nothing to do. */
  get complete(): boolean {
    const there = this.list()
    return PREDEFINED.every((each) => there.some(({ name }) => name === each))
  }

  /** By age, the oldest first. */
  list(): NetworkRecord[] {
    return this.#records.list().sort((a, b) => (a.created < b.created ? -1 : 1))
  }

  /** @see JsonFolder.isTorn */
  get isTorn(): boolean {
    return this.#records.isTorn
  }

  /** @see JsonFolder.sweep */
  sweep(): void {
    this.#records.sweep()
  }

  read(id: string): NetworkRecord | undefined {
    return this.#records.read(id)
  }

  /** By name, id, or the start of an id. @throws CoracleError NO_SUCH_NETWORK, INVALID_ARGUMENT */
  find(reference: string): NetworkRecord {
    const all = this.list()
    const exact = all.find(({ id }) => id === reference) ?? all.find(({ name }) => name === reference)
    if (exact) return exact
    const matches = /^[0-9a-f]+$/.test(reference) ? all.filter(({ id }) => id.startsWith(reference)) : []
    if (matches.length > 1)
      throw invalid(`network ${reference} is ambiguous (${matches.length} matches found)`)
    if (matches[0]) return matches[0]
    throw new CoracleError('NO_SUCH_NETWORK', `network ${reference.slice(0, 128)} not found`)
  }

  /** Under the lock. @throws CoracleError INVALID_ARGUMENT, CONFLICT */
  add(request: NetworkRequest): NetworkRecord {
    checkNetworkName(request.name)
    if (RESERVED.includes(request.name))
      throw new CoracleError('FORBIDDEN', `operation is not permitted on predefined ${request.name} network`)
    if (this.list().some(({ name }) => name === request.name))
      throw new CoracleError('CONFLICT', `network with name ${request.name} already exists`)
    const driver = request.driver || 'bridge'
    if (driver !== 'bridge' && driver !== 'macvlan' && driver !== 'sriov')
      throw driver === 'host' || driver === 'none' || driver === 'null'
        ? new CoracleError('FORBIDDEN', `only one instance of "${driver}" network is allowed`)
        : new CoracleError(
            'NO_SUCH_NETWORK',
            `could not find plugin ${driver.slice(0, 64)}: it is bridge, macvlan or sriov`,
          )
    return this.#add(request, driver)
  }

  #add(request: NetworkRequest, driver: DriverName): NetworkRecord {
    const id = randomBytes(32).toString('hex')
    const options = request.options ?? {}
    const plain = driver === 'host' || driver === 'none'
    const ipv6 = !plain && (request.ipv6 ?? false)
    const subnets = plain ? [] : this.#subnets(request, driver, ipv6)
    checkOptions(options, driver)
    const record: NetworkRecord = {
      version: 1,
      id,
      name: request.name,
      created: new Date().toISOString(),
      driver,
      device: plain ? '' : this.#device(driver, id, request),
      internal: request.internal ?? false,
      attachable: request.attachable ?? false,
      ipv4: !plain && (request.ipv4 ?? true),
      ipv6,
      subnets,
      options,
      ipamOptions: request.ipamOptions ?? {},
      labels: request.labels ?? {},
      endpoints: {},
    }
    this.#records.write(id, record)
    return record
  }

  #device(driver: DriverName, id: string, { name, options = {}, internal }: NetworkRequest): string {
    if (driver === 'macvlan' || driver === 'sriov') {
      const { parent } = options
      const what = driver === 'macvlan' ? 'a network device of the host' : 'an adapter with virtual functions'
      if (!parent) throw invalid(`a ${driver} network needs the option parent, ${what} (-o parent=eth0)`)
      if (internal) throw invalid(`a ${driver} network is its parent's own and cannot be internal`)
      return driver === 'macvlan' ? checkDevice(parent, 'parent') : checkAdapter(parent)
    }
    const own = options[BRIDGE_NAME]
    if (own !== undefined) {
      checkDevice(own, BRIDGE_NAME)
      const other = this.list().find(({ device, driver: its }) => its === 'bridge' && device === own)
      if (other) throw new CoracleError('CONFLICT', `network ${other.name} has the bridge ${own} already`)
      return own
    }
    return name === 'bridge' && this.#init.run === SYSTEM_RUN ? 'coracle0' : `cb-${id.slice(0, 12)}`
  }

  #subnets(request: NetworkRequest, driver: DriverName, ipv6: boolean): SubnetRecord[] {
    const asked = checkSubnets(request.subnets ?? [], ipv6)
    const others = this.list().flatMap(({ subnets, name }) =>
      subnets.map(({ subnet }) => ({ subnet: Subnet.parse(subnet)!, name })),
    )
    for (const { parsed } of asked) {
      // That of a macvlan or an adapter is the parent's own.
      const other = driver === 'bridge' ? others.find(({ subnet }) => subnet.overlaps(parsed)) : undefined
      if (other)
        throw new CoracleError(
          'FORBIDDEN',
          `invalid pool request: Pool overlaps with other one on this address space: ${parsed} is network ${other.name}'s`,
        )
    }
    const wanted = [...(request.ipv4 === false ? [] : [4 as const]), ...(ipv6 ? [6 as const] : [])]
    const more: typeof asked = wanted
      .filter((family) => !asked.some(({ parsed }) => parsed.family === family))
      .map((family) => {
        const taken = [...others.map(({ subnet }) => subnet), ...this.#init.taken()]
        const parsed = freeSubnet(family, taken, this.#seed)
        return { parsed, subnet: parsed.toString() }
      })
    return [...asked, ...more].map(({ parsed, ...subnet }) => {
      const range = subnet.range === undefined ? undefined : Subnet.parse(subnet.range)
      return { ...subnet, gateway: subnet.gateway ?? formatAddress(defaultGateway(parsed, range)) }
    })
  }

  /** Differs between the run folders of one machine. */
  get #seed(): Buffer {
    const digest = createHash('sha256').update(this.#init.run).digest()
    // The system's own begins behind the pools' first subnets, which others like too.
    if (this.#init.run === SYSTEM_RUN) digest.writeUInt32BE(64, 0)
    return digest
  }

  /** Under the lock. */
  remove(id: string): void {
    this.#records.remove(id)
  }

  /**
   * The container's place on a network: the one that it has, else a new one. Under the lock.
   * @throws CoracleError NO_SUCH_NETWORK, and those of {@link allocate}
   */
  reserve(id: string, container: string, request: EndpointRequest): Endpoint {
    const record = this.read(id)
    if (!record) throw new CoracleError('NO_SUCH_NETWORK', `network ${id.slice(0, 12)} not found`)
    const there = record.endpoints[container]
    if (there) return there
    const endpoint = allocate(record, request)
    this.#records.write(id, { ...record, endpoints: { ...record.endpoints, [container]: endpoint } })
    return endpoint
  }

  /** Gives a container's place back, on one network or on all. Under the lock. */
  free(container: string, id?: string): void {
    for (const record of this.list()) {
      if (!record.endpoints[container] || (id !== undefined && record.id !== id)) continue
      const { [container]: _, ...endpoints } = record.endpoints
      this.#records.write(record.id, { ...record, endpoints })
    }
  }
}

const FLAGS = ['com.docker.network.bridge.enable_icc', 'com.docker.network.bridge.enable_ip_masquerade']
const MTU = 'com.docker.network.driver.mtu'
/** The address of the host at which ports are published that name none. */
const HOST_BINDING = 'com.docker.network.bridge.host_binding_ipv4'
const KNOWN = [...FLAGS, MTU, BRIDGE_NAME, HOST_BINDING]

function checkOptions(options: Readonly<Record<string, string>>, driver: DriverName): void {
  const { vlan } = options
  if (driver === 'sriov' && vlan !== undefined && !(/^\d{1,4}$/.test(vlan) && isVlan(Number(vlan))))
    throw invalid('invalid value for vlan: it is a number from 1 to 4094')
  for (const name of FLAGS)
    if (options[name] !== undefined && !/^(true|false|1|0)$/.test(options[name]))
      throw invalid(`invalid value for ${name}: it is true or false`)
  const mtu = options[MTU]
  if (mtu !== undefined && !(/^\d{1,5}$/.test(mtu) && Number(mtu) >= 68 && Number(mtu) <= 65_535))
    throw invalid(`invalid value for ${MTU}: it is a number of bytes from 68 to 65535`)
  const binding = options[HOST_BINDING]
  if (binding !== undefined && parseAddress(binding)?.family !== 4)
    throw invalid(`invalid value for ${HOST_BINDING}: it is an IPv4 address`)
  // What Docker's drivers know and ours do not must not be dropped; other names are labels to them.
  const unknown = Object.keys(options).find(
    (name) => name.startsWith('com.docker.network.') && !KNOWN.includes(name),
  )
  if (unknown !== undefined || (options['macvlan_mode'] ?? 'bridge') !== 'bridge')
    throw new CoracleError(
      'NOT_IMPLEMENTED',
      `the option ${unknown?.slice(0, 64) ?? `macvlan_mode=${options['macvlan_mode']!.slice(0, 64)}`} is not built yet`,
    )
}

const isVlan = (vlan: number): boolean => vlan >= 1 && vlan <= 4094

/** A network's options as they count. */
export function optionsOf({ options, internal, ipv6 }: NetworkRecord): {
  readonly mtu: number
  readonly masquerade: boolean
  /** Whether containers on it may reach each other. */
  readonly together: boolean
  readonly hostBinding: string | undefined
  /** What a virtual function's frames are tagged with. 0: nothing. */
  readonly vlan: number
} {
  const flag = (name: string): boolean => !/^(false|0)$/.test(options[name] ?? 'true')
  // RFC 8200: IPv6 needs 1280.
  const mtu = Math.max(Number(options[MTU] ?? 1500), ipv6 ? 1280 : 68)
  return {
    mtu,
    masquerade: !internal && flag(FLAGS[1]!),
    together: flag(FLAGS[0]!),
    hostBinding: options[HOST_BINDING],
    vlan: Number(options['vlan'] ?? 0),
  }
}
