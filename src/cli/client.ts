import { Agent, request as httpRequest, type ClientRequest, type IncomingMessage } from 'node:http'
import { Socket, connect as connectSocket } from 'node:net'
import { join } from 'node:path'
import type { Duplex, Readable } from 'node:stream'
import { CoracleError, ERRORS, type ErrorCode } from '../errors.js'
import { paths } from '../paths.js'
import { type Dial, dialOf, type Endpoint } from './endpoint.js'

const BASE = '/v1.51'

interface RequestOptions {
  readonly query?: Readonly<Record<string, string | number | boolean | undefined>>
  readonly body?: unknown
  /** A body that is sent as it is, `application/x-tar`. */
  readonly upload?: Readable
  readonly headers?: Readonly<Record<string, string>>
  readonly signal?: AbortSignal
}

/** The socket on which a daemon of this host listens. */
export const defaultSocket = (): string => join(paths.run, 'coracle.sock')

/**
 * The API at `endpoint`; without one, of this host's daemon; where none answers, of
 * an engine in this very process, reached over socket pairs that have no name and leave nothing behind.
 * @throws CoracleError DAEMON_UNREACHABLE
 */
export async function connect(endpoint: Endpoint | undefined): Promise<Client> {
  if (endpoint) return new Client(dialOf(endpoint), endpoint.host)
  const path = defaultSocket()
  if (await answers(path)) return new Client(() => connectSocket({ path, allowHalfOpen: true }), path)
  const { hostEngine } = await import('./host-engine.js')
  const { dial, idle } = await hostEngine()
  return new Client(dial, 'this process', idle)
}

/** Whether something listens there. A socket that a dead daemon left does not count. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket: Socket = connectSocket(path)
    socket.on('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.on('error', () => resolve(false))
  })
}

/** Speaks Docker's Engine API. Errors are the server's, as CoracleError. */
export class Client {
  readonly #dial: Dial
  readonly #name: string
  readonly #agent: Agent
  /** Resolves when an engine in this process is done with what was asked of it, also where that was called off. */
  readonly idle: () => Promise<void>

