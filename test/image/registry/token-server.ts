import { randomUUID, sign } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { Certificates } from './certificate.js'
import { USER } from './debian-registry.js'

const base64url = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url')

/** Gives out what a registry's `auth: token` believes: JSON Web Tokens signed by the certificate's key. */
export class TokenServer implements AsyncDisposable {
  /** The scopes asked for, request by request. */
  readonly asked: string[][] = []
  readonly #server: Server
  readonly #certificates: Certificates

  private constructor(certificates: Certificates) {
    this.#certificates = certificates
    this.#server = createServer((request, response) => {
      const { searchParams } = new URL(request.url!, 'http://localhost')
      const pair = Buffer.from(`${USER.username}:${USER.password}`).toString('base64')
      if (request.headers.authorization !== `Basic ${pair}`) {
        response.writeHead(401).end()
        return
      }
      const scopes = searchParams.getAll('scope')
      this.asked.push(scopes)
      response.end(JSON.stringify({ token: this.#token(scopes), expires_in: 300 }))
    })
  }

  static async start(certificates: Certificates): Promise<TokenServer> {
    const server = new TokenServer(certificates)
    server.#server.listen(0, '127.0.0.1')
    await once(server.#server, 'listening')
    return server
  }

  get realm(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/token`
  }

  #token(scopes: string[]): string {
    const { certificate, key } = this.#certificates
    const now = Math.floor(Date.now() / 1000)
    const x5c = [certificate.replace(/-----[A-Z ]+-----|\n/g, '')]
    const access = scopes.map((scope) => {
      const [type, name, actions] = scope.split(':') as [string, string, string]
      return { type, name, actions: actions.split(',') }
    })
    const claims = { iss: 'test', aud: 'test', sub: USER.username, jti: randomUUID(), access }
    const body = `${base64url({ typ: 'JWT', alg: 'ES256', x5c })}.${base64url({ ...claims, nbf: now - 60, iat: now - 60, exp: now + 300 })}`
    const signature = sign('sha256', Buffer.from(body), { key, dsaEncoding: 'ieee-p1363' })
    return `${body}.${signature.toString('base64url')}`
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections()
    await new Promise((resolve) => this.#server.close(resolve))
  }
}
