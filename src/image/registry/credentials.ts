import { execFile } from 'node:child_process'
import { mkdirSync, readFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { CoracleError } from '../../errors.js'
import { paths } from '../../paths.js'
import { replaceFile } from '../../durable.js'
import { FileLock } from '../lock.js'
import type { RegistryAuth } from './auth.js'
import { HUB } from './config.js'

/** Docker's own key for Docker Hub, in files and helpers alike. */
const HUB_KEY = 'https://index.docker.io/v1/'
const HELPER_TIME = 30_000
const HELPER_OUTPUT = 64 * 1024
/** The user name by which helpers tell an identity token from a password. */
const TOKEN_USER = '<token>'

type Json = Record<string, unknown>

/**
 * What a user logged in with, by registry: a file in Docker's config format, readable by its owner alone, and the
 * credential helpers that it names. Docker's own file is read too, never written.
 */
export class Credentials {
  readonly #own: string
  readonly #others: readonly string[]

  constructor(
    own = join(paths.state, 'credentials.json'),
    others: readonly string[] = [
      join(process.env['DOCKER_CONFIG'] || join(homedir(), '.docker'), 'config.json'),
    ],
  ) {
    this.#own = own
    this.#others = others
  }

  /**
   * @param server the registry's name in references, such as `docker.io` or `localhost:5000`
   * @returns empty where nobody logged in
   * @throws CoracleError INVALID_ARGUMENT for a damaged file, HOST_TOOL for a helper that fails
   */
  async get(server: string): Promise<RegistryAuth> {
    for (const path of [this.#own, ...this.#others]) {
      const file = read(path)
      const helper = helperOf(file, server, path)
      const found = helper === undefined ? fromFile(file, server) : await fromHelper(helper, server)
      if (found) return found
    }
    return {}
  }

  /**
   * All of them, by the names that clients give registries. What a helper does not give is left out: who turns out to
   * need it is told so by the registry.
   * @throws CoracleError INVALID_ARGUMENT for a damaged file
   */
  async all(): Promise<Record<string, RegistryAuth>> {
    const servers = [this.#own, ...this.#others].flatMap((path) => {
      const { auths, credHelpers } = read(path)
      return [auths, credHelpers].flatMap((of) => Object.keys(objectOf(of)).map(serverOf))
    })
    const found: Record<string, RegistryAuth> = {}
    for (const server of new Set(servers)) {
      const auth = await this.get(server).catch(() => ({}))
      if (Object.keys(auth).length > 0) found[keyOf(server)] = auth
    }
    return found
  }

  /**
   * Keeps credentials: with the helper that our file names, else in the file.
   * @throws CoracleError HOST_TOOL, INVALID_ARGUMENT
   */
  async set(server: string, auth: RegistryAuth): Promise<void> {
    const helper = helperOf(read(this.#own), server, this.#own)
    if (helper !== undefined) {
      const Username = auth.identityToken ? TOKEN_USER : (auth.username ?? '')
      const Secret = auth.identityToken ?? auth.password ?? ''
      await runHelper(helper, 'store', JSON.stringify({ ServerURL: keyOf(server), Username, Secret }))
      return
    }
    const pair = Buffer.from(`${auth.username ?? ''}:${auth.password ?? ''}`).toString('base64')
    this.#change((auths) => {
      auths[keyOf(server)] = auth.identityToken
        ? { auth: pair, identitytoken: auth.identityToken }
        : { auth: pair }
    })
  }

  /** Forgets credentials. @returns whether there were any */
  async erase(server: string): Promise<boolean> {
    const file = read(this.#own)
    const helper = helperOf(file, server, this.#own)
    if (helper !== undefined) {
      const known = (await fromHelper(helper, server)) !== undefined
      if (known) await runHelper(helper, 'erase', keyOf(server))
      return known
    }
    if (fromFile(file, server) === undefined) return false
    this.#change((auths) => {
      for (const key of Object.keys(auths)) if (isKeyOf(key, server)) Reflect.deleteProperty(auths, key)
    })
    return true
  }

  #change(change: (auths: Json) => void): void {
    mkdirSync(dirname(this.#own), { recursive: true, mode: 0o700 })
    using lock = new FileLock(`${this.#own}.lock`)
    lock.take()
    const file = { ...read(this.#own) }
    const auths = { ...objectOf(file['auths']) }
    change(auths)
    replaceFile(this.#own, `${JSON.stringify({ ...file, auths }, undefined, 2)}\n`)
  }
}

const keyOf = (server: string): string => (server === HUB ? HUB_KEY : server)

/** Of credentials by the names that clients give registries, those for one. @param server as {@link Credentials.get} */
export const authFor = (auths: Readonly<Record<string, RegistryAuth>>, server: string): RegistryAuth =>
  Object.entries(auths).find(([key]) => isKeyOf(key, server))?.[1] ?? {}

/** Files hold names as they were given to a login: with a scheme, with a path. */
function serverOf(key: string): string {
  const host = key
    .replace(/^https?:\/\//, '')
    .split('/', 1)[0]!
    .toLowerCase()
  return host === 'index.docker.io' ? HUB : host
}

const isKeyOf = (key: string, server: string): boolean => key === server || serverOf(key) === server

function read(path: string): Json {
  let text
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ENOTDIR' || code === 'EACCES') return {}
    throw new CoracleError('INVALID_ARGUMENT', `cannot read ${path}: ${message}`)
  }
  try {
    const value: unknown = JSON.parse(text)
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Json
  } catch {
    // Said below.
  }
  throw new CoracleError('INVALID_ARGUMENT', `${path} is no JSON object: repair it, or move it away`)
}

const objectOf = (value: unknown): Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Json) : {}

/** The name and the password in base64 that Docker's configuration and its API hold as `auth`; undefined for none. */
export function basicPair(auth: string): { username: string; password: string } | undefined {
  const pair = Buffer.from(auth, 'base64').toString('utf8')
  const colon = pair.indexOf(':')
  return colon < 0 ? undefined : { username: pair.slice(0, colon), password: pair.slice(colon + 1) }
}

function fromFile(file: Json, server: string): RegistryAuth | undefined {
  const entry = Object.entries(objectOf(file['auths'])).find(([key]) => isKeyOf(key, server))
  if (!entry) return undefined
  const { auth, username, password, identitytoken, registrytoken } = objectOf(entry[1])
  const text = (value: unknown): string => (typeof value === 'string' ? value : '')
  const pair = basicPair(text(auth)) ?? { username: text(username), password: text(password) }
  const found = {
    username: pair.username,
    password: pair.password.replace(/\0+$/, ''),
    identityToken: text(identitytoken),
    registryToken: text(registrytoken),
  }
  // A file whose secrets are with a helper has empty entries.
  return Object.values(found).some((value) => value !== '') ? found : undefined
}

function helperOf(file: Json, server: string, path: string): string | undefined {
  const entry = Object.entries(objectOf(file['credHelpers'])).find(([key]) => isKeyOf(key, server))
  const name = entry?.[1] ?? file['credsStore']
  if (name === undefined || name === '') return undefined
  if (typeof name === 'string' && /^[\w-]{1,64}$/.test(name)) return name
  throw new CoracleError('INVALID_ARGUMENT', `${path} names a credential helper that is no plain name`)
}

async function fromHelper(helper: string, server: string): Promise<RegistryAuth | undefined> {
  const output = await runHelper(helper, 'get', keyOf(server))
  if (output === undefined) return undefined
  let value: unknown
  try {
    value = JSON.parse(output)
  } catch {
    // Said below.
  }
  const { Username, Secret } = objectOf(value)
  if (typeof Username !== 'string' || typeof Secret !== 'string')
    throw new CoracleError('HOST_TOOL', `docker-credential-${helper} gives no credentials that can be read`)
  return Username === TOKEN_USER ? { identityToken: Secret } : { username: Username, password: Secret }
}

/** Speaks docker-credential-helpers' protocol. @returns undefined where the helper has no such entry */
function runHelper(helper: string, verb: string, input: string): Promise<string | undefined> {
  const program = `docker-credential-${helper}`
  return new Promise((resolve, reject) => {
    const child = execFile(
      program,
      [verb],
      { timeout: HELPER_TIME, killSignal: 'SIGKILL', maxBuffer: HELPER_OUTPUT },
      (error, stdout) => {
        if (!error) return resolve(stdout)
        // Helpers say so on stdout, with these words.
        if (/credentials not found/i.test(stdout)) return resolve(undefined)
        const { code } = error as NodeJS.ErrnoException
        const why =
          code === 'ENOENT'
            ? 'there is no such program in PATH'
            : error.killed || code === 'ERR_CHILD_PROCESS_STDIO_MAXBUFFER'
              ? `it took longer than ${HELPER_TIME / 1000} s, or said too much`
              : `it failed (${code ?? 'by a signal'})`
        reject(new CoracleError('HOST_TOOL', `credential helper ${program}: ${why}`))
      },
    )
    child.stdin!.on('error', () => undefined)
    child.stdin!.end(input)
  })
}
