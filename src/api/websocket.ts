import type { Duplex } from 'node:stream'
import { createWebSocketStream, WebSocketServer } from 'ws'
import { CoracleError } from '../errors.js'
import type { Upgraded } from './router.js'

/** Bytes of a message at most. */
const MAX_MESSAGE = 1024 ** 2

/**
 * Takes a connection over as a websocket (RFC 6455).
 * @returns the bytes of its messages, whatever their type; what is written goes in messages of bytes
 * @throws CoracleError INVALID_ARGUMENT where the request is none for a websocket
 */
export function acceptWebsocket({ request, socket, head }: Upgraded): Promise<Duplex> {
  const server = new WebSocketServer({ noServer: true, maxPayload: MAX_MESSAGE, perMessageDeflate: false })
  return new Promise((resolve, reject) => {
    server.on('wsClientError', ({ message }) =>
      reject(new CoracleError('INVALID_ARGUMENT', `no websocket: ${message}`)),
    )
    server.handleUpgrade(request, socket, head, (websocket) => {
      const stream = createWebSocketStream(websocket)
      // A peer that breaks the protocol ends its own connection.
      stream.on('error', () => stream.destroy())
      resolve(stream)
    })
  })
}
