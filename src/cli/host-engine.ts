import { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { socketPair } from '@coracle/sys'
import { createApiServer } from '../api/server.js'
import { openHostEngine } from '../engine/open.js'

/**
 * Hosts an engine in this process, behind an API server that nobody else can reach.
 * @returns `dial` makes one connection to it, one half of a socket pair; `idle` waits for what it does now
 */
export async function hostEngine(): Promise<{ dial: () => Duplex; idle: () => Promise<void> }> {
  const server = createApiServer(await openHostEngine())
  const dial = (): Duplex => {
    const [ours, theirs] = socketPair()
    server.emit('connection', socketOf(theirs.release()))
    return socketOf(ours.release())
  }
  return { dial, idle: () => server.idle() }
}

function socketOf(fd: number): Socket {
  return new Socket({ fd, readable: true, writable: true, allowHalfOpen: true })
}
