import type { Duplex } from 'node:stream'

/**
 * Carries bytes both ways; each end is passed on, and a side that breaks takes the other along. What breaks once it has
 * said all it had to say breaks nothing: the socket may still have the tail of that to write.
 */
export function carry(socket: Duplex, stream: Duplex): void {
  const broken = (): void => {
    if (!stream.readableEnded) socket.destroy()
  }
  stream.on('error', broken)
  stream.on('close', broken)
  socket.on('close', () => stream.destroy())
  socket.pipe(stream).pipe(socket)
}
