import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { open } from 'node:fs/promises'
import type { IncomingMessage } from 'node:http'
import type { Readable } from 'node:stream'
import { printable } from '../archive-error.js'
import type { StagedBlob } from '../archive.js'
import { isDigest } from '../reference.js'
import { Authenticator, type RegistryAuth } from './auth.js'
import type { Endpoint } from './config.js'
import { Retry, Transient, registryError, retryAfter, type Patience } from './failure.js'
import { bodyError, discard, readBody, type Exchange, type Transport } from './transport.js'

/** What manifests we ask for. */
const ACCEPTED = [
  'application/vnd.oci.image.index.v1+json',
  'application/vnd.oci.image.manifest.v1+json',
  'application/vnd.docker.distribution.manifest.list.v2+json',
  'application/vnd.docker.distribution.manifest.v2+json',
].join(', ')
const ERROR_BODY = 64 * 1024
/** Bytes that count as progress: fewer, and a connection that broke counts as a failure. */
const PROGRESS = 256 * 1024
/** Bytes of all pages of a list of tags, and how many pages there may be. */
const TAG_PAGES = 64
const TAG_BODY = 1024 * 1024

/** A manifest or an index as a registry gave it: its digest is that of the bytes. */
export interface RawManifest {
  readonly bytes: Buffer
  readonly digest: string
  readonly mediaType: string
}

interface Request {
  readonly method: Exchange['method']
  /** Under `/v2/<repository>/`, or a whole address that the registry named. */
  readonly path: string | URL
  readonly headers?: Exchange['headers']
  /** Made anew for each try. */
  readonly body?: () => Buffer | Readable
  readonly push?: boolean
  /** A further repository whose blobs are to be read. */
  readonly from?: string
  readonly signal?: AbortSignal | undefined
}

/** One repository of a registry, spoken to by the OCI distribution specification 1.1. */
export class Repository {
  readonly endpoint: Endpoint
  readonly #transport: Transport
  readonly #authenticator: Authenticator
  readonly #patience: Patience
  readonly #root: URL
  readonly #name: string

  private constructor(
    endpoint: Endpoint,
    root: URL,
    transport: Transport,
    auth: RegistryAuth,
    patience: Patience,
  ) {
    this.endpoint = endpoint
    this.#root = root
    this.#transport = transport
    this.#authenticator = new Authenticator(transport, auth, endpoint.host)
    this.#patience = patience
    this.#name = `${endpoint.host}/${endpoint.repository}`
  }

  /** @throws CoracleError REGISTRY_FAILED where nothing answers there */
  static async open(
    endpoint: Endpoint,
    transport: Transport,
    auth: RegistryAuth,
    patience: Patience,
    signal?: AbortSignal,
  ): Promise<Repository> {
    const { host, prefix } = endpoint
    const retry = new Retry(patience, host)
    for (;;) {
      try {
        const protocol = endpoint.protocol ?? (await transport.protocolOf(host, signal))
        const root = new URL(`${protocol}//${host}${prefix}/v2/`)
        return new Repository(endpoint, root, transport, auth, patience)
      } catch (error) {
        await retry.pause(error, signal)
      }
    }
  }

  /** Whether the registry accepts the credentials. @throws CoracleError REGISTRY_DENIED, REGISTRY_FAILED */
  async login(signal?: AbortSignal): Promise<void> {
    const response = await this.#send({ method: 'GET', path: this.#root, signal }, [])
    if (response.statusCode !== 200) throw await this.#failure(response, 'a login')
    discard(response)
  }

