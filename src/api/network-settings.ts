import { parseLink } from '../engine/links.js'
import { CoracleError } from '../errors.js'
import type { Place } from '../engine/networking.js'
import type { ContainerRecord, CreateRequest } from '../engine/record.js'
import { parseAddress } from '../network/address.js'
import type { PortRequest } from '../network/ports.js'
import type { EndpointRequest, Protocol, PublishedPort } from '../network/record.js'
import type { Loose } from './create.js'
import type { CreateBody, Endpoint } from './schemas.js'
import { refuseFields } from './unhonoured.js'

type NetworkPart = Pick<
  CreateRequest,
  | 'networkMode'
  | 'endpoints'
  | 'ports'
  | 'publishAll'
  | 'exposedPorts'
  | 'domainname'
  | 'dns'
  | 'dnsSearch'
  | 'dnsOptions'
  | 'extraHosts'
  | 'links'
>

/** The settings of a container's network. @throws CoracleError INVALID_ARGUMENT */
export function networkPart(body: CreateBody): Loose<NetworkPart> {
  const host = body.HostConfig ?? {}
  const isOff = body.NetworkDisabled === true
  const given = isOff ? [] : Object.entries(body.NetworkingConfig?.EndpointsConfig ?? {})
  const mode = isOff ? 'none' : host.NetworkMode || 'default'
  // One list: a link is in /etc/hosts, whichever network the two share.
  const links = [...(host.Links ?? []), ...given.flatMap(([, each]) => each?.Links ?? [])]
  const endpoints = given.map(([name, each]): [string, EndpointRequest] => [
    name,
    endpointRequest({ ...each, Links: [] }),
  ])
  // Of before API 1.44: the address of the one network that there was.
  if (body.MacAddress && !endpoints.some(([, { mac }]) => mac !== undefined)) {
    const mac = checkMac(body.MacAddress)
    const own = endpoints.find(([name]) => name === mode)
    if (own) own[1] = { ...own[1], mac }
    else endpoints.push([mode, { mac }])
  }
  for (const address of host.Dns ?? [])
    if (!parseAddress(address))
      throw new CoracleError('INVALID_ARGUMENT', `${address.slice(0, 64)} is not an ip address`)
  return {
    networkMode: mode,
    endpoints: endpoints.length > 0 ? Object.fromEntries(endpoints) : undefined,
    ports: Object.entries(host.PortBindings ?? {}).flatMap(([port, bindings]) =>
      (bindings?.length ? bindings : [{}]).map((binding) => portRequest(port, binding)),
    ),
    publishAll: host.PublishAllPorts ?? undefined,
    exposedPorts: Object.keys(body.ExposedPorts ?? {}),
    domainname: body.Domainname || undefined,
    dns: host.Dns ?? undefined,
    dnsSearch: host.DnsSearch ?? undefined,
    dnsOptions: host.DnsOptions ?? undefined,
    extraHosts: host.ExtraHosts ?? undefined,
    links: links.length > 0 ? links.map(parseLink) : undefined,
  }
}

/** @throws CoracleError INVALID_ARGUMENT, NOT_IMPLEMENTED */
export function endpointRequest(endpoint: Endpoint | null | undefined): EndpointRequest {
  refuseFields('EndpointSettings', endpoint)
  refuseFields('EndpointIPAMConfig', endpoint?.IPAMConfig)
  const { IPAMConfig, Aliases, MacAddress, DriverOpts } = endpoint ?? {}
  const v4 = IPAMConfig?.IPv4Address
  const v6 = IPAMConfig?.IPv6Address
  const option = Object.keys(DriverOpts ?? {}).find((name) => name.startsWith('com.docker.network.'))
  if (option !== undefined)
    throw new CoracleError('NOT_IMPLEMENTED', `the option ${option.slice(0, 64)} is not built yet`)
  for (const alias of Aliases ?? [])
    if (!/^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,252}$/.test(alias))
      throw new CoracleError('INVALID_ARGUMENT', `invalid network alias: ${alias.slice(0, 64)}`)
  return {
    ...(Aliases?.length ? { aliases: Aliases } : {}),
    ...(v4 ? { ipv4: v4 } : {}),
    ...(v6 ? { ipv6: v6 } : {}),
    ...(MacAddress ? { mac: checkMac(MacAddress) } : {}),
    ...(DriverOpts && Object.keys(DriverOpts).length > 0 ? { driverOptions: DriverOpts } : {}),
  }
}

