import type { RootLayer } from '../isolation/sandbox.js'

/** A health check as Docker writes it; times are nanoseconds, and 0 is as absent. */
export interface ImageHealthcheck {
  /** `NONE`; `CMD` and words; `CMD-SHELL` and a text. */
  Test?: string[]
  Interval?: number
  Timeout?: number
  StartPeriod?: number
  StartInterval?: number
  Retries?: number
}

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
  Healthcheck?: ImageHealthcheck
}

/** A layer of an image: of its file, not all is in use. */
export interface ImageLayer extends RootLayer {
  /** Bytes. */
  readonly used: number
}

/** An image in the store, complete: each of its layers is there as a root layer. */
export interface Image {
  /** Digest of the config blob, `sha256:…`: Docker's image id. */
  readonly id: string
  /** Names with tags as users write them, such as `busybox:latest`. Empty for an image that lost its last name. */
  readonly tags: readonly string[]
  /** Names with the manifest's digest, such as `busybox@sha256:…` (Docker's RepoDigests). */
  readonly digests: readonly string[]
  readonly architecture: string
  readonly os: string
  /** RFC 3339. */
  readonly created: string
  /** Bytes that its layers use. */
  readonly size: number
  readonly config: ImageRuntimeConfig
  /** Lowest first. Empty layers are left out, and of a layer that occurs twice all but the topmost. */
  readonly layers: readonly ImageLayer[]
}

/** What a load is doing now. */
export interface LoadProgress {
  /** `read`: the archive's bytes come in; `convert`: a layer becomes a root layer. */
  readonly phase: 'read' | 'convert'
  /** Bytes so far: of the archive as it came, or of the layer's blob. */
  readonly current: number
  /** Bytes in all, where known. */
  readonly total?: number
  /** The layer's diffID, while converting. */
  readonly layer?: string
}

export interface LoadOptions {
  /** Called at most some tens of times a second. */
  readonly onProgress?: (progress: LoadProgress) => void
  readonly signal?: AbortSignal
}

export interface RemoveOptions {
  /** Remove an image by its id though it has names in several repositories. */
  readonly force?: boolean
  /**
   * Asked before an image's last name and its layers go. A string, such as `container 1234 is using it`, refuses.
   * Any container that exists, running or not, needs its image's layers.
   */
  readonly inUse?: (image: Image) => string | undefined
}

/** One line of Docker's answer to an image's removal. */
export type Removal = { readonly Untagged: string } | { readonly Deleted: string }
