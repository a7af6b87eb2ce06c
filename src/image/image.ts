import type { RootLayer } from '../isolation/sandbox.js'

/** The runtime part of an image's config (OCI image-spec config.md, `config`). */
export interface ImageRuntimeConfig {
  User?: string
  Env?: string[]
  Entrypoint?: string[] | null
  Cmd?: string[] | null
  WorkingDir?: string
  Labels?: Record<string, string>
  StopSignal?: string
  ExposedPorts?: Record<string, object>
  Volumes?: Record<string, object>
}

/** An image in the store, complete: each of its layers is there as a root layer. */
export interface Image {
  /** Digest of the config blob, `sha256:…`: Docker's image id. */
  readonly id: string
  /** Names with tags, such as `busybox:latest`. */
  readonly tags: readonly string[]
  readonly architecture: string
  readonly os: string
  /** RFC 3339. */
  readonly created: string
  /** Sum of the layers' lengths in bytes. */
  readonly size: number
  readonly config: ImageRuntimeConfig
  readonly layers: readonly RootLayer[]
}
