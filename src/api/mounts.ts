import type { MountPoint, MountRequest } from '../engine/mounts.js'
import type { ContainerRecord, CreateRequest } from '../engine/record.js'
import { CoracleError } from '../errors.js'
import { checkDriver } from '../volume/record.js'
import type { Loose } from './create.js'
import type { CreateBody, MountBody } from './schemas.js'

type MountPart = Pick<CreateRequest, 'binds' | 'mounts' | 'volumesFrom' | 'volumes'>

/** What a container is to have mounted. @throws CoracleError INVALID_ARGUMENT, NOT_IMPLEMENTED */
export function mountPart(body: CreateBody): Loose<MountPart> {
  const host = body.HostConfig ?? {}
  checkDriver(host.VolumeDriver)
  const some = <T>(list: readonly T[] | null | undefined): readonly T[] | undefined =>
    list?.length ? list : undefined
  return {
    binds: some(host.Binds),
    mounts: some(host.Mounts?.map(mountRequest)),
    volumesFrom: some(host.VolumesFrom),
    volumes: some(Object.keys(body.Volumes ?? {})),
  }
}

function mountRequest(body: MountBody): MountRequest {
  const { Type: type, Source, Target = '', ReadOnly } = body
  const { BindOptions, VolumeOptions, TmpfsOptions, ImageOptions } = body
  const notBuilt = (what: string): CoracleError =>
    new CoracleError('NOT_IMPLEMENTED', `${what} not built yet`)
  if (type !== 'bind' && type !== 'volume' && type !== 'tmpfs') throw notBuilt(`mounts of type ${type} are`)
  const misplaced: [unknown, string][] = [
    [type !== 'bind' && BindOptions, 'BindOptions'],
    [type !== 'volume' && VolumeOptions, 'VolumeOptions'],
    [type !== 'tmpfs' && TmpfsOptions, 'TmpfsOptions'],
    [ImageOptions, 'ImageOptions'],
  ]
  for (const [is, name] of misplaced)
    if (is)
      throw new CoracleError(
        'INVALID_ARGUMENT',
        `invalid mount config for type "${type}": field ${name} must not be specified`,
      )
  if (VolumeOptions?.Subpath) throw notBuilt('parts of a volume (volume-subpath) are')
  if (BindOptions?.ReadOnlyNonRecursive || TmpfsOptions?.Options?.length)
    throw notBuilt('ReadOnlyNonRecursive and options of a tmpfs are')
  const { Name, Options } = VolumeOptions?.DriverConfig ?? {}
  return {
    type,
    target: Target,
    ...(Source ? { source: Source } : {}),
    ...(ReadOnly ? { readOnly: true } : {}),
    ...(BindOptions?.Propagation ? { propagation: BindOptions.Propagation } : {}),
    ...(BindOptions?.NonRecursive ? { nonRecursive: true } : {}),
    ...(BindOptions?.CreateMountpoint ? { createSource: true } : {}),
    ...(VolumeOptions?.NoCopy ? { noCopy: true } : {}),
    ...(VolumeOptions?.Labels ? { labels: VolumeOptions.Labels } : {}),
    ...(Name ? { driver: Name } : {}),
    ...(Options && Object.keys(Options).length > 0 ? { driverOptions: Options } : {}),
    ...(TmpfsOptions?.SizeBytes ? { size: TmpfsOptions.SizeBytes } : {}),
    ...(TmpfsOptions?.Mode ? { mode: TmpfsOptions.Mode } : {}),
  }
}

/** The part of HostConfig that is about mounts, as it was asked for. */
export function mountHostConfig({ binds, mounts, volumesFrom }: CreateRequest): object {
  return {
    Binds: binds ?? null,
    ...(mounts && { Mounts: mounts.map(requestShape) }),
    VolumesFrom: volumesFrom ?? null,
    VolumeDriver: '',
  }
}

function requestShape(mount: MountRequest): object {
  const { type, source, target, readOnly, propagation, nonRecursive, createSource } = mount
  const { noCopy, labels, driver, driverOptions, size, mode } = mount
  const bind = {
    ...(propagation && { Propagation: propagation }),
    ...(nonRecursive && { NonRecursive: true }),
    ...(createSource && { CreateMountpoint: true }),
  }
  const volume = {
    ...(noCopy && { NoCopy: true }),
    ...(labels && { Labels: labels }),
    ...((driver || driverOptions) && { DriverConfig: { Name: driver ?? 'local', Options: driverOptions } }),
  }
  const tmpfs = { ...(size && { SizeBytes: size }), ...(mode && { Mode: mode }) }
  const some = (options: object): boolean => Object.keys(options).length > 0
  return {
    Type: type,
    ...(source && { Source: source }),
    Target: target,
    ...(readOnly && { ReadOnly: true }),
    ...(some(bind) && { BindOptions: bind }),
    ...(some(volume) && { VolumeOptions: volume }),
    ...(some(tmpfs) && { TmpfsOptions: tmpfs }),
  }
}

/** `Mounts` of ContainerInspect and ContainerList. */
export function mountsShape({ mounts = [] }: ContainerRecord): object[] {
  return mounts.map(({ type, name, source, destination, mode, readOnly, propagation }: MountPoint) => ({
    Type: type,
    ...(name === undefined ? {} : { Name: name }),
    Source: source,
    Destination: destination,
    ...(type === 'volume' ? { Driver: 'local' } : {}),
    Mode: mode,
    RW: !readOnly,
    Propagation: propagation,
  }))
}

/** `Volumes` of Config: places of volumes, those of the image among them. */
export function volumesShape({ mounts = [], request }: ContainerRecord): object | null {
  const anonymous = mounts.flatMap(({ anonymous, mode, destination }) =>
    anonymous && mode === '' ? [destination] : [],
  )
  const places = new Set([...(request.volumes ?? []), ...anonymous])
  return places.size > 0 ? Object.fromEntries([...places].map((path) => [path, {}])) : null
}
