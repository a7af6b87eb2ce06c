import { lstatSync, readdirSync, statSync, type Stats } from 'node:fs'
import { join } from 'node:path'
import { deviceNumber } from '../../device-number.js'
import { CoracleError } from '../../errors.js'
import type { SandboxDeviceFile } from '../sandbox.js'

/** OCI config-linux.md, `linux.devices`. */
interface Device {
  readonly path: string
  readonly type: 'c' | 'b'
  readonly major: number
  readonly minor: number
  readonly fileMode: number
  readonly uid: number
  readonly gid: number
}

/** OCI config-linux.md, `linux.resources.devices`. */
interface Rule {
  readonly allow: true
  readonly type: 'c' | 'b'
  readonly major: number
  readonly minor: number
  readonly access: string
}

/** What every container has of its own in /dev. */
const OWN = new Set(
  ['console', 'fd', 'full', 'mqueue', 'null', 'ptmx', 'pts', 'random', 'shm', 'tty', 'urandom', 'zero'].map(
    (name) => `/dev/${name}`,
  ),
)
/** Of a folder, so many at most. */
const MAX_DEVICES = 4096

/**
 * The host's device files as crun makes them in a container, and the rules that let it use them.
 * @throws CoracleError INVALID_ARGUMENT for what is no device, nor a folder with some
 */
export function hostDevices(files: readonly SandboxDeviceFile[]): { devices: Device[]; rules: Rule[] } {
  const devices = new Map<string, Device>()
  const rules: Rule[] = []
  for (const { source, destination, access } of files) {
    const found = devicesAt(source, destination)
    if (found.length === 0)
      throw new CoracleError(
        'INVALID_ARGUMENT',
        `${source} of the host is no device, nor a folder with devices`,
      )
    for (const device of found) {
      const { path, type, major, minor } = device
      if (devices.has(path)) continue
      devices.set(path, device)
      rules.push({ allow: true, type, major, minor, access })
    }
  }
  return { devices: [...devices.values()], rules }
}

function devicesAt(source: string, destination: string): Device[] {
  const found: Device[] = []
  const visit = (from: string, to: string, stat: Stats | undefined): void => {
    if (!stat || found.length >= MAX_DEVICES || OWN.has(to)) return
    if (stat.isCharacterDevice() || stat.isBlockDevice()) found.push(deviceOf(to, stat))
    else if (stat.isDirectory())
      for (const name of readdirSync(from))
        visit(join(from, name), join(to, name), lstatSync(join(from, name), { throwIfNoEntry: false }))
  }
  // What a user names may be a link, such as those of udev; what is found in a folder may not.
  visit(source, destination, statSync(source, { throwIfNoEntry: false }))
  return found
}

function deviceOf(path: string, stat: Stats): Device {
  const { mode, rdev, uid, gid } = stat
  return {
    path,
    type: stat.isCharacterDevice() ? 'c' : 'b',
    ...deviceNumber(rdev),
    fileMode: mode & 0o7777,
    uid,
    gid,
  }
}
