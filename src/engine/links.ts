import { CoracleError } from '../errors.js'
import type { ContainerRecord } from './record.js'

/** Another container under a further name (`--link`). */
export interface ContainerLink {
  /** A reference, then an id. */
  readonly container: string
  readonly alias: string
}

/** `NAME[:ALIAS]`. @throws CoracleError INVALID_ARGUMENT */
export function parseLink(text: string): ContainerLink {
  const [, container, alias = container] =
    /^\/?([a-zA-Z0-9][\w.-]{0,127})(?::([a-zA-Z0-9][\w.-]{0,62}))?$/.exec(text) ?? []
  if (container === undefined || alias === undefined)
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `bad format for links: ${text.slice(0, 128)}: it is NAME[:ALIAS]`,
    )
  return { container, alias }
}

/**
 * Lines for /etc/hosts as `--add-host` has them: what links mean in Docker today is names, and no variables. The
 * addresses are those of the moment: a container that is started again may have another.
 * @param addressOf an IPv4 address of a running container on a network of ours
 * @throws CoracleError CONFLICT where one does not run, or is on none of our networks
 */
export function linkedHosts(
  links: readonly ContainerLink[],
  read: (id: string) => ContainerRecord | undefined,
  addressOf: (id: string) => string | undefined,
): string[] {
  return links.flatMap(({ container, alias }) => {
    const name = read(container)?.name ?? container.slice(0, 12)
    const address = addressOf(container)
    if (address === undefined)
      throw new CoracleError(
        'CONFLICT',
        `Cannot link to ${name}, AS ${alias}: it does not run, or is on no network of this container`,
      )
    return [...new Set([alias, name, container.slice(0, 12)])].map((each) => `${each}:${address}`)
  })
}