function checkMac(text: string): string {
  const mac = text.toLowerCase().replaceAll('-', ':')
  // A link has no group's address, and none at all is not one.
  if (/^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$/.test(mac) && mac !== '00:00:00:00:00:00') return mac
  throw new CoracleError('INVALID_ARGUMENT', `invalid MAC address: ${text.slice(0, 64)}`)
}

function portRequest(
  port: string,
  { HostIp, HostPort }: { HostIp?: string; HostPort?: string },
): PortRequest {
  const inside = /^(\d{1,5})(?:\/(\w+))?$/.exec(port)
  const protocol = inside?.[2]?.toLowerCase() ?? 'tcp'
  const containerPort = Number(inside?.[1])
  if (!inside || !isPort(containerPort))
    throw new CoracleError('INVALID_ARGUMENT', `invalid port specification: "${port.slice(0, 64)}"`)
  if (protocol !== 'tcp' && protocol !== 'udp')
    throw new CoracleError('INVALID_ARGUMENT', `ports of ${protocol} cannot be published: it is tcp or udp`)
  const outside = HostPort ? /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(HostPort) : undefined
  const first = Number(outside?.[1])
  const last = Number(outside?.[2] ?? first)
  const isAny = !HostPort || HostPort === '0'
  if (!isAny && (!outside || !isPort(first) || !isPort(last) || last < first))
    throw new CoracleError('INVALID_ARGUMENT', `invalid port specification: "${HostPort.slice(0, 64)}"`)
  return {
    protocol,
    containerPort,
    ...(HostIp ? { hostAddress: HostIp } : {}),
    ...(isAny ? {} : { hostPorts: [first, last] }),
  }
}

const isPort = (port: number): boolean => port >= 1 && port <= 65_535

/** The part of HostConfig that is about networks, as it was asked for. */
export function networkHostConfig(request: CreateRequest): object {
  const bindings: Record<string, object[]> = {}
  for (const { protocol, containerPort, hostAddress = '', hostPorts } of request.ports ?? []) {
    const HostPort = hostPorts ? [...new Set(hostPorts)].join('-') : ''
    ;(bindings[`${containerPort}/${protocol}`] ??= []).push({ HostIp: hostAddress, HostPort })
  }
  return {
    PublishAllPorts: request.publishAll ?? false,
    PortBindings: bindings,
    NetworkMode: request.networkMode ?? 'none',
    Dns: request.dns ?? null,
    DnsSearch: request.dnsSearch ?? null,
    DnsOptions: request.dnsOptions ?? null,
    ExtraHosts: request.extraHosts ?? null,
  }
}

/** Such as `80/tcp`, of the container, of its image, and those that are published. */
export function exposedPorts(request: CreateRequest, { exposed }: Place): string[] {
  const published = (request.ports ?? []).map(({ protocol, containerPort }) => `${containerPort}/${protocol}`)
  return [...new Set([...(request.exposedPorts ?? []), ...exposed, ...published])]
}

/** ExposedPorts of Config. */
export function exposedShape(request: CreateRequest, place: Place): object {
  const all = exposedPorts(request, place)
  return all.length > 0 ? { ExposedPorts: Object.fromEntries(all.map((port) => [port, {}])) } : {}
}

