import { createInterface } from 'node:readline'
import { CoracleError } from '../errors.js'
import { splitRepository } from '../image/registry/config.js'
import type { RegistryAuth } from '../image/registry/auth.js'
import { Credentials } from '../image/registry/credentials.js'
import { parseReference } from '../image/reference.js'
import type { Client } from './client.js'
import { showSize } from './size.js'

/** Milliseconds between two drawings. */
const INTERVAL = 100

/** A message of Docker's progress streams. */
interface Message {
  readonly status?: string
  readonly id?: string
  readonly error?: string
  readonly aux?: { readonly Digest?: string }
  readonly progressDetail?: { readonly current?: number; readonly total?: number }
}

/** The header that shows a user's credentials for the registry of an image. */
async function authHeader(name: string): Promise<Record<string, string>> {
  const { domain } = splitRepository(parseReference(name).repository)
  return { 'X-Registry-Auth': base64(bodyOf(domain, await new Credentials().get(domain))) }
}

/** The header that shows a build all of a user's credentials: which it needs, its Dockerfile says. */
export async function configHeader(): Promise<Record<string, string>> {
  const all = Object.entries(await new Credentials().all())
  return {
    'X-Registry-Config': base64(
      Object.fromEntries(all.map(([server, auth]) => [server, bodyOf(server, auth)])),
    ),
  }
}

const bodyOf = (
  server: string,
  { username, password, identityToken, registryToken }: RegistryAuth,
): object => ({
  username,
  password,
  serveraddress: server,
  identitytoken: identityToken,
  registrytoken: registryToken,
})

const base64 = (value: object): string => Buffer.from(JSON.stringify(value)).toString('base64url')

/** How a pull or a push is told. */
export interface Manner {
  readonly quiet: boolean
  /** Where lines go: a run's own stdout belongs to the container. */
  readonly to: NodeJS.WriteStream
}

/**
 * Pulls an image with the user's credentials. Says on a line each what came of it; bytes on a terminal alone.
 * @param name complete with a tag or digest, else `latest` is meant
 * @param all all tags of the name are meant
 * @throws CoracleError of the API; REGISTRY_FAILED for an error in the stream
 */
export async function pull(
  client: Client,
  name: string,
  manner: Manner,
  platform?: string,
  all = false,
): Promise<void> {
  const response = await client.stream('POST', '/images/create', {
    query: { fromImage: name, tag: all || isTagged(name) ? undefined : 'latest', platform },
    headers: await authHeader(name),
  })
  await follow(response, manner)
}

/**
 * Pushes an image.
 * @param tag empty for all tags
 * @param platform as {@link platformQuery} gives it
 * @throws CoracleError as {@link pull}
 */
export async function push(
  client: Client,
  name: string,
  tag: string,
  manner: Manner,
  platform?: string,
): Promise<void> {
  const path = `/images/${name.split('/').map(encodeURIComponent).join('/')}/push`
  const response = await client.stream('POST', path, {
    query: { tag, platform },
    headers: await authHeader(name),
  })
  await follow(response, manner)
}

/** Whether a name says which image it means: by a tag or a digest. */
export const isTagged = (name: string): boolean => name.includes('@') || /:[^/]*$/.test(name)

async function follow(response: NodeJS.ReadableStream, { quiet, to }: Manner): Promise<void> {
  const board = new Board(to, quiet)
  try {
    for await (const line of createInterface(response)) {
      if (line.trim() === '') continue
      const message = JSON.parse(line) as Message
      if (message.error !== undefined) throw new CoracleError('REGISTRY_FAILED', message.error)
      board.take(message)
    }
  } finally {
    board.clear()
  }
}

/** One line on a terminal that sums up the layers, and lines that stay. */
class Board {
  readonly #to: NodeJS.WriteStream
  readonly #quiet: boolean
  readonly #layers = new Map<string, { status: string; current: number; total: number }>()
  #shown = 0

  constructor(to: NodeJS.WriteStream, quiet: boolean) {
    this.#to = to
    this.#quiet = quiet
  }

  take({ status, id, progressDetail }: Message): void {
    if (this.#quiet || status === undefined) return
    // Without details it is about the whole, and stays.
    if (progressDetail === undefined) {
      this.clear()
      this.#to.write(`${id === undefined ? '' : `${id}: `}${status}\n`)
      return
    }
    const layer = this.#layers.get(id ?? '')
    const { current = layer?.current ?? 0, total = layer?.total ?? 0 } = progressDetail
    this.#layers.set(id ?? '', { status, current, total })
    const ended = /^(Pull complete|Already exists|Pushed|Layer already exists|Mounted from .*)$/.test(status)
    if (ended && !this.#to.isTTY) this.#to.write(`${id}: ${status}\n`)
    this.#draw()
  }

  #draw(): void {
    const now = Date.now()
    if (!this.#to.isTTY || now - this.#shown < INTERVAL) return
    this.#shown = now
    const layers = [...this.#layers.values()]
    const done = layers.filter(
      ({ status }) => !/^(Pulling|Downloading|Preparing|Pushing|Extracting)/.test(status),
    )
    const active = layers.filter(({ status }) => /^(Downloading|Pushing|Extracting)/.test(status))
    const parts = active.map(
      ({ status, current, total }) => `${status.toLowerCase()} ${showSize(current)} of ${showSize(total)}`,
    )
    const line = [`${done.length} of ${layers.length} layers`, ...parts].join(', ')
    this.#to.write(`\r\x1b[K${line.slice(0, Math.max(20, (this.#to.columns || 80) - 1))}`)
  }

  clear(): void {
    if (this.#shown > 0) this.#to.write('\r\x1b[K')
    this.#shown = 0
  }
}
