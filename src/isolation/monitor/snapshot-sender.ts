import { once } from 'node:events'
import type { Socket } from 'node:net'
import type { SnapshotSink } from '../../vmm/machine.js'
import { BEGIN, END, FAILED, MEMORY, SNAPSHOT_FRAME, STATE, describeError } from '../protocol.js'

/**
 * Sends a snapshot as protocol.ts has it. Never rejects: what went wrong is told there, and where nobody is left to be
 * told, all goes on as if nothing had been asked.
 */
export async function sendSnapshot(
  socket: Socket,
  save: (sink: SnapshotSink) => Promise<void>,
): Promise<void> {
  const gone = new AbortController()
  const { signal } = gone
  const leave = (): void => gone.abort()
  socket.on('close', leave).on('end', leave)
  const send = async (kind: number, offset = 0, bytes: Uint8Array = new Uint8Array()): Promise<void> => {
    signal.throwIfAborted()
    const header = Buffer.alloc(SNAPSHOT_FRAME)
    header.writeUInt32LE(kind, 0)
    header.writeUInt32LE(bytes.length, 4)
    header.writeBigUInt64LE(BigInt(offset), 8)
    socket.write(header)
    if (!socket.write(bytes)) await once(socket, 'drain', { signal })
  }
  try {
    await save({
      begin: (size) => void send(BEGIN, size).catch(() => undefined),
      memory: (offset, bytes) => send(MEMORY, offset, bytes),
      state: async (bytes) => {
        const copied = once(socket, 'data', { signal })
        copied.catch(() => undefined)
        socket.resume()
        await send(STATE, 0, bytes)
        await copied
      },
    })
    await send(END)
  } catch (error) {
    await send(FAILED, 0, Buffer.from(JSON.stringify(describeError(error)))).catch(() => undefined)
  }
}
