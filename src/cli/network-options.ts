import type { Argv } from 'yargs'
import { CoracleError } from '../errors.js'
import { listOf } from './command.js'

const many = (describe: string) => ({ type: 'string', array: true, requiresArg: true, describe }) as const
const one = (describe: string) => ({ type: 'string', requiresArg: true, describe }) as const

/** The options of `run` and `create` that are about networks. */
export const networkOptions = (yargs: Argv) =>
  yargs
    .option('network', {
      ...many(
        'bridge (default), none, host, container:NAME, or a network: NAME, or name=NAME,alias=A,ip=ADDRESS',
      ),
      alias: 'net',
    })
    .option('network-alias', many('A further name on the network'))
    .option('ip', one('IPv4 address on the network'))
    .option('ip6', one('IPv6 address on the network'))
    .option('mac-address', one('Hardware address of the interface'))
    .option('publish', {
      ...many('[ADDRESS:][HOST-PORT:]PORT[/udp], also ranges: reach it at a port of the host'),
      alias: 'p',
    })
    .option('publish-all', {
      alias: 'P',
      type: 'boolean',
      describe: 'Reach all exposed ports at free ports of the host',
    })
    .option('expose', many('A port, or a range of them, that -P publishes too'))
    .option('dns', many('Resolver in place of those of the host'))
    .option('dns-search', many('Domain in which short names are looked for'))
    .option('dns-option', many('Option of resolv.conf'))
    .option('add-host', many('NAME:ADDRESS for /etc/hosts; host-gateway is this host'))
    .option('link', many('NAME[:ALIAS]: another container in /etc/hosts; networks of your own do it better'))
    .option('domainname', one('Domain name inside'))

type NetworkOptions = ReturnType<typeof networkOptions> extends Argv<infer T> ? T : never

/** The parts of ContainerCreate's body that are about networks. @throws CoracleError USAGE */
export function networkBody(options: NetworkOptions): { HostConfig: object; [key: string]: unknown } {
  const networks = listOf(options.network).map(parseNetwork)
  const [first] = networks
  const own = {
    ...(options['network-alias'] ? { Aliases: listOf(options['network-alias']) } : {}),
    ...ipam(options.ip, options.ip6),
    ...(options['mac-address'] === undefined ? {} : { MacAddress: options['mac-address'] }),
  }
  const mode = first?.name ?? 'default'
  const asked = networks.map(({ name, ...endpoint }): [string, object] => [name, endpoint])
  if (Object.keys(own).length > 0) {
    if (first) asked[0]![1] = { ...asked[0]![1], ...own }
    else asked.push(['default', own])
  }
  const published = listOf(options.publish).flatMap(parsePublish)
  const bindings: Record<string, object[]> = {}
  for (const { port, ...binding } of published) (bindings[port] ??= []).push(binding)
  const exposed = [...Object.keys(bindings), ...listOf(options.expose).flatMap(parseExpose)]
  const isAlone =
    networks.length < 2 && /^(none|host|container:.*)$/.test(mode) && Object.keys(own).length === 0
  return {
    Domainname: options.domainname ?? '',
    ExposedPorts: Object.fromEntries(exposed.map((port) => [port, {}])),
    ...(asked.length > 0 && !isAlone
      ? { NetworkingConfig: { EndpointsConfig: Object.fromEntries(asked) } }
      : {}),
    HostConfig: {
      NetworkMode: mode,
      PortBindings: bindings,
      PublishAllPorts: options['publish-all'] ?? false,
      Dns: listOf(options.dns),
      DnsSearch: listOf(options['dns-search']),
      DnsOptions: listOf(options['dns-option']),
      Links: listOf(options.link),
      ExtraHosts: listOf(options['add-host']),
    },
  }
}

/** IPAMConfig of an endpoint, where there is anything to say. */
export function ipam(v4: string | undefined, v6: string | undefined): object {
  if (v4 === undefined && v6 === undefined) return {}
  return { IPAMConfig: { ...(v4 ? { IPv4Address: v4 } : {}), ...(v6 ? { IPv6Address: v6 } : {}) } }
}

/** `NAME`, or `name=NAME,alias=A,ip=…`. */
function parseNetwork(text: string): { name: string; [key: string]: unknown } {
  if (!/(^|,)name=/.test(text)) return { name: text }
  const values = new Map<string, string[]>()
  for (const part of text.split(',')) {
    const [key = '', value = ''] = part.split(/=(.*)/s)
    if (!['name', 'alias', 'ip', 'ip6', 'mac-address'].includes(key))
      throw new CoracleError(
        'USAGE',
        `--network does not know '${key}': it has name, alias, ip, ip6, mac-address`,
      )
    values.set(key, [...(values.get(key) ?? []), value])
  }
  const last = (key: string): string | undefined => values.get(key)?.at(-1)
  const mac = last('mac-address')
  return {
    name: last('name')!,
    ...(values.has('alias') ? { Aliases: values.get('alias') } : {}),
    ...ipam(last('ip'), last('ip6')),
    ...(mac === undefined ? {} : { MacAddress: mac }),
  }
}

interface Published {
  /** `80/tcp` */
  readonly port: string
  readonly HostIp: string
  readonly HostPort: string
}

/** `[ADDRESS:][HOST[-LAST]:]PORT[-LAST][/PROTOCOL]`; an IPv6 address in brackets. @throws CoracleError USAGE */
export function parsePublish(text: string): Published[] {
  const bad = (why: string): never => {
    throw new CoracleError('USAGE', `invalid --publish '${text}': ${why}`)
  }
  const match = /^(?:(\[[^\]]*\]|[^:/]*):)?(?:([\d-]*):)?([\d-]+)(?:\/(\w+))?$/.exec(text)
  if (!match) return bad('it is [ADDRESS:][HOST-PORT:]PORT[/PROTOCOL]')
  let [, address = '', host] = match
  const [, , , inside = '', protocol = 'tcp'] = match
  // With one colon, what is before it is the port.
  if (host === undefined && /^[\d-]*$/.test(address)) [address, host] = ['', address]
  if (!['tcp', 'udp'].includes(protocol)) bad(`protocol ${protocol} is not tcp or udp`)
  const [first, last] = range(inside, bad)
  const HostIp = address.replace(/^\[|\]$/g, '')
  if (!host) return ports(first, last).map((port) => ({ port: `${port}/${protocol}`, HostIp, HostPort: '' }))
  const [from, to] = range(host, bad)
  if (first === last) return [{ port: `${first}/${protocol}`, HostIp, HostPort: host }]
  if (to - from !== last - first) bad('the ranges are of different lengths')
  return ports(first, last).map((port) => ({
    port: `${port}/${protocol}`,
    HostIp,
    HostPort: String(from + port - first),
  }))
}

function parseExpose(text: string): string[] {
  const [inside = '', protocol = 'tcp'] = text.split('/')
  const [first, last] = range(inside, (why) => {
    throw new CoracleError('USAGE', `invalid --expose '${text}': ${why}`)
  })
  return ports(first, last).map((port) => `${port}/${protocol}`)
}

function range(text: string, bad: (why: string) => never): [number, number] {
  const match = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(text)
  const first = Number(match?.[1])
  const last = Number(match?.[2] ?? first)
  if (!match || first < 1 || last > 65_535 || last < first)
    return bad(`'${text}' is no port or range of ports`)
  return [first, last]
}

const ports = (first: number, last: number): number[] =>
  Array.from({ length: last - first + 1 }, (_, i) => first + i)
