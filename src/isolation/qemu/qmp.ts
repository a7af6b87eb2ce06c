import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { CoracleError } from '../../errors.js'

/** An answer is longer than this only where something is wrong. */
const MAX_LINE = 64 * 1024

interface Waiting {
  readonly resolve: (answer: unknown) => void
  readonly reject: (error: Error) => void
}

/**
 * QEMU's control protocol (QMP, its docs/interop/qmp-spec): one JSON object a line, answers in the order of the
 * commands, events at any time, which are passed over.
 */
export class Qmp implements Disposable {
  readonly #socket: Socket
  readonly #waiting: Waiting[] = []
  #text = ''
  #closed = false

  private constructor(socket: Socket) {
    this.#socket = socket
    socket.setEncoding('utf8').on('data', (text: string) => this.#take(text))
    socket.on('error', () => this.#close()).on('close', () => this.#close())
  }

  /** @param path of its socket @throws CoracleError NOT_RUNNING */
  static async connect(path: string): Promise<Qmp> {
    const socket = connect(path)
    try {
      await once(socket, 'connect')
    } catch (cause) {
      throw new CoracleError('NOT_RUNNING', 'QEMU does not listen: it is starting, or has ended', { cause })
    }
    const qmp = new Qmp(socket)
    await qmp.execute('qmp_capabilities')
    return qmp
  }

  /** @throws CoracleError NOT_RUNNING where QEMU ends meanwhile, INTERNAL with what it has to say */
  execute(command: string, values: object = {}): Promise<unknown> {
    if (this.#closed) return Promise.reject(ended())
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: values })}\n`)
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }))
  }

  [Symbol.dispose](): void {
    this.#socket.destroy()
  }

  #take(text: string): void {
    const lines = (this.#text + text).split('\n')
    this.#text = lines.pop()!
    if (this.#text.length > MAX_LINE) this.#socket.destroy()
    for (const line of lines) {
      let message: { return?: unknown; error?: { desc?: unknown } }
      try {
        message = JSON.parse(line) as typeof message
      } catch {
        this.#socket.destroy()
        return
      }
      if ('return' in message) this.#waiting.shift()?.resolve(message.return)
      else if (message.error)
        this.#waiting
          .shift()
          ?.reject(new CoracleError('INTERNAL', `QEMU refused: ${String(message.error.desc)}`))
    }
  }

  #close(): void {
    this.#closed = true
    for (const { reject } of this.#waiting.splice(0)) reject(ended())
  }
}

const ended = (): CoracleError => new CoracleError('NOT_RUNNING', 'QEMU has ended')
