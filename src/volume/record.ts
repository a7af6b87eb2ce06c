import { CoracleError } from '../errors.js'

/** The label that says that nobody named a volume (Docker's). */
export const ANONYMOUS_LABEL = 'com.docker.volume.anonymous'

/** What is kept of a volume. */
export interface VolumeRecord {
  readonly version: 1
  readonly name: string
  /** RFC 3339. */
  readonly created: string
  readonly labels: Readonly<Record<string, string>>
  /** As they were given. @see deviceOf */
  readonly options: Readonly<Record<string, string>>
}

/** What a client asks for. */
export interface VolumeRequest {
  /** Absent: a name that nobody chose, 64 hexadecimal digits. */
  readonly name?: string
  /** @default 'local' */
  readonly driver?: string
  readonly labels?: Readonly<Record<string, string>>
  readonly options?: Readonly<Record<string, string>>
}

/** Docker's rule: at least two characters, none that leads elsewhere. */
const NAME = /^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,199}$/

/** @throws CoracleError INVALID_ARGUMENT */
export function checkVolumeName(name: string): void {
  if (!NAME.test(name))
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `"${name.slice(0, 64)}" is no name for a volume: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, 2 to 200 of ` +
        'them. For a folder of the host, give its absolute path',
    )
}

/** @throws CoracleError INVALID_ARGUMENT for any but `local` */
export function checkDriver(driver: string | undefined): void {
  if (driver && driver !== 'local')
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `no volume driver is called "${driver.slice(0, 64)}": there is local, and no plugins`,
    )
}

/**
 * The folder of the host that the options put in the place of the volume's own: Docker's `type=none`, `o=bind`,
 * `device=PATH`.
 * @returns undefined for none
 * @throws CoracleError INVALID_ARGUMENT, NOT_IMPLEMENTED for file systems to be mounted
 */
export function deviceOf(options: VolumeRequest['options'] = {}): string | undefined {
  const { type, o, device, ...others } = options
  const [unknown] = Object.keys(others)
  if (unknown !== undefined)
    throw new CoracleError('INVALID_ARGUMENT', `invalid option: "${unknown.slice(0, 64)}"`)
  if (type === undefined && o === undefined && device === undefined) return undefined
  const flags = (o ?? '').split(',')
  if ((type && type !== 'none') || !flags.some((flag) => flag === 'bind' || flag === 'rbind'))
    throw new CoracleError(
      'NOT_IMPLEMENTED',
      `volumes of type ${(type ?? '').slice(0, 32)} are not built yet: there is type=none with o=bind`,
    )
  const other = flags.find((flag) => flag !== 'bind' && flag !== 'rbind')
  if (other !== undefined)
    throw new CoracleError('NOT_IMPLEMENTED', `the mount option ${other.slice(0, 32)} is not built yet`)
  if (!device?.startsWith('/') || device.includes('\0'))
    throw new CoracleError('INVALID_ARGUMENT', 'a volume with o=bind needs device=PATH, an absolute path')
  return device
}
