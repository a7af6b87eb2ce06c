import type { Sandbox } from '../isolation/sandbox.js'
import type { EndpointRequest, NetworkRecord } from '../network/record.js'
import type { NetworkRequest } from '../network/request.js'
import { isPredefined } from '../network/store.js'
import type { EngineEvent, Events } from './events.js'
import type { ContainerNetworks, Networking, NetworkUser } from './networking.js'
import type { ContainerRecord } from './record.js'
import type { ContainerStore } from './store.js'

/** What an engine's networks stand on. */
export interface NetworksInit {
  readonly networks: ContainerNetworks
  readonly networking: Networking
  readonly containers: ContainerStore
  readonly events: Events
  /** A container's record, put right. */
  readonly settle: (reference: string) => Promise<ContainerRecord>
  /** A container's sandbox. @throws CoracleError NOT_RUNNING */
  readonly running: (id: string) => Promise<Sandbox>
}

/** Networks as people have them: with events, and with who is on them. */
export class Networks {
  readonly #networks: ContainerNetworks
  readonly #networking: Networking
  readonly #containers: ContainerStore
  readonly #events: Events
  readonly #settle: NetworksInit['settle']
  readonly #running: NetworksInit['running']

  constructor({ networks, networking, containers, events, settle, running }: NetworksInit) {
    this.#networks = networks
    this.#networking = networking
    this.#containers = containers
    this.#events = events
    this.#settle = settle
    this.#running = running
  }

  /** By age, the oldest first. */
  list(): NetworkRecord[] {
    return this.#networks.list()
  }

  /** By name, id, or the start of an id. @throws CoracleError NO_SUCH_NETWORK */
  get(reference: string): NetworkRecord {
    return this.#networks.find(reference)
  }

  /** @see Networking.users */
  users(id: string): NetworkUser[] {
    return this.#networking.users(id, (container) => this.#containers.read(container)?.name)
  }

  /** @see Networks.create */
  async create(request: NetworkRequest): Promise<NetworkRecord> {
    const record = await this.#networks.create(request)
    this.#event('create', record)
    return record
  }

  /** @see Networks.remove */
  async remove(reference: string): Promise<void> {
    this.#event('destroy', await this.#networks.remove(reference))
  }

  /** Removes the networks that users made, that nobody is on, and that are `wanted`. */
  async prune(wanted: (record: NetworkRecord) => boolean): Promise<NetworkRecord[]> {
    const users = new Set(
      this.#containers.list().flatMap(({ request }) => Object.keys(request.endpoints ?? {})),
    )
    const removed: NetworkRecord[] = []
    for (const record of this.list()) {
      if (isPredefined(record) || users.has(record.name) || !wanted(record)) continue
      await this.remove(record.id)
      removed.push(record)
    }
    return removed
  }

  /** @see Networking.connect */
  async connect(network: string, container: string, endpoint: EndpointRequest): Promise<void> {
    await this.#change(network, container, 'connect', (record) =>
      this.#networking.connect(record, network, endpoint, () => this.#running(record.id)),
    )
  }

  /** @see Networking.disconnect */
  async disconnect(network: string, container: string): Promise<void> {
    await this.#change(network, container, 'disconnect', (record) =>
      this.#networking.disconnect(record, network, () => this.#running(record.id)),
    )
  }

  async #change(
    reference: string,
    container: string,
    action: 'connect' | 'disconnect',
    change: (record: ContainerRecord) => Promise<ContainerRecord>,
  ): Promise<void> {
    const network = this.get(reference)
    const { id } = await this.#settle(container)
    using _lock = await this.#containers.lock(id)
    this.#containers.write(await change(this.#containers.read(id)!))
    this.#event(action, network, { container: id })
  }

  #event(action: string, { id, name, driver }: NetworkRecord, more: EngineEvent['attributes'] = {}): void {
    this.#events.emit('network', action, id, { name, type: driver, ...more })
  }
}