  constructor(dial: Dial, name: string, idle = (): Promise<void> => Promise.resolve()) {
    this.idle = idle
    this.#dial = dial
    this.#name = name
    this.#agent = new Agent({ keepAlive: true })
    // The agent's own way to a socket: any stream will do.
    Object.assign(this.#agent, { createConnection: () => dial() })
  }

  close(): void {
    this.#agent.destroy()
  }

  /** @returns the answer's JSON, undefined where it has none. 304 counts as done. */
  async json<T>(method: string, path: string, options: RequestOptions = {}): Promise<T> {
    const response = await this.stream(method, path, options)
    const text = await readAll(response)
    return (text === '' ? undefined : JSON.parse(text)) as T
  }

  /** @returns the answer, its body unread. */
  async stream(method: string, path: string, options: RequestOptions = {}): Promise<IncomingMessage> {
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const request = this.#request(method, path, options)
      request.on('response', resolve).on('error', (error) => reject(this.#failure(error, options.signal)))
      if (options.upload) {
        const { upload } = options
        upload.on('error', (error) => request.destroy(error))
        upload.pipe(request)
      } else request.end(options.body === undefined ? undefined : JSON.stringify(options.body))
    })
    if (response.statusCode! < 400) return response
    throw errorOf(response.statusCode!, await readAll(response))
  }

  /** Takes a connection over. @returns its raw bytes, and whether they are frames */
  async hijack(
    path: string,
    query: NonNullable<RequestOptions['query']>,
    body?: object,
  ): Promise<{ socket: Duplex; multiplexed: boolean }> {
    return new Promise((resolve, reject) => {
      const request = this.#request('POST', path, { query, body }, true)
      request.setHeader('Connection', 'Upgrade')
      request.setHeader('Upgrade', 'tcp')
      request.on('upgrade', (response, socket, head) => {
        if (head.length > 0) socket.unshift(head)
        const multiplexed = /multiplexed/.test(response.headers['content-type'] ?? '')
        resolve({ socket, multiplexed })
      })
      request.on('response', (response) => {
        readAll(response).then((text) => reject(errorOf(response.statusCode!, text)), reject)
      })
      request.on('error', (error) => reject(this.#failure(error, undefined)))
      request.end(body === undefined ? undefined : JSON.stringify(body))
    })
  }

  #request(
    method: string,
    path: string,
    { query, body, upload, headers, signal }: RequestOptions,
    isUpgrade = false,
  ): ClientRequest {
    const values = Object.entries(query ?? {}).filter(([, value]) => value !== undefined)
    const text = new URLSearchParams(
      values.map(([name, value]): [string, string] => [name, String(value)]),
    ).toString()
    const length = body === undefined ? 0 : Buffer.byteLength(JSON.stringify(body))
    return httpRequest({
      method,
      path: `${BASE}${path}${text === '' ? '' : `${path.includes('?') ? '&' : '?'}${text}`}`,
      headers: {
        Host: 'coracle',
        ...(upload
          ? { 'Content-Type': 'application/x-tar' }
          : method === 'GET'
            ? {}
            : { 'Content-Length': length }),
        ...(body === undefined ? {} : { 'Content-Type': 'application/json' }),
        ...headers,
      },
      ...(isUpgrade ? { createConnection: this.#dial } : { agent: this.#agent }),
      ...(signal ? { signal } : {}),
    })
  }

  #failure(error: Error, signal: AbortSignal | undefined): Error {
    if (signal?.aborted || error instanceof CoracleError) return error
    const { code } = error as NodeJS.ErrnoException
    return new CoracleError(
      'DAEMON_UNREACHABLE',
      `cannot reach the engine at ${this.#name} (${code ?? error.message}): is it running?`,
      { cause: error },
    )
  }
}

/** The path of a container's endpoint. */
export const containerPath = (name: string, verb = ''): string =>
  `/containers/${encodeURIComponent(name)}${verb === '' ? '' : `/${verb}`}`

/** The path of a network's endpoint. */
export const networkPath = (name: string, verb = ''): string =>
  `/networks/${encodeURIComponent(name)}${verb === '' ? '' : `/${verb}`}`

/** The path of a volume's endpoint. */
export const volumePath = (name: string): string => `/volumes/${encodeURIComponent(name)}`

/** The path of an image's endpoint. */
export const imagePath = (name: string, verb = ''): string =>
  `/images/${name.split('/').map(encodeURIComponent).join('/')}${verb === '' ? '' : `/${verb}`}`

async function readAll(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = []
  for await (const chunk of response as AsyncIterable<Buffer>) chunks.push(chunk)
  return Buffer.concat(chunks).toString('utf8')
}

function errorOf(status: number, text: string): CoracleError {
  let message = text.trim()
  let code: unknown
  try {
    const body = JSON.parse(text) as { message?: unknown; code?: unknown }
    if (typeof body.message === 'string') message = body.message
    code = body.code
  } catch {
    // A proxy's page, say.
  }
  const line = message.split('\n')[0] || `the engine answered ${status}`
  if (typeof code === 'string' && Object.hasOwn(ERRORS, code))
    return new CoracleError(code as ErrorCode, line)
  return new CoracleError(guess(status, line), line)
}

/** Docker's own daemon gives no code: its words tell what became of a command. */
function guess(status: number, message: string): ErrorCode {
  if (/executable file not found|no such file or directory/.test(message)) return 'COMMAND_NOT_FOUND'
  if (/permission denied|is a directory/.test(message)) return 'COMMAND_NOT_EXECUTABLE'
  if (status === 404) return /image/i.test(message) ? 'NO_SUCH_IMAGE' : 'NO_SUCH_CONTAINER'
  if (status === 409) return 'CONFLICT'
  if (status === 501) return 'NOT_IMPLEMENTED'
  return status < 500 ? 'INVALID_ARGUMENT' : 'INTERNAL'
}
