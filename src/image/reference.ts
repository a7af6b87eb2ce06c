import { CoracleError } from '../errors.js'

/**
 * A name as Docker writes it, `[domain/]path[:tag][@digest]`, made complete: `busybox` is
 * `docker.io/library/busybox:latest` (grammar: github.com/distribution/reference).
 */
export interface Reference {
  /** Domain and path: `docker.io/library/busybox`. */
  readonly repository: string
  readonly tag?: string
  /** `sha256:…` */
  readonly digest?: string
}

const DOMAIN =
  /^(?:[a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9])(?:\.(?:[a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9]))*(?::\d+)?$/i
const IPV6_DOMAIN = /^\[[0-9a-f:]+\](?::\d+)?$/i
const COMPONENT = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/
const TAG = /^\w[\w.-]{0,127}$/
const DIGEST = /^sha256:[0-9a-f]{64}$/
const DEFAULT_DOMAIN = 'docker.io'
const DEFAULT_PREFIX = `${DEFAULT_DOMAIN}/library/`
/** Domain and path together, as Docker limits them. */
const MAX_REPOSITORY = 255

/** @returns whether the text is `sha256:` and 64 hexadecimal digits in lower case. */
export const isDigest = (text: unknown): text is string => typeof text === 'string' && DIGEST.test(text)

/**
 * @param text as the user wrote it
 * @returns with a digest or a tag; the tag is `latest` where the text has neither
 * @throws CoracleError INVALID_ARGUMENT
 */
export function parseReference(text: string): Reference {
  const wrong = (why: string): CoracleError =>
    new CoracleError('INVALID_ARGUMENT', `invalid image name ${JSON.stringify(text.slice(0, 300))}: ${why}`)
  let rest = text
  let digest: string | undefined
  const at = rest.indexOf('@')
  if (at >= 0) {
    digest = rest.slice(at + 1)
    rest = rest.slice(0, at)
    if (!isDigest(digest)) throw wrong('after the @ comes sha256: and 64 hexadecimal digits')
  }
  let tag: string | undefined
  const colon = rest.lastIndexOf(':')
  if (colon > rest.lastIndexOf('/')) {
    tag = rest.slice(colon + 1)
    rest = rest.slice(0, colon)
    if (!TAG.test(tag)) throw wrong('a tag is up to 128 letters, digits, _, . and -')
  }
  if (/^[0-9a-f]{64}$/.test(rest)) throw wrong('64 hexadecimal digits are an id, not a name')
  const slash = rest.indexOf('/')
  const first = slash < 0 ? '' : rest.slice(0, slash)
  const hasDomain = /[.:[]/.test(first) || first === 'localhost' || first !== first.toLowerCase()
  let domain = hasDomain ? first : DEFAULT_DOMAIN
  let path = hasDomain ? rest.slice(slash + 1) : rest
  if (domain === 'index.docker.io') domain = DEFAULT_DOMAIN
  if (domain === DEFAULT_DOMAIN && !path.includes('/')) path = `library/${path}`
  if (!DOMAIN.test(domain) && !IPV6_DOMAIN.test(domain)) throw wrong('its registry is no host name')
  if (!path.split('/').every((component) => COMPONENT.test(component)))
    throw wrong('a name is lower-case letters and digits, with single . _ - between them')
  const repository = `${domain}/${path}`
  if (repository.length > MAX_REPOSITORY) throw wrong(`it is longer than ${MAX_REPOSITORY} characters`)
  if (digest === undefined) tag ??= 'latest'
  return {
    repository,
    ...(tag === undefined ? {} : { tag }),
    ...(digest === undefined ? {} : { digest }),
  }
}

/** The complete name that the store keeps: with the digest where there is one, else with the tag. */
export const canonicalName = (reference: Reference): string =>
  reference.digest === undefined
    ? `${reference.repository}:${reference.tag ?? 'latest'}`
    : `${reference.repository}@${reference.digest}`

/** A complete name as users write it: `docker.io/library/busybox:latest` is `busybox:latest`. */
export function familiarName(canonical: string): string {
  if (canonical.startsWith(DEFAULT_PREFIX)) return canonical.slice(DEFAULT_PREFIX.length)
  if (canonical.startsWith(`${DEFAULT_DOMAIN}/`)) return canonical.slice(DEFAULT_DOMAIN.length + 1)
  return canonical
}
