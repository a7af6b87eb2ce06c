/**
 * Every error a user can meet, by its permanent code: a message may change, a code does not.
 * `status` is the HTTP status of the Docker Engine API, `exit` the exit status of the command line
 * (125: ours, 126: the command cannot be run, 127: the command is not there; as `docker run`).
 */
export const ERRORS = {
  INTERNAL: { status: 500, exit: 125 },
  INVALID_ARGUMENT: { status: 400, exit: 125 },
  USAGE: { status: 400, exit: 125 },
  NOT_FOUND: { status: 404, exit: 125 },
  NO_SUCH_CONTAINER: { status: 404, exit: 1 },
  NO_SUCH_EXEC: { status: 404, exit: 1 },
  NO_SUCH_IMAGE: { status: 404, exit: 125 },
  NO_SUCH_NETWORK: { status: 404, exit: 1 },
  NO_SUCH_VOLUME: { status: 404, exit: 1 },
  NO_SUCH_PLUGIN: { status: 404, exit: 1 },
  NO_SUCH_PATH: { status: 404, exit: 1 },
  CONFLICT: { status: 409, exit: 125 },
  FORBIDDEN: { status: 403, exit: 1 },
  ADDRESS_IN_USE: { status: 403, exit: 125 },
  PORT_IN_USE: { status: 500, exit: 125 },
  NOT_PUBLISHED: { status: 404, exit: 1 },
  NETWORK_FAILED: { status: 500, exit: 125 },
  NOT_RUNNING: { status: 409, exit: 1 },
  NOT_MODIFIED: { status: 304, exit: 0 },
  /** What asks for a swarm, of a host that is in none. */
  NO_SWARM: { status: 503, exit: 1 },
  NOT_IMPLEMENTED: { status: 501, exit: 125 },
  IMAGE_ARCHIVE: { status: 400, exit: 1 },
  DOCKERFILE: { status: 400, exit: 1 },
  BUILD_FAILED: { status: 500, exit: 1 },
  IMAGE_TOO_LARGE: { status: 413, exit: 1 },
  REGISTRY_DENIED: { status: 401, exit: 1 },
  REGISTRY_FAILED: { status: 500, exit: 1 },
  REGISTRY_NOT_FOUND: { status: 404, exit: 1 },
  COMMAND_NOT_FOUND: { status: 400, exit: 127 },
  COMMAND_NOT_EXECUTABLE: { status: 400, exit: 126 },
  KVM_UNAVAILABLE: { status: 500, exit: 125 },
  KVM_REFUSED: { status: 500, exit: 125 },
  KERNEL_INVALID: { status: 500, exit: 125 },
  MEMORY_SIZE: { status: 400, exit: 125 },
  GUEST_FAILED: { status: 500, exit: 125 },
  /** A snapshot that is truncated, damaged or edited. */
  SNAPSHOT_INVALID: { status: 400, exit: 125 },
  /** A snapshot of another host, build or version. */
  SNAPSHOT_MISMATCH: { status: 409, exit: 125 },
  /** What runs cannot be saved: a device or an isolation without snapshots. */
  SNAPSHOT_UNSUPPORTED: { status: 409, exit: 125 },
  NO_SUCH_SNAPSHOT: { status: 404, exit: 1 },
  SANDBOX_FAILED: { status: 500, exit: 125 },
  NO_SUCH_DEVICE: { status: 404, exit: 125 },
  DEVICE_IN_USE: { status: 409, exit: 125 },
  DEVICE_UNUSABLE: { status: 400, exit: 125 },
  VFIO_UNAVAILABLE: { status: 500, exit: 125 },
  HOST_TOOL: { status: 500, exit: 125 },
  NO_SPACE: { status: 500, exit: 125 },
  DAEMON_UNREACHABLE: { status: 500, exit: 125 },
} as const

export type ErrorCode = keyof typeof ERRORS

/** Whether the system had no room on a disk for what was to be written, or none for this user (errno.h). */
export const isNoSpace = (error: unknown): boolean =>
  ['ENOSPC', 'EDQUOT'].includes((error as NodeJS.ErrnoException | undefined)?.code ?? '')

/** An error with a message for the user: one line that names the cause and the way out. */
export class CoracleError extends Error {
  override readonly name: string = 'CoracleError'
  constructor(
    readonly code: ErrorCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options)
  }
  get status(): number {
    return ERRORS[this.code].status
  }
  get exit(): number {
    return ERRORS[this.code].exit
  }
}
