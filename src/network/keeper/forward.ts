import { randomInt } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { connect } from 'node:net'

const PORT = 53
/** How long one resolver is waited for, in ms. */
const PATIENCE = 2_500
/** Questions on their way at a time: a container that floods is not let into our memory. */
const MAX_PENDING = 512
const MAX_MESSAGE = 65_535

let pending = 0

/**
 * Asks others, one after the other, until one answers. The answer is passed on as it is but for its id.
 * @param servers addresses @param tcp ask by TCP, as the client did
 * @returns undefined where none answers, or too many wait already
 */
export async function forward(
  message: Buffer,
  servers: readonly string[],
  tcp: boolean,
): Promise<Buffer | undefined> {
  if (pending >= MAX_PENDING) return undefined
  pending++
  try {
    const asked = Buffer.from(message)
    const id = randomInt(0x10000)
    asked.writeUInt16BE(id, 0)
    for (const server of servers) {
      const answer = await (tcp ? byTcp(asked, server) : byUdp(asked, server)).catch(() => undefined)
      if (!answer || answer.length < 12 || answer.readUInt16BE(0) !== id) continue
      answer.writeUInt16BE(message.readUInt16BE(0), 0)
      return answer
    }
    return undefined
  } finally {
    pending--
  }
}

/** A socket, and so a port, of its own for each question: what does not come from the one asked is not heard. */
function byUdp(message: Buffer, server: string): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const socket = createSocket(server.includes(':') ? 'udp6' : 'udp4')
    const timer = setTimeout(() => end(new Error('no answer')), PATIENCE)
    const end = (result: Buffer | Error): void => {
      clearTimeout(timer)
      socket.close()
      if (result instanceof Error) reject(result)
      else resolve(result)
    }
    socket.on('error', end)
    socket.on('message', (answer) => {
      if (answer.length >= 2 && answer.readUInt16BE(0) === message.readUInt16BE(0)) end(Buffer.from(answer))
    })
    socket.connect(PORT, server, () => socket.send(message))
  })
}

function byTcp(message: Buffer, server: string): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: server, port: PORT })
    const parser = new TcpFrames()
    socket.setTimeout(PATIENCE, () => socket.destroy(new Error('no answer')))
    socket.on('error', reject).on('close', () => reject(new Error('no answer')))
    socket.on('data', (chunk) => {
      const [answer] = parser.push(chunk)
      if (!answer) return
      resolve(answer)
      socket.destroy()
    })
    socket.write(framed(message))
  })
}

/** A message as TCP carries it: behind its length (RFC 1035 §4.2.2). */
export function framed(message: Buffer): Buffer {
  const length = Buffer.alloc(2)
  length.writeUInt16BE(message.length)
  return Buffer.concat([length, message])
}

/** Cuts a TCP stream into messages. It never holds more than one and a piece. */
export class TcpFrames {
  #held = Buffer.alloc(0)

  push(chunk: Buffer): Buffer[] {
    this.#held = Buffer.concat([this.#held, chunk])
    const found: Buffer[] = []
    while (this.#held.length >= 2) {
      const end = 2 + this.#held.readUInt16BE(0)
      if (this.#held.length < end || end > 2 + MAX_MESSAGE) break
      found.push(Buffer.from(this.#held.subarray(2, end)))
      this.#held = this.#held.subarray(end)
    }
    return found
  }
}
