import { posix } from 'node:path'
import { CoracleError } from '../errors.js'
import { checkDriver, checkVolumeName, deviceOf } from '../volume/record.js'
import type { CreateRequest } from './record.js'

/** What a client asks to be mounted (`--mount`; an element of `HostConfig.Mounts`). */
export interface MountRequest {
  readonly type: 'volume' | 'bind' | 'tmpfs'
  /** A volume's name, or a path of the host. Absent of a volume: one that nobody named. */
  readonly source?: string
  readonly target: string
  readonly readOnly?: boolean
  /** Of a bind: `rprivate` (the default) or `private`. */
  readonly propagation?: string
  /** Of a bind: what is mounted below the source is left out. */
  readonly nonRecursive?: boolean
  /** Of a bind: make the source where it is missing. */
  readonly createSource?: boolean
  /** Of a volume: nothing of the image comes into it. */
  readonly noCopy?: boolean
  /** Of a volume that is made for this. */
  readonly labels?: Readonly<Record<string, string>>
  readonly driver?: string
  readonly driverOptions?: Readonly<Record<string, string>>
  /** Of a tmpfs, in bytes; 0 or absent for half of the memory. */
  readonly size?: number
  /** Of a tmpfs: permission bits. */
  readonly mode?: number
}

/** One mount of a container, settled. */
export interface MountPoint {
  readonly type: MountRequest['type']
  /** Of a volume. */
  readonly name?: string
  /** Path on the host, absolute; of a volume where its data are, of a tmpfs empty. */
  readonly source: string
  readonly destination: string
  readonly readOnly: boolean
  /** What Docker shows as its mode: the options of `-v`. */
  readonly mode: string
  readonly propagation: string
  readonly nonRecursive?: boolean
  /** A volume that nobody named, made for this container. */
  readonly anonymous?: boolean
  /** The image's content has still to come into it, if it is empty. */
  readonly copyUp?: boolean
  /** Options of a tmpfs, as mount(8) has them. */
  readonly options?: readonly string[]
}

/** A mount point whose volume, if it is one, has still to be made or found. */
export interface PlannedMount extends MountPoint {
  readonly labels?: Readonly<Record<string, string>>
  readonly driverOptions?: Readonly<Record<string, string>>
  /** A source that is to be made where it is missing. */
  readonly createSource?: boolean
}

/** Words that Docker takes and that mean nothing on Linux, or nothing without SELinux. */
const IGNORED = ['z', 'Z', 'consistent', 'cached', 'delegated', 'default']
const PROPAGATIONS = ['private', 'rprivate', 'shared', 'rshared', 'slave', 'rslave']
/** What a tmpfs is mounted with where its options do not say otherwise. */
const TMPFS = ['nosuid', 'nodev', 'noexec']

/**
 * All that is mounted into a container beside what every one has: by destination, those before that others lie in.
 * Later ones win over earlier ones at the same place, as in Docker: of other containers, then `-v` and `--mount`, then
 * those that the image or the request declares and that nobody put anything at.
 * @param declared the image's VOLUMEs
 * @param mountsOf the mounts of another container @throws CoracleError NO_SUCH_CONTAINER
 * @throws CoracleError INVALID_ARGUMENT, NOT_IMPLEMENTED
 */
export function planMounts(
  request: CreateRequest,
  declared: readonly string[],
  mountsOf: (reference: string) => readonly MountPoint[],
): PlannedMount[] {
  const planned = new Map<string, PlannedMount>()
  for (const from of request.volumesFrom ?? []) {
    const [, reference = '', mode = ''] = /^([^:]+)(?::(.*))?$/.exec(from) ?? []
    const others = mode.split(',').filter((word) => !['', 'ro', 'rw', ...IGNORED].includes(word))
    if (reference === '' || others.length > 0)
      throw new CoracleError('INVALID_ARGUMENT', `invalid --volumes-from: ${from.slice(0, 128)}`)
    for (const { copyUp: _, ...point } of mountsOf(reference))
      if (point.type !== 'tmpfs')
        planned.set(point.destination, {
          ...point,
          readOnly: point.readOnly || mode.split(',').includes('ro'),
        })
  }
  const own = new Set<string>()
  const add = (mount: PlannedMount): void => {
    const { destination } = mount
    if (own.has(destination))
      throw new CoracleError('INVALID_ARGUMENT', `Duplicate mount point: ${destination}`)
    own.add(destination)
    planned.set(destination, mount)
  }
  for (const bind of request.binds ?? []) add(parseBind(bind))
  for (const mount of request.mounts ?? []) add(planMount(mount))
  for (const path of Object.keys(request.tmpfs ?? {})) {
    const destination = checkDestination(path)
    if (own.has(destination))
      throw new CoracleError('INVALID_ARGUMENT', `Duplicate mount point: ${destination}`)
    planned.delete(destination)
    own.add(destination)
  }
  for (const path of [...(request.volumes ?? []), ...declared]) {
    const destination = checkDestination(path)
    if (planned.has(destination) || own.has(destination)) continue
    planned.set(destination, { ...VOLUME, destination, anonymous: true, copyUp: true })
  }
  return [...planned.values()].sort((a, b) => depth(a.destination) - depth(b.destination))
}

