import { createHash } from 'node:crypto'
import { lookup as resolveName } from 'node:dns'
import { open } from 'node:fs/promises'
import { Agent as PlainAgent, request as plainRequest, type IncomingMessage } from 'node:http'
import { Agent as TlsAgent, request as tlsRequest } from 'node:https'
import { type LookupFunction, isIP } from 'node:net'
import { CoracleError } from '../../errors.js'
import { literalOf, whyNotTo } from './reach.js'

/** Bytes of one file that ADD fetches, at most. */
const MAX_BYTES = 16 * 1024 ** 3
/** Redirects that are followed one after the other. */
const REDIRECTS = 10
/** A server that sends nothing for so long has stalled, in ms. */
const STALL = 60_000

export interface DownloadOptions {
  /** The build is on the host's network: it may reach all that the host does. */
  readonly anywhere: boolean
  readonly signal: AbortSignal
  /** Bytes at most. @default 16 GiB */
  readonly limit?: number
  /** Milliseconds without a byte. @default a minute */
  readonly stall?: number
}

/** A file that was fetched. */
export interface Download {
  readonly size: number
  /** SHA-256, in hexadecimal. */
  readonly digest: string
  /** Of its Last-Modified, seconds since 1970; 0 where the server does not say. */
  readonly mtime: number
}

/**
 * Fetches a file for ADD into a new file of ours. The host does this, so what an untrusted Dockerfile can name is
 * bounded by what its RUNs could reach.
 * @throws CoracleError BUILD_FAILED, INVALID_ARGUMENT for an address that is not to be fetched
 */
export async function download(address: string, path: string, options: DownloadOptions): Promise<Download> {
  const { signal, limit = MAX_BYTES } = options
  const failed = (why: string): CoracleError =>
    new CoracleError('BUILD_FAILED', `cannot fetch ${address.slice(0, 256)}: ${why}`)
  const agents = { 'http:': new PlainAgent(), 'https:': new TlsAgent() }
  const file = await open(path, 'wx', 0o600)
  try {
    const response = await follow(address, agents, options, failed)
    const hash = createHash('sha256')
    let size = 0
    for await (const chunk of response as AsyncIterable<Buffer>) {
      if ((size += chunk.length) > limit) throw failed(`it is longer than ${limit} bytes`)
      hash.update(chunk)
      await file.writev([chunk])
    }
    const told = response.headers['content-length']
    if (told !== undefined && Number(told) !== size) throw failed(`it ended after ${size} of ${told} bytes`)
    const mtime = Math.floor(Date.parse(response.headers['last-modified'] ?? '') / 1000)
    return { size, digest: hash.digest('hex'), mtime: mtime > 0 ? mtime : 0 }
  } catch (error) {
    signal.throwIfAborted()
    if (error instanceof CoracleError) throw error
    throw failed((error as NodeJS.ErrnoException).code ?? (error as Error).message)
  } finally {
    await file.close()
    for (const agent of Object.values(agents)) agent.destroy()
  }
}

type Agents = Readonly<Record<'http:' | 'https:', PlainAgent>>

async function follow(
  address: string,
  agents: Agents,
  options: DownloadOptions,
  failed: (why: string) => CoracleError,
): Promise<IncomingMessage> {
  let url = new URL(address)
  for (let redirects = 0; redirects <= REDIRECTS; redirects++) {
    const { protocol } = url
    if ((protocol !== 'http:' && protocol !== 'https:') || url.username !== '' || url.password !== '')
      throw failed('only plain http:// and https:// addresses are fetched, without a name and password')
    const response = await once(url, agents[protocol], options, failed)
    const { statusCode = 0, headers } = response
    if (statusCode === 200) return response
    response.destroy()
    if (![301, 302, 303, 307, 308].includes(statusCode)) throw failed(`the server answers ${statusCode}`)
    if (headers.location === undefined || !URL.canParse(headers.location, url.href))
      throw failed('it redirects to nowhere')
    const next = new URL(headers.location, url)
    if (protocol === 'https:' && next.protocol === 'http:')
      throw failed('it redirects from HTTPS to plain HTTP')
    url = next
  }
  throw failed('it redirects without end')
}

function once(
  url: URL,
  agent: PlainAgent,
  { anywhere, signal, stall = STALL }: DownloadOptions,
  failed: (why: string) => CoracleError,
): Promise<IncomingMessage> {
  const refusalOf = (ip: string): CoracleError | undefined => {
    const why = anywhere ? undefined : whyNotTo(ip)
    return why === undefined ? undefined : failed(why)
  }
  const literal = literalOf(url)
  const refusal = isIP(literal) === 0 ? undefined : refusalOf(literal)
  if (refusal) return Promise.reject(refusal)
  // What the name stands for is looked at where it is used: a second look-up could say otherwise.
  const lookup: LookupFunction = (name, lookupOptions, done) => {
    resolveName(name, { ...lookupOptions, all: true }, (error, found) => {
      const bad = error ? undefined : found.map((each) => refusalOf(each.address)).find((each) => each)
      if (error || found.length === 0) done(error ?? failed('there is no such host'), [])
      else if (bad) done(bad, [])
      else if (lookupOptions.all) done(null, found)
      else done(null, found[0]!.address, found[0]!.family)
    })
  }
  const send = url.protocol === 'https:' ? tlsRequest : plainRequest
  return new Promise((resolve, reject) => {
    const request = send(url, {
      agent,
      lookup,
      signal,
      // A file is meant as it lies there: no compression on the way.
      headers: { 'User-Agent': 'coracle', Accept: '*/*', 'Accept-Encoding': 'identity' },
    })
    let answer: IncomingMessage | undefined
    request.setTimeout(stall, () => {
      const error = failed(`the server sent nothing for ${stall / 1000} s`)
      answer?.destroy(error)
      request.destroy(error)
    })
    request.on('response', (response) => {
      answer = response
      response.on('error', () => undefined)
      resolve(response)
    })
    request.on('error', reject)
    request.end()
  })
}
