import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'
import { CoracleError } from '../errors.js'
import type { Engine } from '../engine/engine.js'

/** The version of Docker's Engine API that we speak, and the oldest that we take. */
export const API_VERSION = '1.51'
export const MINIMUM_API_VERSION = '1.44'

/** What a handler gets. */
export interface Context {
  readonly engine: Engine
  readonly request: IncomingMessage
  readonly response: ServerResponse
  /** The path's parts in the order of the pattern's groups, decoded. */
  readonly params: readonly string[]
  readonly query: Query
  /** Aborts when the client goes before it has its answer. */
  readonly signal: AbortSignal
}

export type Handler = (context: Context) => Promise<void> | void

/** A connection that a client asked to take over (`Upgrade: tcp`), with the bytes that came early. */
export interface Upgraded extends Omit<Context, 'response'> {
  readonly socket: Duplex
  readonly head: Buffer
}

/** An endpoint. In a pattern `{name}` is one path segment and `{name...}` any number: image names hold slashes. */
export interface Route {
  readonly method: string
  readonly pattern: string
  readonly handler?: Handler
  /** Answers the same request when it comes with an Upgrade header. */
  readonly upgrade?: (context: Upgraded) => Promise<void>
}

/** The query part of a request's address. */
export class Query {
  readonly #values: URLSearchParams
  constructor(text: string) {
    this.#values = new URLSearchParams(text)
  }

  text(name: string): string | undefined {
    return this.#values.get(name) ?? undefined
  }

  texts(name: string): string[] {
    return this.#values.getAll(name)
  }

  /** Docker's booleans: empty, 0, no, false and none are false. @param absent what it is where it is not there */
  flag(name: string, absent = false): boolean {
    const text = this.text(name) ?? String(absent)
    return !['', '0', 'no', 'false', 'none'].includes(text.trim().toLowerCase())
  }

  /** @throws CoracleError INVALID_ARGUMENT */
  integer(name: string): number | undefined {
    const text = this.text(name)
    if (text === undefined || text === '') return undefined
    if (/^-?\d{1,12}$/.test(text)) return Number(text)
    throw new CoracleError('INVALID_ARGUMENT', `${name} must be a whole number, not '${text.slice(0, 64)}'`)
  }
}

/** A request's address, taken apart. */
export interface Match {
  readonly route: Route
  readonly params: readonly string[]
  readonly query: Query
}

/** Finds the endpoint of a request. Patterns are tried in their order. */
export class Router {
  readonly #routes: readonly { route: Route; expression: RegExp }[]

  constructor(routes: readonly Route[]) {
    this.#routes = routes.map((route) => ({ route, expression: expressionOf(route.pattern) }))
  }

  /** @throws CoracleError NOT_FOUND, INVALID_ARGUMENT (the version, an address that cannot be decoded) */
  match(method: string, url: string): Match {
    const at = url.indexOf('?')
    const path = withoutVersion(at < 0 ? url : url.slice(0, at))
    const query = new Query(at < 0 ? '' : url.slice(at + 1))
    for (const { route, expression } of this.#routes) {
      if (route.method !== method) continue
      const groups = expression.exec(path)
      if (groups) return { route, params: groups.slice(1).map(decode), query }
    }
    throw new CoracleError('NOT_FOUND', 'page not found')
  }
}

function expressionOf(pattern: string): RegExp {
  const source = pattern
    .replace(/[.]{3}(?=})/g, '*')
    .replace(/\{\w+\*\}/g, '(.+)')
    .replace(/\{\w+\}/g, '([^/]+)')
  return new RegExp(`^${source}$`)
}

function withoutVersion(path: string): string {
  const match = /^\/v(\d{1,3})\.(\d{1,3})(\/.*)$/.exec(path)
  if (!match) return path
  const version = [Number(match[1]), Number(match[2])] as const
  const shown = version.join('.')
  if (isOlder(version, MINIMUM_API_VERSION))
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `client version ${shown} is too old. Minimum supported API version is ${MINIMUM_API_VERSION}, please upgrade your client to a newer version`,
    )
  if (!isOlder(version, API_VERSION) && shown !== API_VERSION)
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `client version ${shown} is too new. Maximum supported API version is ${API_VERSION}`,
    )
  return match[3]!
}

function isOlder([major, minor]: readonly [number, number], than: string): boolean {
  const [thanMajor, thanMinor] = than.split('.').map(Number) as [number, number]
  return major < thanMajor || (major === thanMajor && minor < thanMinor)
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    throw new CoracleError('INVALID_ARGUMENT', 'the address holds a wrong percent-encoding')
  }
}
