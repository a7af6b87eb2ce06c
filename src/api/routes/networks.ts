import { CoracleError } from '../../errors.js'
import type { NetworkUser } from '../../engine/networking.js'
import type { NetworkRecord } from '../../network/record.js'
import { isPredefined } from '../../network/store.js'
import { sendJson } from '../answer.js'
import { jsonBody } from '../body.js'
import { AGE_AND_LABELS, hasLabels, hasPruneLabels, isOlder, parseFilters, type Filters } from '../filters.js'
import { endpointRequest } from '../network-settings.js'
import type { Handler, Route } from '../router.js'
import {
  CONNECT_BODY,
  DISCONNECT_BODY,
  NETWORK_BODY,
  type ConnectBody,
  type DisconnectBody,
  type NetworkBody,
} from '../schemas.js'
import { refuseFields } from '../unhonoured.js'

const FILTERS = ['dangling', 'driver', 'id', 'label', 'name', 'scope', 'type'] as const

function passes(record: NetworkRecord, filters: Filters, isUsed: boolean): boolean {
  const any = (name: string, test: (value: string) => boolean): boolean =>
    filters.get(name)?.some(test) ?? true
  const own = !isPredefined(record)
  return (
    any('name', (value) => record.name.includes(value)) &&
    any('id', (value) => record.id.startsWith(value)) &&
    any('driver', (value) => driverOf(record) === value) &&
    any('scope', (value) => value === 'local') &&
    any('type', (value) => (value === 'custom') === own) &&
    any('dangling', (value) => /^(true|1)$/.test(value) === (own && !isUsed)) &&
    hasLabels(record.labels, filters.get('label'))
  )
}

const driverOf = ({ driver }: NetworkRecord): string => (driver === 'none' ? 'null' : driver)

/** @param users undefined where a list does not tell them */
function networkShape(record: NetworkRecord, users: readonly NetworkUser[] | undefined): object {
  return {
    Name: record.name,
    Id: record.id,
    Created: record.created,
    Scope: 'local',
    Driver: driverOf(record),
    EnableIPv4: record.ipv4,
    EnableIPv6: record.ipv6,
    IPAM: {
      Driver: 'default',
      Options: Object.keys(record.ipamOptions).length > 0 ? record.ipamOptions : null,
      Config: record.subnets.map(({ subnet, gateway, range, reserved }) => ({
        Subnet: subnet,
        ...(range === undefined ? {} : { IPRange: range }),
        ...(gateway === undefined ? {} : { Gateway: gateway }),
        ...(reserved ? { AuxiliaryAddresses: reserved } : {}),
      })),
    },
    Internal: record.internal,
    Attachable: record.attachable,
    Ingress: false,
    ConfigFrom: { Network: '' },
    ConfigOnly: false,
    Containers: Object.fromEntries(
      (users ?? []).map(({ container, name, endpoint, mac, addresses }) => [
        container,
        {
          Name: name,
          EndpointID: endpoint,
          MacAddress: mac,
          IPv4Address: addresses.find((cidr) => !cidr.includes(':')) ?? '',
          IPv6Address: addresses.find((cidr) => cidr.includes(':')) ?? '',
        },
      ]),
    ),
    Options: record.options,
    Labels: record.labels,
  }
}

const list: Handler = ({ engine, response, query }) => {
  const filters = parseFilters(query.text('filters'), FILTERS)
  const shown = engine.networks
    .list()
    .filter((record) => passes(record, filters, engine.networks.users(record.id).length > 0))
  sendJson(
    response,
    200,
    shown.map((record) => networkShape(record, undefined)),
  )
}

const inspect: Handler = ({ engine, response, params: [reference], query }) => {
  const record = engine.networks.get(reference!)
  const scope = query.text('scope') || 'local'
  if (scope !== 'local')
    throw new CoracleError(
      'NO_SUCH_NETWORK',
      `network ${record.name} not found in scope ${scope.slice(0, 64)}`,
    )
  sendJson(response, 200, networkShape(record, engine.networks.users(record.id)))
}

const create: Handler = async ({ engine, request, response }) => {
  const body = await jsonBody<NetworkBody>(request, NETWORK_BODY)
  refuseFields('a network', body)
  if (body.Scope && body.Scope !== 'local')
    throw new CoracleError('NOT_IMPLEMENTED', 'networks of a swarm are not built yet')
  const { IPAM } = body
  if (IPAM?.Driver && IPAM.Driver !== 'default')
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `unknown IPAM driver ${IPAM.Driver.slice(0, 64)}: it is default`,
    )
  const record = await engine.networks.create({
    name: body.Name,
    ...(body.Driver ? { driver: body.Driver } : {}),
    internal: body.Internal ?? false,
    attachable: body.Attachable ?? false,
    ipv4: body.EnableIPv4 ?? true,
    ipv6: body.EnableIPv6 ?? false,
    subnets: (IPAM?.Config ?? []).map(({ Subnet, Gateway, IPRange, AuxiliaryAddresses }) => ({
      ...(Subnet ? { subnet: Subnet } : {}),
      ...(Gateway ? { gateway: Gateway } : {}),
      ...(IPRange ? { range: IPRange } : {}),
      ...(AuxiliaryAddresses ? { reserved: AuxiliaryAddresses } : {}),
    })),
    options: body.Options ?? {},
    ipamOptions: IPAM?.Options ?? {},
    labels: body.Labels ?? {},
  })
  sendJson(response, 201, { Id: record.id, Warning: '' })
}

const remove: Handler = async ({ engine, response, params: [reference] }) => {
  await engine.networks.remove(reference!)
  response.writeHead(204).end()
}

const connect: Handler = async ({ engine, request, response, params: [reference] }) => {
  const body = await jsonBody<ConnectBody>(request, CONNECT_BODY)
  await engine.networks.connect(reference!, body.Container, endpointRequest(body.EndpointConfig ?? null))
  response.writeHead(200).end()
}

const disconnect: Handler = async ({ engine, request, response, params: [reference] }) => {
  const body = await jsonBody<DisconnectBody>(request, DISCONNECT_BODY)
  await engine.networks.disconnect(reference!, body.Container)
  response.writeHead(200).end()
}

const prune: Handler = async ({ engine, response, query }) => {
  const filters = parseFilters(query.text('filters'), AGE_AND_LABELS)
  const removed = await engine.networks.prune(
    ({ labels, created }) => hasPruneLabels(labels, filters) && isOlder(created, filters),
  )
  sendJson(response, 200, { NetworksDeleted: removed.map(({ name }) => name) })
}

export const NETWORK_ROUTES: readonly Route[] = [
  { method: 'GET', pattern: '/networks', handler: list },
  { method: 'POST', pattern: '/networks/create', handler: create },
  { method: 'POST', pattern: '/networks/prune', handler: prune },
  { method: 'GET', pattern: '/networks/{id}', handler: inspect },
  { method: 'DELETE', pattern: '/networks/{id}', handler: remove },
  { method: 'POST', pattern: '/networks/{id}/connect', handler: connect },
  { method: 'POST', pattern: '/networks/{id}/disconnect', handler: disconnect },
]
