import { randomBytes } from 'node:crypto'
import { CoracleError } from '../errors.js'
import { Subnet, addressBytes, formatAddress, parseAddress, type Address, type Family } from './address.js'
import type { Endpoint, EndpointRequest, NetworkRecord, SubnetRecord } from './record.js'

/** Subnets are taken from these where the user names none, so large each. */
const POOLS: readonly (readonly [pool: string, prefix: number])[] = [
  ['172.16.0.0/12', 20],
  ['10.64.0.0/10', 20],
]
/** Of unique local addresses (RFC 4193), with 40 bits of the host's own behind it. */
const ULA = 0xfdn

/**
 * A subnet that overlaps none of `taken`, out of the pools.
 * @param seed two hosts of networks on one machine that do not see each other's begin at different places by it
 * @throws CoracleError CONFLICT where all are taken
 */
export function freeSubnet(family: Family, taken: readonly Subnet[], seed: Buffer): Subnet {
  const candidates = family === 4 ? pooled() : local(seed)
  const count = candidates.count
  const start = seed.readUInt32BE(0) % count
  for (let i = 0; i < count; i++) {
    const candidate = candidates.at((start + i) % count)
    if (!taken.some((each) => each.overlaps(candidate))) return candidate
  }
  throw new CoracleError(
    'CONFLICT',
    'all predefined address pools have been fully subnetted: remove networks, or name a subnet',
  )
}

interface Candidates {
  readonly count: number
  readonly at: (index: number) => Subnet
}

function pooled(): Candidates {
  const pools = POOLS.map(([text, prefix]) => {
    const pool = Subnet.parse(text)!
    return { pool, prefix, count: 2 ** (prefix - pool.prefix) }
  })
  return {
    count: pools.reduce((sum, { count }) => sum + count, 0),
    at: (index) => {
      for (const { pool, prefix, count } of pools) {
        if (index < count) return new Subnet(pool.at(BigInt(index) << BigInt(32 - prefix)), prefix)
        index -= count
      }
      throw new RangeError('beyond the pools')
    },
  }
}

function local(seed: Buffer): Candidates {
  const own = (ULA << 120n) | (BigInt(`0x${seed.toString('hex', 0, 5)}`) << 80n)
  return { count: 65_536, at: (index) => new Subnet({ family: 6, value: own | (BigInt(index) << 64n) }, 64) }
}

/** The subnet's gateway where the user names none: its first address. */
export function defaultGateway(subnet: Subnet, range: Subnet | undefined): Address {
  const base = range ?? subnet
  return base.base === subnet.base ? subnet.at(1n) : base.at(0n)
}

/**
 * A container's place on a network: what it asks for, else the first free addresses.
 * @throws CoracleError INVALID_ARGUMENT for an address outside the network's subnets, CONFLICT for one in use, and
 * where none is left
 */
export function allocate(record: NetworkRecord, request: EndpointRequest): Endpoint {
  const addresses: string[] = []
  for (const [family, wanted] of [
    [4, request.ipv4],
    [6, request.ipv6],
  ] as const) {
    const subnets = record.subnets.filter(({ subnet }) => Subnet.parse(subnet)?.family === family)
    if (wanted !== undefined) addresses.push(checkWanted(record, subnets, family, wanted))
    else if (subnets.length > 0) addresses.push(firstFree(record, subnets))
  }
  const mac = request.mac ?? macOf(addresses)
  return { id: randomBytes(32).toString('hex'), mac, addresses }
}

function checkWanted(
  record: NetworkRecord,
  subnets: readonly SubnetRecord[],
  family: Family,
  wanted: string,
): string {
  const address = parseAddress(wanted)
  if (address?.family !== family)
    throw new CoracleError('INVALID_ARGUMENT', `invalid IPv${family} address: ${wanted.slice(0, 64)}`)
  const home = subnets.find(({ subnet }) => Subnet.parse(subnet)!.contains(address))
  if (!home)
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `invalid endpoint settings: no configured subnet contains IP address ${wanted}`,
    )
  if (usedIn(record, home).has(address.value))
    throw new CoracleError('ADDRESS_IN_USE', `Address already in use: ${wanted}`)
  return formatAddress(address)
}

function firstFree(record: NetworkRecord, subnets: readonly SubnetRecord[]): string {
  for (const each of subnets) {
    const used = usedIn(record, each)
    const subnet = Subnet.parse(each.subnet)!
    const range = each.range === undefined ? subnet : Subnet.parse(each.range)!
    // As many as are used may be in the way, and the two ends.
    for (let value = range.base; value <= range.last; value++)
      if (!used.has(value)) return formatAddress({ family: subnet.family, value })
  }
  throw new CoracleError('CONFLICT', `no available IP addresses on network ${record.name}`)
}

/** The addresses of a subnet that nobody may be given now. */
function usedIn(record: NetworkRecord, each: SubnetRecord): Set<bigint> {
  const subnet = Subnet.parse(each.subnet)!
  const used = new Set<bigint>()
  // The two that mean the subnet itself and all that are in it; of a pair (RFC 3021) both are usable.
  if (subnet.size > 2n) used.add(subnet.base)
  if (subnet.size > 2n && subnet.family === 4) used.add(subnet.last)
  const add = (text: string | undefined): void => {
    const address = text === undefined ? undefined : parseAddress(text)
    if (address) used.add(address.value)
  }
  add(each.gateway)
  Object.values(each.reserved ?? {}).forEach(add)
  for (const { addresses } of Object.values(record.endpoints)) addresses.forEach(add)
  return used
}

/** By the IPv4 address, so that who gets the address next has the neighbours' caches right. */
function macOf(addresses: readonly string[]): string {
  const v4 = addresses.map(parseAddress).find((address) => address?.family === 4)
  const tail = v4 ? addressBytes(v4) : randomBytes(4)
  return Buffer.concat([Buffer.from([0x02, 0x42]), tail])
    .toString('hex')
    .replace(/..(?!$)/g, '$&:')
}
