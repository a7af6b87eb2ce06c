import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { toolCommand } from '../../../src/debian/index.js'
import type { RegistryConfig } from '../../../src/image/registry/config.js'
import { makeCertificates, type Certificates } from './certificate.js'

/** A user of the registry, and bcrypt's word for the password. */
export const USER = { username: 'carol', password: 'secret' }
const HTPASSWD = 'carol:$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n'

/** Debian's docker-registry on loopback, with a certificate of an authority of its own and one user. */
export class DebianRegistry implements AsyncDisposable {
  readonly folder: string
  readonly host: string
  readonly authority: string
  readonly #child: ChildProcess

  private constructor(folder: string, host: string, authority: string, child: ChildProcess) {
    this.folder = folder
    this.host = host
    this.authority = authority
    this.#child = child
  }

  /** @param options `plain`: HTTP, for everybody or with `password`; `tokens`: bearer tokens instead of a password */
  static async start(
    options: {
      plain?: boolean
      password?: boolean
      tokens?: { realm: string; certificates: Certificates }
    } = {},
  ): Promise<DebianRegistry> {
    const { argv, env } = await toolCommand('docker-registry')
    const folder = mkdtempSync(join(tmpdir(), 'coracle-registry-'))
    const { plain, password, tokens } = options
    const { authority, certificate, key } = tokens?.certificates ?? makeCertificates()
    const file = (name: string, content: string): string => {
      writeFileSync(join(folder, name), content)
      return join(folder, name)
    }
    const auth = tokens
      ? {
          token: {
            realm: tokens.realm,
            service: 'test',
            issuer: 'test',
            rootcertbundle: file('authority.pem', authority),
          },
        }
      : { htpasswd: { realm: 'test', path: file('htpasswd', HTPASSWD) } }
    const tls = { certificate: file('cert.pem', certificate), key: file('key.pem', key) }
    // JSON is YAML.
    const config = {
      version: '0.1',
      log: { level: 'info', accesslog: { disabled: true } },
      storage: { filesystem: { rootdirectory: join(folder, 'data') } },
      http: { addr: '127.0.0.1:0', ...(plain ? {} : { tls }) },
      ...(plain && !password ? {} : { auth }),
    }
    const [program, ...rest] = argv
    const child = spawn(program!, [...rest, 'serve', file('config.yml', JSON.stringify(config))], {
      env: { ...process.env, ...env, OTEL_TRACES_EXPORTER: 'none' },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    const said: string[] = []
    for await (const line of createInterface(child.stderr!)) {
      said.push(line)
      const port = /listening on 127\.0\.0\.1:(\d+)/.exec(line)?.[1]
      if (port === undefined) continue
      child.stderr!.resume()
      return new DebianRegistry(folder, `localhost:${port}`, authority, child)
    }
    rmSync(folder, { recursive: true, force: true })
    throw new Error(`docker-registry did not start: ${said.join('\n')}`)
  }

  get config(): RegistryConfig {
    return { mirrors: [], insecure: [], authorities: { [this.host]: this.authority } }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode === null) {
      const ended = once(this.#child, 'exit')
      this.#child.kill('SIGKILL')
      await ended
    }
    rmSync(this.folder, { recursive: true, force: true })
  }
}
