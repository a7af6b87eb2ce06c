import { CoracleError } from '../errors.js'
import { type TarEntry, TarReader } from '../image/tar.js'
import { OWN_ENTRY, TAR_END, tarHeader, tarPadding } from '../image/tar-writer.js'
import type { Context } from './contexts.js'
import { dialOf, parseTcp, type TlsFiles } from './endpoint.js'

/* A context as a tar, as Docker's client exports and imports it: meta.json, and tls/docker/{ca,cert,key}.pem. */

/** Bytes of such a tar at most, as with Docker. */
const MAXIMUM = 10 * 1024 * 1024
const TLS = { ca: 'tls/docker/ca.pem', cert: 'tls/docker/cert.pem', key: 'tls/docker/key.pem' }

interface Meta {
  readonly Metadata?: { readonly Description?: unknown }
  readonly Endpoints?: { readonly docker?: { readonly Host?: unknown; readonly SkipTLSVerify?: unknown } }
}

/** What Docker shows of a context, without its keys. */
export const contextMeta = (name: string, { host, description }: Partial<Context>): object => ({
  Name: name,
  Metadata: description === undefined ? {} : { Description: description },
  Endpoints: { docker: { Host: host ?? '', SkipTLSVerify: false } },
})

/** The whole tar, keys and all. */
export function packContext(name: string, context: Context): Buffer {
  const { tls } = context
  const files: [string, string][] = [['meta.json', JSON.stringify(contextMeta(name, context))]]
  if (tls) for (const part of ['ca', 'cert', 'key'] as const) files.push([TLS[part], tls[part]])
  const parts = files.flatMap(([path, text]) => {
    const bytes = Buffer.from(text)
    return [tarHeader(file(path, bytes.length)), bytes, tarPadding(bytes.length)]
  })
  return Buffer.concat([...parts, TAR_END])
}

const file = (name: string, size: number): TarEntry => ({ ...OWN_ENTRY, name, mode: 0o600, size })

/** @throws CoracleError USAGE for what is no such tar, IMAGE_ARCHIVE for what is no tar */
export async function readContext(source: AsyncIterable<Uint8Array>): Promise<Context> {
  const bad = (why: string): never => {
    throw new CoracleError('USAGE', `that is no exported context: ${why}`)
  }
  const files = new Map<string, Buffer[]>()
  let content: Buffer[] = []
  const none = (): void => undefined
  const reader = new TarReader(
    {
      entry: ({ name, type }) => {
        content = []
        if (type === 'file') files.set(name.replace(/^\.\//, ''), content)
      },
      data: (bytes) => void content.push(Buffer.from(bytes)),
      hole: () => bad('it has holes'),
      end: none,
    },
    64,
  )
  let length = 0
  for await (const chunk of source) {
    if ((length += chunk.length) > MAXIMUM) bad(`it is longer than ${MAXIMUM} bytes`)
    reader.write(Buffer.from(chunk))
  }
  reader.end()
  const text = (path: string): string | undefined => {
    const parts = files.get(path)
    return parts && Buffer.concat(parts).toString('utf8')
  }
  let meta: Meta | null = null
  try {
    meta = JSON.parse(text('meta.json') ?? 'null') as Meta | null
  } catch {
    // Said below.
  }
  const host = meta?.Endpoints?.docker?.Host
  if (typeof host !== 'string' || host === '') return bad('its meta.json names no host')
  if (meta?.Endpoints?.docker?.SkipTLSVerify === true) bad('it trusts any engine (SkipTLSVerify)')
  dialOf({ host })
  const description = meta?.Metadata?.Description
  const tls = Object.fromEntries(
    Object.entries(TLS).map(([part, path]) => [part, text(path)]),
  ) as Partial<TlsFiles>
  const has = Object.values(tls).filter((part) => part !== undefined).length
  if (has !== 0 && (has !== 3 || !parseTcp(host)))
    bad('TLS has all of ca, cert and key, and a host of tcp://')
  return {
    host,
    ...(has === 3 && { tls: tls as TlsFiles }),
    ...(typeof description === 'string' && description !== '' && { description }),
  }
}
