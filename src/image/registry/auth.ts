import type { IncomingMessage } from 'node:http'
import { parseChallenges, type Challenge } from './challenge.js'
import { registryError, Transient } from './failure.js'
import { discard, readBody, type Transport } from './transport.js'

/** What a user shows to a registry. All empty: nothing. */
export interface RegistryAuth {
  readonly username?: string
  readonly password?: string
  /** An OAuth2 refresh token, in place of a password. */
  readonly identityToken?: string
  /** A bearer token to be sent as it is. */
  readonly registryToken?: string
}

const TOKEN_BODY = 256 * 1024
const LONGEST_TOKEN = 64 * 1024
/** Seconds that a token lasts when nothing is said. */
const DEFAULT_LIFE = 60
/** Seconds before its end from which a token is not used any more. */
const MARGIN = 10

/**
 * Answers one registry's challenges: basic authentication, and bearer tokens as in the distribution project's
 * specs auth/token.md and auth/oauth.md. Tokens are kept by scope while they last.
 */
export class Authenticator {
  readonly #transport: Transport
  readonly #auth: RegistryAuth
  readonly #host: string
  readonly #tokens = new Map<string, { token: string; end: number }>()
  /** Tokens on their way, by scopes: requests side by side share them. */
  readonly #pending = new Map<string, Promise<string>>()
  #basic = false

  /** @param host the registry's, for errors */
  constructor(transport: Transport, auth: RegistryAuth, host: string) {
    this.#transport = transport
    this.#auth = auth
    this.#host = host
  }

  /** The Authorization header to begin with. */
  header(scopes: readonly string[]): string | undefined {
    if (this.#auth.registryToken) return `Bearer ${this.#auth.registryToken}`
    if (this.#basic) return this.#basicHeader()
    const known = this.#tokens.get(scopes.join(' '))
    return known && known.end > Date.now() ? `Bearer ${known.token}` : undefined
  }

  /**
   * The Authorization header after a 401.
   * @throws CoracleError REGISTRY_DENIED, REGISTRY_FAILED; Transient
   */
  async answer(
    response: IncomingMessage,
    request: {
      readonly registry: URL
      readonly scopes: readonly string[]
      /** The header that was not liked. */
      readonly sent: string | undefined
      readonly signal: AbortSignal | undefined
    },
  ): Promise<string> {
    const { registry, scopes, sent, signal } = request
    const header = response.headers['www-authenticate']
    discard(response)
    if (this.#auth.registryToken) throw this.#denied('it does not accept the token')
    if (header === undefined) throw registryError(this.#host, 'it answers 401 without WWW-Authenticate')
    const challenges = parseChallenges(header)
    if (!challenges) throw registryError(this.#host, 'its WWW-Authenticate header is malformed')
    const bearer = challenges.find(({ scheme }) => scheme === 'bearer')
    if (bearer) {
      // Another request may have brought one meanwhile.
      const known = this.header(scopes)
      if (known !== undefined && known !== sent) return known
      const key = scopes.join(' ')
      const token =
        this.#pending.get(key) ??
        this.#fetch(bearer, registry, scopes, signal).then(({ token, life }) => {
          this.#tokens.set(key, { token, end: Date.now() + (life - MARGIN) * 1000 })
          return token
        })
      this.#pending.set(key, token)
      try {
        return `Bearer ${await token}`
      } finally {
        this.#pending.delete(key)
      }
    }
    if (!challenges.some(({ scheme }) => scheme === 'basic'))
      throw registryError(this.#host, 'it asks for an authentication other than basic and bearer')
    const basic = this.#basicHeader()
    if (basic === undefined) throw this.#denied('it asks for a login')
    if (sent === basic) throw this.#denied('user name or password is wrong')
    this.#basic = true
    return basic
  }

  /** An error of denied access that names the way out. */
  #denied(why: string): Error {
    return registryError(this.#host, `access denied: ${why}; try "coracle login"`, 'REGISTRY_DENIED')
  }

  #basicHeader(): string | undefined {
    const { username, password } = this.#auth
    if (!username) return undefined
    return `Basic ${Buffer.from(`${username}:${password ?? ''}`).toString('base64')}`
  }

  async #fetch(
    { parameters }: Challenge,
    registry: URL,
    scopes: readonly string[],
    signal: AbortSignal | undefined,
  ): Promise<{ token: string; life: number }> {
    const realm = parameters.get('realm')
    if (realm === undefined || !URL.canParse(realm))
      throw registryError(this.#host, 'its challenge names no address for tokens')
    const url = new URL(realm)
    this.#transport.check(url, registry)
    const service = parameters.get('service')
    const asked = scopes.length > 0 ? scopes : (parameters.get('scope')?.split(' ') ?? [])
    const { identityToken } = this.#auth
    const response = identityToken
      ? await this.#transport.send({
          method: 'POST',
          url,
          headers: { 'Content-Type': 'application/x-www-form-urlencoded' },
          body: Buffer.from(
            new URLSearchParams({
              grant_type: 'refresh_token',
              client_id: 'coracle',
              refresh_token: identityToken,
              ...(service === undefined ? {} : { service }),
              scope: asked.join(' '),
            }).toString(),
          ),
          signal,
        })
      : await this.#transport.send({
          method: 'GET',
          url: this.#tokenUrl(url, service, asked),
          headers: this.#basicHeader() === undefined ? {} : { Authorization: this.#basicHeader()! },
          signal,
        })
    const status = response.statusCode!
    if (status === 401 || status === 403) {
      discard(response)
      throw this.#denied(this.#auth.username ? 'user name or password is wrong' : 'it asks for a login')
    }
    if (status === 429 || status >= 500) {
      discard(response)
      throw new Transient(`${url.host} answers ${status} to a request for a token`)
    }
    const body = await readBody(response, TOKEN_BODY, url.host, signal)
    if (status !== 200)
      throw registryError(this.#host, `${url.host} answers ${status} to a request for a token`)
    return this.#parse(body, url)
  }

  #tokenUrl(url: URL, service: string | undefined, scopes: readonly string[]): URL {
    const full = new URL(url)
    if (service !== undefined) full.searchParams.set('service', service)
    for (const scope of scopes) full.searchParams.append('scope', scope)
    if (this.#auth.username) full.searchParams.set('account', this.#auth.username)
    return full
  }

  #parse(body: Buffer, url: URL): { token: string; life: number } {
    let value: unknown
    try {
      value = JSON.parse(body.toString('utf8'))
    } catch {
      // Said below.
    }
    const object = typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}
    const token = object['token'] || object['access_token']
    const life = object['expires_in']
    if (typeof token !== 'string' || token.length > LONGEST_TOKEN || !/^[\x21-\x7e]+$/.test(token))
      throw registryError(this.#host, `${url.host} gives no token that can be used`)
    return { token, life: typeof life === 'number' && life > DEFAULT_LIFE ? life : DEFAULT_LIFE }
  }
}
