import { CoracleError } from '../errors.js'
import { PLATFORM } from '../image/contents.js'
import type { Query } from './router.js'

/** More of them are no request of anybody's. */
const MAX_PLATFORMS = 64

/**
 * Refuses a request for a variant of an image that is not here: of each image there is the one that this host runs.
 * The values are OCI platforms as JSON, in `platform` or `platforms`.
 * @param what the image, for the message
 * @throws CoracleError INVALID_ARGUMENT for what is no platform, NO_SUCH_IMAGE
 */
export function checkPlatforms(query: Query, what: string): void {
  const texts = [...query.texts('platform'), ...query.texts('platforms')].filter((text) => text !== '')
  for (const { os, architecture, variant } of texts.slice(0, MAX_PLATFORMS).map(platformOf)) {
    const isOurs = os === PLATFORM.os && architecture === PLATFORM.architecture
    if (isOurs && (variant === '' || variant === 'v1')) continue
    const name = [os, architecture, variant].filter((part) => part !== '').join('/')
    throw new CoracleError(
      'NO_SUCH_IMAGE',
      `${what} was found, but not for platform ${name}: images for ${PLATFORM.os}/${PLATFORM.architecture} are kept here`,
    )
  }
}

function platformOf(text: string): { os: string; architecture: string; variant: string } {
  const bad = (why: string): never => {
    throw new CoracleError('INVALID_ARGUMENT', `failed to parse platform: ${why}`)
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    bad(`'${text.slice(0, 64)}' is no JSON, such as {"os":"linux","architecture":"amd64"}`)
  }
  const { os, architecture, variant = '' } = (value ?? {}) as Record<string, unknown>
  const isName = (part: unknown): part is string => typeof part === 'string' && /^[\w.-]{0,64}$/.test(part)
  if (!isName(os) || !isName(architecture) || !isName(variant)) return bad('its parts are names')
  if (os === '' || architecture === '') return bad('both OS and Architecture must be provided')
  return { os, architecture, variant }
}
