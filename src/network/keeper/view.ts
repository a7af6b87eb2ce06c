import { Subnet, formatAddress, parseAddress, type Address } from '../address.js'
import type { AttachedInterface, Attachment, NetworkRecord } from '../record.js'
import { gatewaysOf } from '../wiring.js'
import {
  NOERROR,
  NXDOMAIN,
  TYPE_A,
  TYPE_AAAA,
  TYPE_ANY,
  TYPE_PTR,
  reverseAddress,
  type Answer,
} from './dns-message.js'

/** Names by which a container finds the host that it runs on. */
const HOST_NAMES = ['host.docker.internal', 'gateway.docker.internal', 'host.coracle.internal']

/** What to do with a question. */
export type Verdict =
  | { readonly code: number; readonly answers: readonly Answer[] }
  /** Others know: these resolvers, or with an empty list the host's. */
  | { readonly forward: readonly string[] }
  /** It comes from where nobody of the network is. */
  | undefined

/**
 * What the names mean to each container: those on its networks, and none of others'. A snapshot of what is attached.
 */
export class View {
  readonly #networks: ReadonlyMap<string, NetworkRecord>
  readonly #attachments: readonly Attachment[]

  constructor(networks: ReadonlyMap<string, NetworkRecord>, attachments: readonly Attachment[]) {
    this.#networks = networks
    this.#attachments = attachments
  }

  /**
   * @param network the id of the network at whose gateway the question came
   * @param source the address that it came from
   * @param name in lower case, without the last dot
   */
  resolve(network: string, source: Address, name: string, type: number): Verdict {
    const record = this.#networks.get(network)
    if (!record) return undefined
    const gateways = gatewaysOf(record)
    const isHost = gateways.some((each) => each.value === source.value && each.family === source.family)
    if (!isHost && !record.subnets.some(({ subnet }) => Subnet.parse(subnet)?.contains(source)))
      return undefined
    const asker = this.#attachments.find(({ interfaces }) =>
      interfaces.some(
        (each) => each.network === network && addressesOf(each).some((own) => same(own, source)),
      ),
    )
    const seen = new Set(asker ? asker.interfaces.map((each) => each.network) : [network])
    const reversed = type === TYPE_PTR ? reverseAddress(name) : undefined
    if (reversed) {
      const names = this.#namesOf(reversed, seen)
      if (names.length > 0) return { code: NOERROR, answers: names.map((each) => ({ name: each })) }
    }
    const found = HOST_NAMES.includes(name) ? gateways : this.#addressesOf(name, seen)
    if (found.length > 0) {
      const wanted = found.filter(
        ({ family }) => type === TYPE_ANY || type === (family === 4 ? TYPE_A : TYPE_AAAA),
      )
      return { code: NOERROR, answers: shuffled(wanted).map((address) => ({ address })) }
    }
    const outside = [...seen].some((id) => this.#networks.get(id)?.internal === false)
    return outside ? { forward: asker?.resolvers ?? [] } : { code: NXDOMAIN, answers: [] }
  }

  #addressesOf(name: string, seen: ReadonlySet<string>): Address[] {
    const found = new Map<string, Address>()
    for (const { interfaces } of this.#attachments)
      for (const each of interfaces) {
        if (!seen.has(each.network)) continue
        const suffix = `.${this.#networks.get(each.network)?.name.toLowerCase()}`
        const short = name.endsWith(suffix) ? name.slice(0, -suffix.length) : name
        if (each.names.some((own) => own.toLowerCase() === name || own.toLowerCase() === short))
          for (const address of addressesOf(each)) found.set(formatAddress(address), address)
      }
    return [...found.values()]
  }

  #namesOf(address: Address, seen: ReadonlySet<string>): string[] {
    return this.#attachments.flatMap(({ interfaces }) =>
      interfaces
        .filter((each) => seen.has(each.network) && addressesOf(each).some((own) => same(own, address)))
        .map((each) => `${each.names[0]}.${this.#networks.get(each.network)?.name}`),
    )
  }
}

const addressesOf = ({ addresses }: AttachedInterface): Address[] =>
  addresses.map((cidr) => parseAddress(cidr.split('/')[0]!)!)

const same = (a: Address, b: Address): boolean => a.family === b.family && a.value === b.value

/** Of several behind one name each is first at times. */
function shuffled<T>(all: readonly T[]): T[] {
  const copy = [...all]
  for (let i = copy.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1))
    ;[copy[i], copy[j]] = [copy[j]!, copy[i]!]
  }
  return copy
}
