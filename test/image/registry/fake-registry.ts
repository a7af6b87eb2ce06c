import { once } from 'node:events'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { configOf } from '../archive-builder.js'
import { sha256 } from '../tar-builder.js'

const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value))

/** What a test does in place of an honest answer. @returns true where it answered */
export type Trick = (request: IncomingMessage, response: ServerResponse) => boolean

/** A registry on loopback, plain HTTP, that can be told to misbehave. */
export class FakeRegistry implements AsyncDisposable {
  trick: Trick = () => false
  /** `METHOD path` of each request. */
  readonly requests: string[] = []
  readonly blobs = new Map<string, Buffer>()
  readonly manifests = new Map<string, { type: string; bytes: Buffer }>()
  readonly #server: Server

  private constructor(server: Server) {
    this.#server = server
  }

  static async start(): Promise<FakeRegistry> {
    const server = createServer((request, response) => fake.#answer(request, response))
    const fake = new FakeRegistry(server)
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    return fake
  }

  get host(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }

  get url(): string {
    return `http://${this.host}`
  }

  blob(content: Buffer): { digest: string; size: number } {
    const digest = sha256(content)
    this.blobs.set(digest, content)
    return { digest, size: content.length }
  }

  /** @returns the document's descriptor */
  document(value: unknown, type: string, tag?: string): { mediaType: string; digest: string; size: number } {
    const bytes = Buffer.isBuffer(value) ? value : json(value)
    const digest = sha256(bytes)
    for (const name of [digest, tag]) if (name) this.manifests.set(name, { type, bytes })
    return { mediaType: type, digest, size: bytes.length }
  }

  /** An image of these layers under a tag. @param change the manifest before it is written */
  image(
    layers: Buffer[],
    tag: string,
    options: {
      config?: Partial<Parameters<typeof configOf>[0]>
      change?: (manifest: { config: object; layers: { size: number; digest: string }[] }) => void
    } = {},
  ): { mediaType: string; digest: string; size: number } {
    const manifest = {
      schemaVersion: 2,
      config: this.blob(configOf({ layers, ...options.config })),
      layers: layers.map((layer) => this.blob(layer)),
    }
    options.change?.(manifest)
    return this.document(manifest, 'application/vnd.oci.image.manifest.v1+json', tag)
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    this.requests.push(`${request.method} ${request.url}`)
    response.on('error', () => undefined)
    if (this.trick(request, response)) return
    const [, kind, name] = /\/(manifests|blobs)\/([^/?]+)$/.exec(request.url!) ?? []
    const manifest = kind === 'manifests' ? this.manifests.get(name!) : undefined
    const blob = kind === 'blobs' ? this.blobs.get(name!) : undefined
    if (manifest) response.writeHead(200, { 'Content-Type': manifest.type }).end(manifest.bytes)
    else if (blob) serveBlob(request, response, blob)
    else response.writeHead(request.url === '/v2/' ? 200 : 404).end()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections()
    await new Promise((resolve) => this.#server.close(resolve))
  }
}

/** Answers with a blob or with the range of it that is asked for. */
export function serveBlob(request: IncomingMessage, response: ServerResponse, blob: Buffer): void {
  const from = /^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1]
  if (from === undefined) {
    response.writeHead(200, { 'Content-Length': blob.length }).end(blob)
    return
  }
  const part = blob.subarray(Number(from))
  response
    .writeHead(206, {
      'Content-Length': part.length,
      'Content-Range': `bytes ${from}-${blob.length - 1}/${blob.length}`,
    })
    .end(part)
}

/** Writes without end, as fast as it is read. */
export function endless(response: ServerResponse): void {
  const piece = Buffer.alloc(65536, 0x20)
  const more = (): void => {
    while (!response.destroyed && response.write(piece));
  }
  response.on('drain', more)
  more()
}