  /**
   * @param reference a tag or a digest
   * @param limit bytes that it may have
   * @throws CoracleError REGISTRY_NOT_FOUND, REGISTRY_DENIED, REGISTRY_FAILED
   */
  async manifest(reference: string, limit: number, signal?: AbortSignal): Promise<RawManifest> {
    return this.#retrying(signal, async () => {
      const response = await this.#attempt({
        method: 'GET',
        path: `manifests/${reference}`,
        headers: { Accept: ACCEPTED },
        signal,
      })
      if (response.statusCode !== 200) throw await this.#failure(response, `manifest ${reference}`)
      const what = `${this.#name}: manifest ${reference}`
      const bytes = await readBody(response, limit, what, signal)
      const digest = sha256(bytes)
      const said = response.headers['docker-content-digest']
      if (isDigest(reference) && digest !== reference)
        throw registryError(what, `its content is another, ${digest}`)
      if (typeof said === 'string' && isDigest(said) && said !== digest)
        throw registryError(what, `the registry says ${said}, but its content is ${digest}`)
      const mediaType = (response.headers['content-type'] ?? '').split(';', 1)[0]!.trim().toLowerCase()
      return { bytes, digest, mediaType }
    })
  }

  /** The names of all tags. @throws CoracleError REGISTRY_NOT_FOUND, REGISTRY_DENIED, REGISTRY_FAILED */
  async tags(signal?: AbortSignal): Promise<string[]> {
    const tags: string[] = []
    let path: string | URL = 'tags/list?n=1000'
    for (let page = 0; page < TAG_PAGES; page++) {
      const response: IncomingMessage = await this.#send({ method: 'GET', path, signal })
      if (response.statusCode !== 200) throw await this.#failure(response, 'the list of tags')
      const body = await readBody(response, TAG_BODY, this.#name, signal)
      const found = (parseJson(body) as { tags?: unknown } | undefined)?.tags ?? []
      if (!Array.isArray(found) || !found.every((tag) => typeof tag === 'string' && TAG.test(tag)))
        throw registryError(this.#name, 'its list of tags is none')
      tags.push(...(found as string[]))
      const next = /^<([^<>]+)>\s*;\s*rel="?next"?/.exec([response.headers.link].flat().join(','))?.[1]
      if (next === undefined || found.length === 0) return tags
      path = this.#location(next)
    }
    throw registryError(this.#name, 'its list of tags does not end')
  }

  /**
   * Downloads a blob into a new file, going on after broken connections. Its bytes are counted and their digest is
   * made as they come: not one more than `size` is taken.
   * @throws CoracleError REGISTRY_NOT_FOUND, REGISTRY_DENIED, REGISTRY_FAILED
   */
  async download(
    { digest, size }: { readonly digest: string; readonly size: number },
    path: string,
    onBytes: (bytes: number) => void,
    signal?: AbortSignal,
  ): Promise<StagedBlob> {
    const what = `${this.#name}: blob ${digest}`
    const retry = new Retry(this.#patience, what)
    const hash = createHash('sha256')
    const file = await open(path, 'wx')
    let have = 0
    let counted = 0
    try {
      while (have < size || size === 0) {
        try {
          for await (const chunk of await this.#blob(digest, have, size, signal)) {
            if (have + chunk.length > size)
              throw registryError(what, `it has more bytes than the ${size} that the manifest says`)
            hash.update(chunk)
            await file.writev([chunk], have)
            have += chunk.length
            onBytes(have)
          }
          if (size === 0) break
          if (have < size) throw new Transient(`it ended after ${have} of ${size} bytes`)
        } catch (error) {
          if (have - counted >= PROGRESS) {
            retry.reset()
            counted = have
          }
          await retry.pause(signal?.aborted ? error : bodyError(error), signal)
        }
      }
    } finally {
      await file.close()
    }
    const found = `sha256:${hash.digest('hex')}`
    if (found !== digest) throw registryError(what, `its content is another, ${found}`)
    return { path, digest, size }
  }

  /** A small blob, in memory. @param limit bytes that it may have */
  async smallBlob(
    { digest, size }: { readonly digest: string; readonly size: number },
    limit: number,
    signal?: AbortSignal,
  ): Promise<Buffer> {
    const what = `${this.#name}: blob ${digest}`
    if (size > limit) throw registryError(what, `${size} bytes, at most ${limit} are accepted`)
    return this.#retrying(signal, async () => {
      const response = await this.#attempt({ method: 'GET', path: `blobs/${digest}`, signal })
      if (response.statusCode !== 200) throw await this.#failure(response, `blob ${digest}`)
      const bytes = await readBody(response, size, what, signal)
      if (sha256(bytes) !== digest) throw registryError(what, `its content is another, ${sha256(bytes)}`)
      return bytes
    })
  }

  /** The bytes of a blob from `offset` on. */
  async #blob(
    digest: string,
    offset: number,
    size: number,
    signal: AbortSignal | undefined,
  ): Promise<AsyncIterable<Buffer>> {
    const response = await this.#attempt({
      method: 'GET',
      path: `blobs/${digest}`,
      headers: offset > 0 ? { Range: `bytes=${offset}-` } : {},
      signal,
    })
    const { statusCode: status, headers } = response
    const what = `${this.#name}: blob ${digest}`
    if (status === 206 && offset > 0) {
      const range = /^bytes (\d{1,16})-\d{1,16}\/(?:(\d{1,16})|\*)$/.exec(headers['content-range'] ?? '')
      if (range && Number(range[1]) === offset && (range[2] === undefined || Number(range[2]) === size))
        return response
      response.destroy()
      throw registryError(what, 'it was asked for a part and sent another')
    }
    if (status !== 200) throw await this.#failure(response, `blob ${digest}`)
    const length = headers['content-length']
    if (length !== undefined && Number(length) !== size) {
      response.destroy()
      throw registryError(what, `it has ${length.slice(0, 20)} bytes, but the manifest says ${size}`)
    }
    return offset === 0 ? response : skip(response, offset)
  }

  /** Whether the repository has a blob. */
  async has(digest: string, signal?: AbortSignal): Promise<boolean> {
    const response = await this.#send({ method: 'HEAD', path: `blobs/${digest}`, push: true, signal })
    discard(response)
    if (response.statusCode === 200) return true
    if (response.statusCode === 404) return false
    throw await this.#failure(response, `blob ${digest}`)
  }

  /**
   * Uploads a blob, or has the registry take it from another of its repositories.
   * @param from repositories of the registry that may have it
   * @returns how it came there
   * @throws CoracleError REGISTRY_DENIED, REGISTRY_FAILED
   */
  async upload(
    blob: StagedBlob,
    from: readonly string[],
    onBytes: (bytes: number) => void,
    signal?: AbortSignal,
  ): Promise<{ mountedFrom?: string }> {
    if (from[0] !== undefined) {
      const query = new URLSearchParams({ mount: blob.digest, from: from[0] })
      const response = await this.#send({
        method: 'POST',
        path: `blobs/uploads/?${query.toString()}`,
        push: true,
        from: from[0],
        signal,
      })
      discard(response)
      if (response.statusCode === 201) return { mountedFrom: from[0] }
      // 202: an upload began instead. It is put to use; a refusal to mount is no reason to stop.
      if (response.statusCode === 202) await this.#put(blob, response, onBytes, signal).catch(ignoreTransient)
      if (response.statusCode === 202 && (await this.has(blob.digest, signal))) return {}
    }
    const retry = new Retry(this.#patience, `${this.#name}: blob ${blob.digest}`)
    for (;;) {
      try {
        const begun = await this.#attempt({ method: 'POST', path: 'blobs/uploads/', push: true, signal })
        if (begun.statusCode !== 202) throw await this.#failure(begun, 'an upload')
        discard(begun)
        await this.#put(blob, begun, onBytes, signal)
        return {}
      } catch (error) {
        await retry.pause(error, signal)
      }
    }
  }

  async #put(
    { digest, path, size }: StagedBlob,
    begun: IncomingMessage,
    onBytes: (bytes: number) => void,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const url = this.#location(begun.headers.location)
    url.searchParams.set('digest', digest)
    const response = await this.#attempt({
      method: 'PUT',
      path: url,
      headers: { 'Content-Type': 'application/octet-stream', 'Content-Length': size },
      body: () => {
        let sent = 0
        const file = createReadStream(path, { highWaterMark: 256 * 1024 })
        file.on('data', (chunk) => onBytes((sent += chunk.length)))
        return file
      },
      push: true,
      signal,
    })
    if (response.statusCode !== 201) throw await this.#failure(response, `the upload of ${digest}`)
    discard(response)
  }

  /** @param reference a tag or the digest @throws CoracleError REGISTRY_DENIED, REGISTRY_FAILED */
  async putManifest(
    reference: string,
    bytes: Buffer,
    mediaType: string,
    signal?: AbortSignal,
  ): Promise<void> {
    const response = await this.#send({
      method: 'PUT',
      path: `manifests/${reference}`,
      headers: { 'Content-Type': mediaType },
      body: () => bytes,
      push: true,
      signal,
    })
    if (response.statusCode !== 201) throw await this.#failure(response, `manifest ${reference}`)
    discard(response)
  }

  /** An address that the registry named. */
  #location(location: string | undefined): URL {
    if (location === undefined || !URL.canParse(location, this.#root.href))
      throw registryError(this.#name, 'it names no address to go on with')
    const url = new URL(location, this.#root)
    this.#transport.check(url, this.#root)
    return url
  }

  #send(request: Request, scopes?: readonly string[]): Promise<IncomingMessage> {
    return this.#retrying(request.signal, () => this.#attempt(request, scopes))
  }

  async #retrying<T>(signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    const retry = new Retry(this.#patience, this.#name)
    for (;;) {
      try {
        return await work()
      } catch (error) {
        await retry.pause(error, signal)
      }
    }
  }

  /** One try, and after a 401 a second one with what the registry asks for. @throws Transient, CoracleError */
  async #attempt(
    { method, path, headers, body, push, from, signal }: Request,
    scopes: readonly string[] = this.#scopes(push ?? false, from),
  ): Promise<IncomingMessage> {
    const url = typeof path === 'string' ? new URL(`${this.endpoint.repository}/${path}`, this.#root) : path
    // What a registry named elsewhere is no business of its password.
    const own = url.origin === this.#root.origin
    const send = (authorization: string | undefined): Promise<IncomingMessage> =>
      this.#transport.send({
        method,
        url,
        headers: {
          ...headers,
          ...(authorization !== undefined && own ? { Authorization: authorization } : {}),
        },
        body: body?.(),
        signal,
      })
    const first = this.#authenticator.header(scopes)
    let response = await send(first)
    if (response.statusCode === 401 && own)
      response = await send(
        await this.#authenticator.answer(response, { registry: this.#root, scopes, sent: first, signal }),
      )
    const status = response.statusCode!
    if (status === 408 || status === 429 || (status >= 500 && status !== 501)) {
      discard(response)
      throw new Transient(`the registry answers ${status}`, retryAfter(response.headers['retry-after']))
    }
    return response
  }

  #scopes(push: boolean, from: string | undefined): string[] {
    const scopes = [`repository:${this.endpoint.repository}:pull${push ? ',push' : ''}`]
    return from === undefined ? scopes : [...scopes, `repository:${from}:pull`]
  }

  /** The error of an answer that is none of those awaited. */
  async #failure(response: IncomingMessage, what: string): Promise<Error> {
    const status = response.statusCode!
    const body = await readBody(response, ERROR_BODY, this.#name).catch(() => Buffer.alloc(0))
    const said = messageOf(body)
    const detail = said === '' ? '' : ` (${said})`
    if (status === 404)
      return registryError(this.#name, `${what} is not there${detail}`, 'REGISTRY_NOT_FOUND')
    if (status === 401 || status === 403)
      return registryError(
        this.#name,
        `access denied: it does not exist, or needs another "coracle login"${detail}`,
        'REGISTRY_DENIED',
      )
    return registryError(this.#name, `the registry answers ${status} to ${what}${detail}`)
  }
}

const TAG = /^\w[\w.-]{0,127}$/

function ignoreTransient(error: unknown): void {
  if (!(error instanceof Transient)) throw error
}

const sha256 = (bytes: Buffer): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'))
  } catch {
    return undefined
  }
}

/** What a registry's error says (distribution-spec, error codes), safe to print. */
function messageOf(body: Buffer): string {
  const value = parseJson(body) as { errors?: { code?: unknown; message?: unknown }[] } | undefined
  const first: unknown = Array.isArray(value?.errors) ? value.errors[0] : undefined
  if (typeof first !== 'object' || first === null) return ''
  const { code, message } = first as { code?: unknown; message?: unknown }
  const text = typeof message === 'string' && message !== '' ? message : code
  return typeof text === 'string' ? printable(Buffer.from(text).toString('latin1')) : ''
}

/** The bytes behind the first `count`, from a registry that knows no Range. */
async function* skip(source: AsyncIterable<Buffer>, count: number): AsyncGenerator<Buffer> {
  let left = count
  for await (const chunk of source) {
    if (chunk.length > left) yield chunk.subarray(left)
    left = Math.max(0, left - chunk.length)
  }
}
