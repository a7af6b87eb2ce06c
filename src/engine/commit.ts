import type { Readable } from 'node:stream'
import { CoracleError } from '../errors.js'
import type { RawConfig } from '../image/compose.js'
import type { Image } from '../image/image.js'
import { canonicalName, parseReference } from '../image/reference.js'
import type { ImageStore } from '../image/store.js'
import type { Archives } from './archives.js'
import { changedConfig } from './build/change.js'
import type { ContainerRecord } from './record.js'

/** What `commit` is asked for. */
export interface CommitOptions {
  /** The new image's name, with a tag or without. */
  readonly name?: string
  readonly comment?: string
  readonly author?: string
  /** Changes of the configuration, over the container's own (Docker's `Config` body, Dockerfile's changes). */
  readonly config?: RawConfig
  /** Instructions of a Dockerfile, carried out last. */
  readonly changes?: readonly string[]
  /** A running container stands still while its files are read. @default true */
  readonly pause?: boolean
}

/**
 * Makes an image of what a container changed of its own. The configuration is the image's, with what the container
 * was given in its place.
 * @throws CoracleError INVALID_ARGUMENT for the name, and what reading the container's files throws
 */
export async function commitContainer(
  on: { readonly images: Pick<ImageStore, 'get' | 'config' | 'compose'>; readonly archives: Archives },
  record: ContainerRecord,
  { name, comment, author, config = {}, changes = [], pause = true }: CommitOptions,
): Promise<Image> {
  const names = name === undefined ? [] : [newName(name)]
  const base = on.images.get(record.imageId)
  const document = on.images.config(base) as { config?: RawConfig | null }
  const { request, spec } = record
  /** Those of the image, and the container's own. */
  const withNames = (key: 'ExposedPorts' | 'Volumes', names: readonly string[] = []): RawConfig =>
    names.length === 0
      ? {}
      : {
          [key]: {
            ...(document.config?.[key] as object | undefined),
            ...Object.fromEntries(names.map((name) => [name, {}])),
          },
        }
  const given: RawConfig = {
    ...(request.command ? { Cmd: request.command } : {}),
    ...(request.entrypoint ? { Entrypoint: request.entrypoint } : {}),
    ...(request.workingDirectory ? { WorkingDir: request.workingDirectory } : {}),
    ...(request.user ? { User: request.user } : {}),
    ...(request.env
      ? { Env: spec.bundle.process.env.filter((entry) => !entry.startsWith('HOSTNAME=')) }
      : {}),
    ...(request.labels && Object.keys(request.labels).length > 0 ? { Labels: request.labels } : {}),
    ...(request.stopSignal ? { StopSignal: request.stopSignal } : {}),
    ...(request.healthcheck ? { Healthcheck: request.healthcheck } : {}),
    ...withNames('ExposedPorts', request.exposedPorts),
    ...withNames('Volumes', request.volumes),
  }
  const compose = (layer: Readable): Promise<Image> =>
    on.images.compose({
      base,
      layer,
      config: changedConfig({ ...document.config, ...given, ...config }, changes),
      history: [
        {
          created: new Date().toISOString(),
          created_by: spec.bundle.process.args.join(' '),
          ...(comment ? { comment } : {}),
          ...(author ? { author } : {}),
        },
      ],
      ...(author ? { author } : {}),
      names,
    })
  return on.archives.layer(record.id, compose, { still: pause })
}

/** The complete form of a name for a new image. @throws CoracleError INVALID_ARGUMENT */
export function newName(name: string): string {
  const reference = parseReference(name)
  if (reference.digest !== undefined)
    throw new CoracleError('INVALID_ARGUMENT', `invalid image name ${name}: a new name has a tag, no digest`)
  return canonicalName(reference)
}
