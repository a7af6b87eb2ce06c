import { createSocket } from 'node:dgram'
import { createServer } from 'node:net'
import { CoracleError } from '../errors.js'
import { parseAddress } from './address.js'
import type { Protocol, PublishedPort } from './record.js'

/** A port that a container publishes, as it was asked for. */
export interface PortRequest {
  readonly protocol: Protocol
  readonly containerPort: number
  /** Absent: all of the host's, of both families. */
  readonly hostAddress?: string
  /** The first free one of these; absent: any that is free. */
  readonly hostPorts?: readonly [first: number, last: number]
}

/** How often a port that the kernel chose for one address may be taken for the other. */
const ATTEMPTS = 16

/**
 * Chooses the host's ports for what a container publishes.
 * @param taken those of the containers that run
 * @param whose the endpoint's name and id, for errors
 * @throws CoracleError PORT_IN_USE, INVALID_ARGUMENT
 */
export async function choosePorts(
  requests: readonly PortRequest[],
  taken: readonly PublishedPort[],
  whose: string,
): Promise<PublishedPort[]> {
  const chosen: PublishedPort[] = []
  for (const request of requests) {
    const addresses = request.hostAddress ? [request.hostAddress] : ['0.0.0.0', '::']
    for (const address of addresses)
      if (!parseAddress(address))
        throw new CoracleError('INVALID_ARGUMENT', `invalid host address of a port: ${address.slice(0, 64)}`)
    chosen.push(...(await chooseOne(request, addresses, [...taken, ...chosen], whose)))
  }
  return chosen
}

async function chooseOne(
  { protocol, containerPort, hostPorts }: PortRequest,
  addresses: readonly string[],
  taken: readonly PublishedPort[],
  whose: string,
): Promise<PublishedPort[]> {
  let reason = ''
  const whole = (hostPort: number): PublishedPort[] =>
    addresses.map((hostAddress) => ({ protocol, containerPort, hostAddress, hostPort }))
  const tryPort = async (port: number): Promise<PublishedPort[] | undefined> => {
    const wanted = whole(port)
    for (const each of wanted) {
      const failed = taken.some((other) => clash(each, other))
        ? `Bind for ${each.hostAddress}:${port} failed: port is already allocated`
        : await probe(each)
      if (failed === undefined) continue
      reason = failed
      return undefined
    }
    return wanted
  }
  if (hostPorts)
    for (let port = hostPorts[0]; port <= hostPorts[1]; port++) {
      const found = await tryPort(port)
      if (found) return found
    }
  else
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const found = await tryPort(await freePort(protocol, addresses[0]!))
      if (found) return found
    }
  throw new CoracleError(
    'PORT_IN_USE',
    `driver failed programming external connectivity on endpoint ${whose}: ${reason}`,
  )
}

function clash(a: PublishedPort, b: PublishedPort): boolean {
  if (a.protocol !== b.protocol || a.hostPort !== b.hostPort) return false
  const [mine, theirs] = [parseAddress(a.hostAddress)!, parseAddress(b.hostAddress)!]
  if (mine.family !== theirs.family) return false
  return mine.value === theirs.value || mine.value === 0n || theirs.value === 0n
}

/** @returns why the port cannot be had, or undefined where it can */
async function probe({ protocol, hostAddress, hostPort }: PublishedPort): Promise<string | undefined> {
  try {
    await bindOnce(protocol, hostAddress, hostPort)
    return undefined
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    // Without IPv6 on the host there is nobody to disturb.
    if (parseAddress(hostAddress)!.family === 6 && (code === 'EAFNOSUPPORT' || code === 'EADDRNOTAVAIL'))
      return hostAddress === '::' ? undefined : `${hostAddress} is no address of this host`
    const why =
      code === 'EADDRINUSE'
        ? 'address already in use'
        : code === 'EADDRNOTAVAIL'
          ? 'cannot assign requested address'
          : (error as Error).message
    return `failed to bind host port ${hostAddress}:${hostPort}/${protocol}: ${why}`
  }
}

const freePort = (protocol: Protocol, address: string): Promise<number> => bindOnce(protocol, address, 0)

/** Binds and lets go. @returns the port */
function bindOnce(protocol: Protocol, host: string, port: number): Promise<number> {
  const ipv6Only = host.includes(':')
  return new Promise((resolve, reject) => {
    if (protocol === 'tcp') {
      const server = createServer().on('error', reject)
      server.listen({ host, port, ipv6Only, exclusive: true }, () => {
        const { port: bound } = server.address() as { port: number }
        server.close(() => resolve(bound))
      })
    } else {
      const socket = createSocket({ type: ipv6Only ? 'udp6' : 'udp4', ipv6Only }).on('error', reject)
      socket.bind({ address: host, port, exclusive: true }, () => {
        const { port: bound } = socket.address()
        socket.close(() => resolve(bound))
      })
    }
  })
}
