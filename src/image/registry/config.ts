import { readFileSync } from 'node:fs'
import { isIP } from 'node:net'
import { join } from 'node:path'
import { CoracleError } from '../../errors.js'
import { paths } from '../../paths.js'

/** Docker Hub's name in references, and the machine that answers for it. */
export const HUB = 'docker.io'
const HUB_HOST = 'registry-1.docker.io'

/** How this host reaches registries. The names are those of Docker's daemon.json. */
export interface RegistryConfig {
  /** Asked before Docker Hub, in this order: `https://mirror.example`, also `http://` and with a path. */
  readonly mirrors: readonly string[]
  /** `host` or `host:port` of registries that may speak plain HTTP or show any certificate. Loopback always may. */
  readonly insecure: readonly string[]
  /** Certificate authorities besides the system's, PEM, by `host` or `host:port`. */
  readonly authorities: Readonly<Record<string, string>>
}

export const PLAIN_CONFIG: RegistryConfig = { mirrors: [], insecure: [], authorities: {} }

/**
 * Reads the configuration: the file that CORACLE_REGISTRIES names, else `registries.json` in `paths.state`.
 *
 *     { "registry-mirrors": ["https://mirror.example"],
 *       "insecure-registries": ["build.lan:5000"],
 *       "registry-authorities": { "registry.lan": "/etc/ssl/lan-ca.pem" } }
 *
 * @throws CoracleError INVALID_ARGUMENT for a file that is wrong
 */
export function readRegistryConfig(): RegistryConfig {
  const given = process.env['CORACLE_REGISTRIES']
  const path = given || join(paths.state, 'registries.json')
  let text
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT' && !given) return PLAIN_CONFIG
    throw wrong(path, (error as Error).message)
  }
  return parseRegistryConfig(text, path)
}

/** @param path for errors @throws CoracleError INVALID_ARGUMENT */
export function parseRegistryConfig(text: string, path: string): RegistryConfig {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    throw wrong(path, 'it is no JSON')
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw wrong(path, 'it is no object')
  const {
    'registry-mirrors': mirrors = [],
    'insecure-registries': insecure = [],
    'registry-authorities': authorities = {},
    ...others
  } = value as Record<string, unknown>
  const unknown = Object.keys(others)[0]
  if (unknown !== undefined) throw wrong(path, `it has an unknown setting ${JSON.stringify(unknown)}`)
  if (!isTexts(mirrors) || !mirrors.every(isMirror))
    throw wrong(path, 'registry-mirrors is a list of addresses, https://HOST[:PORT][/PATH]')
  if (!isTexts(insecure) || !insecure.every(isHost))
    throw wrong(path, 'insecure-registries is a list of HOST[:PORT]')
  if (typeof authorities !== 'object' || authorities === null || !isTexts(Object.values(authorities)))
    throw wrong(path, 'registry-authorities is an object of files by HOST[:PORT]')
  const files = Object.entries(authorities as Record<string, string>)
  return {
    mirrors,
    insecure,
    authorities: Object.fromEntries(
      files.map(([host, file]): [string, string] => {
        try {
          return [host, readFileSync(file, 'utf8')]
        } catch (error) {
          throw wrong(path, `the authority of ${host}: ${(error as Error).message}`)
        }
      }),
    ),
  }
}

const wrong = (path: string, why: string): CoracleError =>
  new CoracleError('INVALID_ARGUMENT', `the registries' configuration ${path} is wrong: ${why}`)

const isTexts = (value: unknown): value is string[] =>
  Array.isArray(value) && value.every((each) => typeof each === 'string')

const isHost = (text: string): boolean => /^(?:[a-z0-9.-]+|\[[0-9a-f:]+\])(?::\d{1,5})?$/i.test(text)

function isMirror(text: string): boolean {
  if (!URL.canParse(text)) return false
  const { protocol, username, password, search, hash } = new URL(text)
  return /^https?:$/.test(protocol) && username + password + search + hash === ''
}

/** Where a repository can be asked for. */
export interface Endpoint {
  /** `host[:port]`, by which credentials are kept. */
  readonly host: string
  /** Path on that host in front of `/v2/`. */
  readonly prefix: string
  /** Without one, it is found out: HTTPS, or plain HTTP where that is allowed. */
  readonly protocol?: 'http:' | 'https:'
  /** Copies Docker Hub; when it fails, the next one is asked. */
  readonly mirror: boolean
  /** The repository's name there. */
  readonly repository: string
}

/** Splits a complete name such as `docker.io/library/busybox`. */
export function splitRepository(repository: string): { domain: string; path: string } {
  const slash = repository.indexOf('/')
  return { domain: repository.slice(0, slash), path: repository.slice(slash + 1) }
}

/** The endpoints of a repository, first choice first. The last is the registry itself. */
export function endpointsOf(repository: string, config: RegistryConfig): Endpoint[] {
  const { domain, path } = splitRepository(repository)
  if (domain !== HUB) return [{ host: domain.toLowerCase(), prefix: '', mirror: false, repository: path }]
  const mirrors = config.mirrors.map((text): Endpoint => {
    const { protocol, host, pathname } = new URL(text)
    const prefix = pathname.replace(/\/+$/, '')
    return { host, prefix, protocol: protocol as 'http:' | 'https:', mirror: true, repository: path }
  })
  return [...mirrors, { host: HUB_HOST, prefix: '', protocol: 'https:', mirror: false, repository: path }]
}

/** Whether a registry may speak plain HTTP or show any certificate. @param host `host[:port]` */
export function isInsecure(host: string, config: RegistryConfig): boolean {
  if (config.authorities[host] !== undefined) return false
  const name = new URL(`http://${host}`).hostname.replace(/^\[|\]$/g, '')
  if (config.insecure.includes(host) || config.insecure.includes(name)) return true
  return name === 'localhost' || name === '::1' || (isIP(name) === 4 && name.startsWith('127.'))
}