const depth = (path: string): number => path.split('/').length

const VOLUME = { type: 'volume', source: '', readOnly: false, mode: '', propagation: '' } as const

/** `[SOURCE:]DESTINATION[:OPTIONS]` of `-v`. @throws CoracleError INVALID_ARGUMENT, NOT_IMPLEMENTED */
export function parseBind(text: string): PlannedMount {
  const parts = text.split(':')
  const [source = '', target = '', mode = ''] = parts
  if (parts.length < 2 || parts.length > 3 || source === '' || target === '')
    throw new CoracleError('INVALID_ARGUMENT', `invalid volume specification: '${text.slice(0, 128)}'`)
  const words = mode.split(',').filter((word) => word !== '')
  const isBind = source.startsWith('/')
  let propagation = 'rprivate'
  for (const word of words) {
    if (PROPAGATIONS.includes(word) && isBind) propagation = checkPropagation(word)
    else if (!['ro', 'rw', ...IGNORED].includes(word) && !(word === 'nocopy' && !isBind))
      throw new CoracleError('INVALID_ARGUMENT', `invalid mode: ${mode.slice(0, 64)}`)
  }
  if (words.includes('ro') && words.includes('rw'))
    throw new CoracleError('INVALID_ARGUMENT', `invalid mode: ${mode.slice(0, 64)}`)
  const common = { destination: checkDestination(target), readOnly: words.includes('ro') }
  if (isBind)
    return { ...common, type: 'bind', source: checkSource(source), mode, propagation, createSource: true }
  checkVolumeName(source)
  const copyUp = !words.includes('nocopy')
  return { ...VOLUME, ...common, name: source, mode: mode || 'z', ...(copyUp && { copyUp }) }
}

function planMount(mount: MountRequest): PlannedMount {
  const { type, source = '', target, readOnly = false } = mount
  const invalid = (why: string): CoracleError =>
    new CoracleError('INVALID_ARGUMENT', `invalid mount config for type "${type}": ${why}`)
  if (target === '') throw invalid('field Target must not be empty')
  const common = { destination: checkDestination(target), readOnly, mode: '' }
  switch (type) {
    case 'bind':
      if (source === '') throw invalid('field Source must not be empty')
      return {
        ...common,
        type,
        source: checkSource(source),
        propagation: checkPropagation(mount.propagation || 'rprivate'),
        ...(mount.nonRecursive && { nonRecursive: true }),
        ...(mount.createSource && { createSource: true }),
      }
    case 'volume': {
      checkDriver(mount.driver)
      deviceOf(mount.driverOptions)
      if (source !== '') checkVolumeName(source)
      return {
        ...VOLUME,
        ...common,
        mode: 'z',
        ...(source === '' ? { anonymous: true } : { name: source }),
        ...(!mount.noCopy && { copyUp: true }),
        ...(mount.labels && { labels: mount.labels }),
        ...(mount.driverOptions && { driverOptions: mount.driverOptions }),
      }
    }
    case 'tmpfs': {
      if (source !== '') throw invalid('field Source must not be specified')
      const { size = 0, mode = 0o1777 } = mount
      if (size < 0 || mode < 0 || mode > 0o7777) throw invalid('its size or its mode is none')
      const options = [...TMPFS, `mode=${mode.toString(8)}`, ...(size > 0 ? [`size=${size}`] : [])]
      return {
        ...common,
        type,
        source: '',
        propagation: '',
        options: readOnly ? [...options, 'ro'] : options,
      }
    }
  }
}

/** @throws CoracleError NOT_IMPLEMENTED for mounts that come and go with the host's, INVALID_ARGUMENT */
function checkPropagation(word: string): string {
  if (!PROPAGATIONS.includes(word))
    throw new CoracleError('INVALID_ARGUMENT', `invalid propagation: ${word.slice(0, 64)}`)
  if (!word.endsWith('private'))
    throw new CoracleError(
      'NOT_IMPLEMENTED',
      `propagation ${word} is not built: what is mounted on the host while a container runs stays out of it (rprivate)`,
    )
  return word
}

function checkSource(path: string): string {
  if (!path.startsWith('/') || path.includes('\0') || Buffer.byteLength(path) > 4095)
    throw new CoracleError('INVALID_ARGUMENT', `invalid mount path: '${path.slice(0, 128)}' must be absolute`)
  return posix.normalize(path).replace(/(?<=.)\/$/, '')
}

/** @returns the path without `.`, `..` and a slash at its end */
function checkDestination(path: string): string {
  if (!path.startsWith('/') || path.includes('\0') || Buffer.byteLength(path) > 4095)
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `invalid mount path: '${path.slice(0, 128)}' mount path must be absolute`,
    )
  const clean = posix.normalize(path).replace(/(?<=.)\/$/, '')
  if (clean === '/')
    throw new CoracleError('INVALID_ARGUMENT', "invalid specification: destination can't be '/'")
  return clean
}

/** The options of a tmpfs of `--tmpfs PATH:OPTIONS`. */
export function tmpfsOptions(options: string): string[] {
  const given = options.split(',').filter((option) => option !== '')
  // `exec` takes `noexec` away, and so on.
  return [...TMPFS.filter((option) => !given.includes(option.slice(2))), ...given]
}
