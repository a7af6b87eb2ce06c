import { CoracleError } from '../../errors.js'
import { printable } from '../archive-error.js'
import { HUB } from './config.js'
import { Transient, registryError } from './failure.js'
import { type Transport, discard, readBody } from './transport.js'

/** An image that a registry found. What it says of it is text from outside, made fit to print. */
export interface FoundImage {
  readonly name: string
  readonly description: string
  readonly stars: number
  readonly official: boolean
}

/** Docker Hub's own index; the only registry that is known to have a search. */
const HUB_INDEX = 'index.docker.io'
const MAX_ANSWER = 1 << 20
const MAX_TEXT = 1000

/**
 * Asks a registry for images by the first version of its protocol, which has a search as no later one has.
 * @param domain the registry's; {@link HUB} for Docker's
 * @param limit 1 to 100
 * @throws CoracleError REGISTRY_FAILED, NOT_IMPLEMENTED where it has no search; the signal's reason
 */
export async function searchRegistry(
  transport: Transport,
  domain: string,
  term: string,
  limit: number,
  signal?: AbortSignal,
): Promise<FoundImage[]> {
  const host = domain === HUB ? HUB_INDEX : domain
  try {
    const url = new URL(`${await transport.protocolOf(host, signal)}//${host}/v1/search`)
    url.search = new URLSearchParams({ q: term, n: String(limit) }).toString()
    const response = await transport.send({
      method: 'GET',
      url,
      headers: { Accept: 'application/json' },
      signal,
    })
    if (response.statusCode !== 200) {
      discard(response)
      if (response.statusCode === 404)
        throw new CoracleError(
          'NOT_IMPLEMENTED',
          `${printable(host)} has no search: few registries beside Docker Hub do`,
        )
      throw registryError(host, `it answers a search with status ${response.statusCode}`)
    }
    return foundIn(await readBody(response, MAX_ANSWER, host, signal), host).slice(0, limit)
  } catch (error) {
    if (error instanceof Transient)
      throw registryError(host, error.message, 'REGISTRY_FAILED', { cause: error })
    throw error
  }
}

function foundIn(body: Buffer, host: string): FoundImage[] {
  let answer: { results?: unknown } | null
  try {
    answer = JSON.parse(body.toString('utf8')) as typeof answer
  } catch {
    throw registryError(host, 'its answer to a search is no JSON')
  }
  const results = answer?.results
  if (!Array.isArray(results)) throw registryError(host, 'its answer to a search has no results')
  const text = (value: unknown): string =>
    typeof value === 'string' ? printable(Buffer.from(value.slice(0, MAX_TEXT)).toString('latin1')) : ''
  return (results as unknown[]).flatMap((each) => {
    if (typeof each !== 'object' || each === null) return []
    const { name, description, star_count: stars, is_official: official } = each as Record<string, unknown>
    if (text(name) === '') return []
    return {
      name: text(name),
      description: text(description),
      stars: Number.isSafeInteger(stars) ? (stars as number) : 0,
      official: official === true,
    }
  })
}
