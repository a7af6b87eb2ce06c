import { CoracleError } from '../errors.js'
import { Subnet, formatAddress, parseAddress } from './address.js'
import type { SubnetRecord } from './record.js'

/** What a client asks for when it makes a network. */
export interface NetworkRequest {
  readonly name: string
  readonly driver?: string
  readonly internal?: boolean
  readonly attachable?: boolean
  readonly ipv4?: boolean
  readonly ipv6?: boolean
  readonly subnets?: readonly {
    readonly subnet?: string
    readonly gateway?: string
    readonly range?: string
    readonly reserved?: Readonly<Record<string, string>>
  }[]
  readonly options?: Readonly<Record<string, string>>
  readonly ipamOptions?: Readonly<Record<string, string>>
  readonly labels?: Readonly<Record<string, string>>
}

const DEVICE = /^[a-zA-Z0-9_.-]{1,15}$/

export const invalid = (message: string): CoracleError => new CoracleError('INVALID_ARGUMENT', message)

/** @throws CoracleError INVALID_ARGUMENT */
export function checkNetworkName(name: string): void {
  if (!/^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$/.test(name))
    throw invalid(`invalid network name: ${name.slice(0, 64)}: only [a-zA-Z0-9][a-zA-Z0-9_.-]* is allowed`)
}

/** @throws CoracleError INVALID_ARGUMENT */
export function checkDevice(name: string, what: string): string {
  if (!DEVICE.test(name) || name === '.' || name === '..')
    throw invalid(`${what} is no name of a network device: '${name.slice(0, 64)}'`)
  return name
}

/** Of an adapter, its interface or its PCI address. @throws CoracleError INVALID_ARGUMENT */
export function checkAdapter(name: string): string {
  return /^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$/i.test(name) ? name : checkDevice(name, 'parent')
}

/**
 * The subnets of a request, checked; `gateway` and `range` belong to a subnet that is named.
 * @throws CoracleError INVALID_ARGUMENT
 */
export function checkSubnets(
  asked: NonNullable<NetworkRequest['subnets']>,
  ipv6: boolean,
): (SubnetRecord & { parsed: Subnet })[] {
  const found: (SubnetRecord & { parsed: Subnet })[] = []
  for (const { subnet, gateway, range, reserved } of asked) {
    if (!subnet) {
      if (gateway || range) throw invalid('a gateway and a range need the subnet that they are in')
      continue
    }
    const parsed = Subnet.parse(subnet)
    if (!parsed || parsed.prefix === 0 || parsed.size < 2n)
      throw invalid(`invalid subnet: ${subnet.slice(0, 64)}`)
    if (parsed.family === 6 && !ipv6)
      throw invalid(`subnet ${subnet} needs IPv6 to be enabled on the network`)
    if (found.some(({ parsed: other }) => other.overlaps(parsed)))
      throw invalid(`subnets of one network overlap: ${subnet}`)
    const inside = (text: string, what: string): string => {
      const address = parseAddress(text)
      if (!address || !parsed.contains(address))
        throw invalid(`invalid ${what}: ${text.slice(0, 64)} is not in subnet ${parsed}`)
      return formatAddress(address)
    }
    const part = range ? Subnet.parse(range) : undefined
    if (range && (!part || part.prefix < parsed.prefix || !part.overlaps(parsed)))
      throw invalid(`invalid ip-range: ${range.slice(0, 64)} is not in subnet ${parsed}`)
    found.push({
      parsed,
      subnet: parsed.toString(),
      ...(gateway ? { gateway: inside(gateway, 'gateway') } : {}),
      ...(part ? { range: part.toString() } : {}),
      ...(reserved && Object.keys(reserved).length > 0
        ? {
            reserved: Object.fromEntries(
              Object.entries(reserved).map(([name, text]) => [name, inside(text, 'auxiliary address')]),
            ),
          }
        : {}),
    })
  }
  return found
}
