import { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { socketPair } from '@coracle/sys'
import { createApiServer } from '../api/server.js'
import { openHostEngine } from '../engine/open.js'

/**
 * Hosts an engine in this process, behind an API server that nobody else can reach.
 * @returns a function that makes one connection to it: one half of a socket pair
 */
export async function hostEngine(): Promise<() => Duplex> {
  const server = createApiServer(await openHostEngine())
  return () => {
    const [ours, theirs] = socketPair()
    server.emit('connection', socketOf(theirs.release()))
    return socketOf(ours.release())
  }
}

function socketOf(fd: number): Socket {
  return new Socket({ fd, readable: true, writable: true, allowHalfOpen: true })
}
