import { createSocket, type Socket as UdpSocket } from 'node:dgram'
import { connect, createServer, type Server, type Socket } from 'node:net'
import type { PublishedPort } from '../record.js'

/** Clients of one UDP port at a time, and how long one is remembered without a word, in ms. */
const MAX_CLIENTS = 1024
const UDP_IDLE = 60_000

/**
 * Holds a published port of the host: nobody else can take it, and what the packet filter does not lead to the
 * container comes here and is passed on, such as connections to ::1.
 */
export interface Relay {
  readonly port: PublishedPort
  close(): void
}

/**
 * @param target the container's address
 * @throws what bind(2) says, as Node does
 */
export async function listen(port: PublishedPort, target: string): Promise<Relay> {
  return port.protocol === 'tcp' ? listenTcp(port, target) : listenUdp(port, target)
}

function listenTcp(port: PublishedPort, target: string): Promise<Relay> {
  const open = new Set<Socket>()
  const server: Server = createServer({ allowHalfOpen: true }, (client) => {
    const inside = connect({ host: target, port: port.containerPort, allowHalfOpen: true })
    for (const [from, to] of [
      [client, inside],
      [inside, client],
    ] as const) {
      open.add(from)
      from.on('close', () => open.delete(from))
      from.on('error', () => to.destroy())
      from.pipe(to)
    }
  })
  const host = port.hostAddress
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen({ host, port: port.hostPort, ipv6Only: host.includes(':'), exclusive: true }, () => {
      server.on('error', () => undefined)
      resolve({
        port,
        close: () => {
          server.close()
          for (const socket of open) socket.destroy()
        },
      })
    })
  })
}

function listenUdp(port: PublishedPort, target: string): Promise<Relay> {
  const typeOf = (address: string): 'udp4' | 'udp6' => (address.includes(':') ? 'udp6' : 'udp4')
  const host = port.hostAddress
  const server = createSocket({ type: typeOf(host), ipv6Only: host.includes(':') })
  const clients = new Map<string, { socket: UdpSocket; timer: NodeJS.Timeout }>()
  const forget = (key: string): void => {
    const client = clients.get(key)
    clients.delete(key)
    clearTimeout(client?.timer)
    client?.socket.close()
  }
  server.on('message', (message, { address, port: from }) => {
    const key = `${address} ${from}`
    let client = clients.get(key)
    if (!client) {
      if (clients.size >= MAX_CLIENTS) return
      const socket = createSocket(typeOf(target))
      client = { socket, timer: setTimeout(() => forget(key), UDP_IDLE) }
      clients.set(key, client)
      socket.on('error', () => forget(key))
      socket.on('message', (answer) => server.send(answer, from, address, () => undefined))
    }
    client.timer.refresh()
    client.socket.send(message, port.containerPort, target, () => undefined)
  })
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.bind({ address: host, port: port.hostPort, exclusive: true }, () => {
      server.on('error', () => undefined)
      resolve({
        port,
        close: () => {
          server.close()
          for (const key of [...clients.keys()]) forget(key)
        },
      })
    })
  })
}
