import { readFileSync } from 'node:fs'
import { connect as connectSocket } from 'node:net'
import { homedir } from 'node:os'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { connect as connectTls } from 'node:tls'
import { CoracleError } from '../errors.js'

/** What one end of a mutual TLS connection has, as PEM. */
export interface TlsFiles {
  /** Who signs the other end's certificate. */
  readonly ca: string
  readonly cert: string
  readonly key: string
}

/** An engine somewhere. */
export interface Endpoint {
  /** `unix://PATH` or `tcp://HOST:PORT` */
  readonly host: string
  /** Of this client; only over TCP. */
  readonly tls?: TlsFiles
}

/** How a client reaches its server. */
export type Dial = () => Duplex

/** @throws CoracleError USAGE */
export function dialOf({ host, tls }: Endpoint): Dial {
  const unix = /^unix:\/\/(.+)$/.exec(host)?.[1]
  if (unix !== undefined) return () => connectSocket({ path: unix, allowHalfOpen: true })
  const tcp = parseTcp(host)
  if (!tcp) throw new CoracleError('USAGE', `cannot use host '${host}': it is unix://PATH or tcp://HOST:PORT`)
  const to = { host: tcp.address, port: tcp.port, allowHalfOpen: true }
  return tls ? () => connectTls({ ...to, ...tls, minVersion: 'TLSv1.2' }) : () => connectSocket(to)
}

/** `tcp://HOST:PORT` by its parts; undefined where it is something else. */
export function parseTcp(host: string): { readonly address: string; readonly port: number } | undefined {
  const parts = /^(?:tcp|https?):\/\/([^:/[\]]+|\[[0-9a-fA-F:]+\]):(\d{1,5})\/?$/.exec(host)
  const port = Number(parts?.[2])
  return parts && port <= 0xffff ? { address: parts[1]!.replace(/^\[|\]$/g, ''), port } : undefined
}

/**
 * What a client's certificate folder has: Docker's names, `ca.pem`, `cert.pem` and `key.pem`.
 * @throws CoracleError USAGE where one cannot be read
 */
export function readTlsFiles(paths: { readonly [Name in keyof TlsFiles]: string }): TlsFiles {
  const read = (path: string): string => {
    try {
      return readFileSync(path, 'utf8')
    } catch (error) {
      throw new CoracleError('USAGE', `cannot read ${path}: ${(error as Error).message}`)
    }
  }
  return { ca: read(paths.ca), cert: read(paths.cert), key: read(paths.key) }
}

/** Flags that go before the environment. */
export interface TlsFlags {
  readonly verify?: boolean
  readonly tlscacert?: string
  readonly tlscert?: string
  readonly tlskey?: string
}

/**
 * The endpoint that the environment names, as Docker's clients take it: DOCKER_HOST, DOCKER_TLS_VERIFY, DOCKER_CERT_PATH.
 * @throws CoracleError USAGE where a file cannot be read
 */
export function endpointOf(host: string, env: NodeJS.ProcessEnv, flags: TlsFlags = {}): Endpoint {
  const named = flags.tlscacert ?? flags.tlscert ?? flags.tlskey
  const isWanted = flags.verify ?? (named !== undefined || !!env['DOCKER_TLS_VERIFY'])
  if (!isWanted || !parseTcp(host)) return { host }
  const folder = env['DOCKER_CERT_PATH'] || join(homedir(), '.docker')
  const [ca, cert, key] = ['ca', 'cert', 'key'].map((name) => join(folder, `${name}.pem`))
  return {
    host,
    tls: readTlsFiles({
      ca: flags.tlscacert ?? ca!,
      cert: flags.tlscert ?? cert!,
      key: flags.tlskey ?? key!,
    }),
  }
}
