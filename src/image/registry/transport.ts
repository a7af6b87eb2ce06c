import { Agent as PlainAgent, request as plainRequest, type IncomingMessage } from 'node:http'
import { Agent as TlsAgent, request as tlsRequest } from 'node:https'
import type { Readable } from 'node:stream'
import { rootCertificates } from 'node:tls'
import { isInsecure, type RegistryConfig } from './config.js'
import { Transient, registryError, type Patience } from './failure.js'

/** Redirects that are followed one after the other. */
const REDIRECTS = 5
/** Bytes of an answer that are read to keep the connection, rather than closing it. */
const DISCARDED = 64 * 1024
const REDIRECT_STATUS: readonly (number | undefined)[] = [301, 302, 303, 307, 308]

/** One request. */
export interface Exchange {
  readonly method: 'GET' | 'HEAD' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'
  readonly url: URL
  readonly headers?: Readonly<Record<string, string | number>>
  readonly body?: Buffer | Readable | undefined
  readonly signal?: AbortSignal | undefined
}

/** Failures of a connection that another try may not meet. */
const PASSING = new Set([
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  'EAI_AGAIN',
  'ENETUNREACH',
  'EHOSTUNREACH',
  'HPE_INVALID_CONSTANT',
])

/** HTTP to registries: bounded redirects, no secrets to strangers, no plain HTTP unless allowed, no stalls. */
export class Transport {
  readonly #config: RegistryConfig
  readonly #patience: Patience
  readonly #agents = new Map<string, PlainAgent>()

  constructor(config: RegistryConfig, patience: Patience) {
    this.#config = config
    this.#patience = patience
  }

