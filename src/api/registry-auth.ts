import type { IncomingHttpHeaders } from 'node:http'
import { CoracleError } from '../errors.js'
import type { RegistryAuth } from '../image/registry/auth.js'
import { basicPair } from '../image/registry/credentials.js'
import { checked } from './body.js'
import { AUTH_BODY, AUTHS, type AuthBody } from './schemas.js'

/** The credentials in X-Registry-Auth: JSON in base64url, which some clients pad. @throws CoracleError INVALID_ARGUMENT */
export async function authOf(headers: IncomingHttpHeaders): Promise<RegistryAuth> {
  return authShape(await headerOf<AuthBody>(headers, 'X-Registry-Auth', AUTH_BODY))
}

/** Those in X-Registry-Config, of a build: by registry. @throws CoracleError INVALID_ARGUMENT */
export async function authsOf(headers: IncomingHttpHeaders): Promise<Record<string, RegistryAuth>> {
  const bodies = await headerOf<Record<string, AuthBody>>(headers, 'X-Registry-Config', AUTHS)
  return Object.fromEntries(Object.entries(bodies).map(([server, body]) => [server, authShape(body)]))
}

/** A user's credentials in Docker's words, in ours. */
export function authShape(body: AuthBody): RegistryAuth {
  const pair = basicPair(body.auth ?? '')
  const username = body.username || pair?.username
  const password = body.password || pair?.password
  return {
    ...(username ? { username } : {}),
    ...(password ? { password } : {}),
    ...(body.identitytoken ? { identityToken: body.identitytoken } : {}),
    ...(body.registrytoken ? { registryToken: body.registrytoken } : {}),
  }
}

async function headerOf<T>(headers: IncomingHttpHeaders, name: string, schema: object): Promise<T> {
  const header = headers[name.toLowerCase()]
  let value: unknown = {}
  try {
    if (header) value = JSON.parse(Buffer.from(String(header), 'base64url').toString('utf8')) ?? {}
  } catch {
    throw new CoracleError('INVALID_ARGUMENT', `${name} is no JSON in base64url`)
  }
  return checked<T>(value, schema, name)
}