/** EndpointSettings by the names of the networks. */
export function endpointsShape({ id, name, request }: ContainerRecord, place: Place): object {
  const entries = Object.entries(request.endpoints ?? {}).map(([network, asked]) => {
    const found = place.endpoints.find((each) => each.network.name === network)
    const runs = place.attachment?.interfaces.find((each) => each.network === found?.network.id)
    const [v4, v6] = [4, 6].map((family) =>
      runs?.addresses.find((cidr) => cidr.includes(':') === (family === 6)),
    )
    const gateway = (family: 4 | 6): string =>
      (runs &&
        found?.network.subnets.find(({ subnet }) => subnet.includes(':') === (family === 6))?.gateway) ??
      ''
    const wanted = asked.ipv4 ?? asked.ipv6
    return [
      network,
      {
        IPAMConfig:
          wanted === undefined ? null : { IPv4Address: asked.ipv4 ?? '', IPv6Address: asked.ipv6 ?? '' },
        Links: null,
        Aliases: asked.aliases ?? null,
        MacAddress: runs?.mac ?? '',
        DriverOpts: asked.driverOptions ?? null,
        GwPriority: 0,
        NetworkID: found?.network.id ?? '',
        EndpointID: runs?.endpoint ?? '',
        Gateway: gateway(4),
        IPAddress: v4?.split('/')[0] ?? '',
        IPPrefixLen: Number(v4?.split('/')[1] ?? 0),
        IPv6Gateway: gateway(6),
        GlobalIPv6Address: v6?.split('/')[0] ?? '',
        GlobalIPv6PrefixLen: Number(v6?.split('/')[1] ?? 0),
        DNSNames: [...new Set([name, id.slice(0, 12), ...(asked.aliases ?? [])])],
      },
    ] as const
  })
  const mode = request.networkMode ?? 'none'
  if (entries.length === 0 && (mode === 'none' || mode === 'host'))
    return { [mode]: { ...EMPTY_ENDPOINT, NetworkID: place.plain ?? '' } }
  return Object.fromEntries(entries)
}

const EMPTY_ENDPOINT = {
  IPAMConfig: null,
  Links: null,
  Aliases: null,
  MacAddress: '',
  DriverOpts: null,
  GwPriority: 0,
  NetworkID: '',
  EndpointID: '',
  Gateway: '',
  IPAddress: '',
  IPPrefixLen: 0,
  IPv6Gateway: '',
  GlobalIPv6Address: '',
  GlobalIPv6PrefixLen: 0,
  DNSNames: null,
}

/** NetworkSettings of ContainerInspect; the fields of before API 1.21 are those of the network `bridge`. */
export function networkSettingsShape(record: ContainerRecord, place: Place): object {
  const networks = endpointsShape(record, place) as Record<string, typeof EMPTY_ENDPOINT>
  const { Gateway, IPAddress, IPPrefixLen, MacAddress, EndpointID, IPv6Gateway, ...first } =
    networks['bridge'] ?? EMPTY_ENDPOINT
  const namespace = place.attachment?.namespace
  return {
    Bridge: '',
    SandboxID: '',
    SandboxKey: namespace ?? '',
    Ports: portsShape(record, place),
    Gateway,
    IPAddress,
    IPPrefixLen,
    MacAddress,
    EndpointID,
    IPv6Gateway,
    GlobalIPv6Address: first.GlobalIPv6Address,
    GlobalIPv6PrefixLen: first.GlobalIPv6PrefixLen,
    Networks: networks,
  }
}

function portsShape({ request }: ContainerRecord, place: Place): object {
  const ports: Record<string, { HostIp: string; HostPort: string }[] | null> = {}
  if (!place.attachment) return ports
  for (const port of [...(request.exposedPorts ?? []), ...place.exposed]) ports[withProtocol(port)] = null
  for (const each of place.attachment.ports)
    (ports[`${each.containerPort}/${each.protocol}`] ??= []).push({
      HostIp: each.hostAddress,
      HostPort: String(each.hostPort),
    })
  return ports
}

const withProtocol = (port: string): string => (port.includes('/') ? port : `${port}/tcp`)

/** Ports of one element of ContainerList. */
export function portsSummary({ attachment, exposed }: Place): object[] {
  if (!attachment) return []
  const published = attachment.ports.map((each: PublishedPort) => ({
    IP: each.hostAddress,
    PrivatePort: each.containerPort,
    PublicPort: each.hostPort,
    Type: each.protocol as string,
  }))
  const plain = exposed
    .map((text) => withProtocol(text).split('/') as [string, Protocol])
    .filter(
      ([port, type]) =>
        !published.some(({ PrivatePort, Type }) => PrivatePort === Number(port) && Type === type),
    )
    .map(([port, type]) => ({ PrivatePort: Number(port), Type: type }))
  return [...plain, ...published]
}