  /** Closes the connections that are kept. */
  close(): void {
    for (const agent of this.#agents.values()) agent.destroy()
    this.#agents.clear()
  }

  /**
   * Sends a request; redirects of GET and HEAD are followed, and lose the Authorization where they leave the host.
   * @returns the answer, its body unread: the caller reads or discards it
   * @throws Transient, CoracleError REGISTRY_FAILED
   */
  async send(exchange: Exchange): Promise<IncomingMessage> {
    let { url } = exchange
    let headers = { ...exchange.headers }
    for (let redirects = 0; ; redirects++) {
      const response = await this.#once({ ...exchange, url, headers })
      const readOnly = exchange.method === 'GET' || exchange.method === 'HEAD'
      if (!readOnly || !REDIRECT_STATUS.includes(response.statusCode)) return response
      const { location } = response.headers
      discard(response)
      if (redirects === REDIRECTS) throw registryError(url.host, 'it redirects without end')
      if (location === undefined || !URL.canParse(location, url.href))
        throw registryError(url.host, 'it redirects to nowhere')
      const next = new URL(location, url)
      this.check(next, url)
      if (next.origin !== url.origin)
        headers = Object.fromEntries(
          Object.entries(headers).filter(([name]) => name.toLowerCase() !== 'authorization'),
        )
      url = next
    }
  }

  /**
   * Whether an address that a registry named may be used.
   * @throws CoracleError REGISTRY_FAILED for other protocols, for names and passwords in it, for plain HTTP from HTTPS
   */
  check(next: URL, from: URL): void {
    const known = next.protocol === 'https:' || next.protocol === 'http:'
    if (!known || next.username !== '' || next.password !== '')
      throw registryError(from.host, `it leads to an address that is not to be used (${next.protocol})`)
    if (next.protocol === 'http:' && from.protocol === 'https:' && !isInsecure(next.host, this.#config))
      throw registryError(from.host, `it leads from HTTPS to plain HTTP at ${next.host}`)
  }

  /** Finds out whether a registry that may speak plain HTTP does. */
  async protocolOf(host: string, signal?: AbortSignal): Promise<'http:' | 'https:'> {
    if (!isInsecure(host, this.#config)) return 'https:'
    try {
      discard(await this.#once({ method: 'GET', url: new URL(`https://${host}/v2/`), signal }))
      return 'https:'
    } catch (error) {
      const { code } = ((error as Error).cause ?? error) as NodeJS.ErrnoException
      if (code === 'EPROTO' || code === 'ECONNRESET' || code?.startsWith('ERR_SSL_')) return 'http:'
      throw error
    }
  }

  #once({ method, url, headers, body, signal }: Exchange): Promise<IncomingMessage> {
    const send = url.protocol === 'https:' ? tlsRequest : plainRequest
    return new Promise((resolve, reject) => {
      const length = body === undefined ? 0 : Buffer.isBuffer(body) ? body.length : undefined
      const request = send(url, {
        method,
        agent: this.#agent(url),
        headers: {
          'User-Agent': 'coracle',
          Accept: '*/*',
          ...(method === 'GET' || method === 'HEAD' || length === undefined
            ? {}
            : { 'Content-Length': length }),
          ...headers,
        },
        ...(signal ? { signal } : {}),
      })
      // Counts from the last byte in either direction, before the answer and in its body.
      request.setTimeout(this.#patience.stall, () => {
        const error = new Transient(`it sent nothing for ${this.#patience.stall / 1000} s`)
        request.destroy(error)
        answer?.destroy(error)
      })
      let answer: IncomingMessage | undefined
      request.on('response', (response) => {
        answer = response
        // Whoever reads it hears of it there; an answer that nobody reads any more may break.
        response.on('error', () => undefined)
        resolve(response)
      })
      request.on('error', (error) => {
        if (signal?.aborted) reject(signal.reason as Error)
        else reject(connectionError(error, url))
      })
      if (body === undefined || Buffer.isBuffer(body)) request.end(body)
      else {
        body.on('error', (error) => request.destroy(error))
        request.on('close', () => body.destroy())
        body.pipe(request)
      }
    })
  }

  #agent(url: URL): PlainAgent {
    const known = this.#agents.get(url.origin)
    if (known) return known
    const authority = this.#config.authorities[url.host] ?? this.#config.authorities[url.hostname]
    const options = { keepAlive: true, maxSockets: 8 }
    const agent =
      url.protocol === 'http:'
        ? new PlainAgent(options)
        : new TlsAgent({
            ...options,
            minVersion: 'TLSv1.2',
            rejectUnauthorized: !isInsecure(url.host, this.#config),
            ...(authority === undefined ? {} : { ca: [...rootCertificates, authority] }),
          })
    this.#agents.set(url.origin, agent)
    return agent
  }
}

/** Gives an answer's body up: short ones are read, so that the connection can be used again. */
export function discard(response: IncomingMessage): void {
  const length = Number(response.headers['content-length'] ?? NaN)
  if (length <= DISCARDED || response.statusCode === 204) response.resume()
  else response.destroy()
}

/** Reads a body that may have so many bytes. @throws Transient, CoracleError REGISTRY_FAILED where there are more */
export async function readBody(
  response: IncomingMessage,
  limit: number,
  where: string,
  signal?: AbortSignal,
): Promise<Buffer> {
  const chunks: Buffer[] = []
  let length = 0
  try {
    for await (const chunk of response as AsyncIterable<Buffer>) {
      length += chunk.length
      if (length > limit) {
        response.destroy()
        throw registryError(where, `its answer is longer than the ${limit} bytes that are accepted`)
      }
      chunks.push(chunk)
    }
  } catch (error) {
    signal?.throwIfAborted()
    throw bodyError(error)
  }
  return Buffer.concat(chunks)
}

/** What became of a connection in the middle of a body, as an error that says so. */
export function bodyError(error: unknown): unknown {
  if (error instanceof Transient) return error
  const { code } = error as NodeJS.ErrnoException
  if (
    code !== undefined &&
    (PASSING.has(code) || code.startsWith('HPE_') || code === 'ERR_STREAM_PREMATURE_CLOSE')
  )
    return new Transient('the connection broke', undefined, { cause: error })
  return error
}

function connectionError(error: Error, url: URL): Error {
  if (error instanceof Transient) return error
  const { code, message } = error as NodeJS.ErrnoException
  if (code !== undefined && PASSING.has(code))
    return new Transient(`cannot reach it (${code})`, undefined, { cause: error })
  const why = code?.startsWith('HPE_')
    ? `it does not speak HTTP (${code})`
    : code === 'ENOTFOUND'
      ? 'there is no such host'
      : code === 'ECONNREFUSED'
        ? 'nothing answers there (ECONNREFUSED)'
        : /CERT|SIGNATURE|ISSUER|ALTNAME/.test(code ?? '')
          ? `its certificate is not accepted (${code}): name its authority under "registry-authorities" in registries.json`
          : code === 'EPROTO'
            ? 'it does not speak TLS: name it under "insecure-registries" in registries.json to use plain HTTP'
            : `cannot reach it (${code ?? message})`
  return registryError(url.host, why, 'REGISTRY_FAILED', { cause: error })
}
