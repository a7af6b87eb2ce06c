import { resolve } from 'node:path'
import type { Argv } from 'yargs'
import { CoracleError } from '../errors.js'
import { listOf } from './command.js'
import { pairOf } from './pair.js'
import { parseSize } from './size.js'

const LIST = { type: 'string', array: true, requiresArg: true } as const

/** The options that say what a container has mounted. */
export const mountOptions = <T>(yargs: Argv<T>) =>
  yargs
    .option('volume', {
      ...LIST,
      alias: 'v',
      describe:
        'VOLUME:PATH or HOST-PATH:PATH, with :ro or :nocopy behind it; PATH alone: a volume without a name',
    })
    .option('mount', {
      ...LIST,
      describe: 'type=volume|bind|tmpfs,source=..,target=PATH[,readonly][,volume-nocopy][,tmpfs-size=64m]..',
    })
    .option('tmpfs', { ...LIST, describe: 'PATH[:OPTIONS]: a file system in memory, such as /run:size=16m' })
    .option('volumes-from', { ...LIST, describe: "CONTAINER[:ro]: that one's volumes, at the same places" })
    .option('volume-driver', { type: 'string', requiresArg: true, describe: 'local: there is no other' })

type MountOptions = ReturnType<typeof mountOptions<object>> extends Argv<infer T> ? T : never

/** Their parts of ContainerCreate's body. @throws CoracleError USAGE */
export function mountBody(options: MountOptions): {
  readonly Volumes: Record<string, object>
  readonly HostConfig: object
} {
  const volumes = listOf(options.volume)
  return {
    Volumes: Object.fromEntries(volumes.filter((text) => !text.includes(':')).map((path) => [path, {}])),
    HostConfig: {
      Binds: volumes.filter((text) => text.includes(':')).map(absolute),
      Mounts: listOf(options.mount).map(parseMount),
      Tmpfs: Object.fromEntries(listOf(options.tmpfs).map(tmpfs)),
      VolumesFrom: listOf(options['volumes-from']),
      ...(options['volume-driver'] === undefined ? {} : { VolumeDriver: options['volume-driver'] }),
    },
  }
}

/** A source that begins with a dot is a path from here. */
function absolute(bind: string): string {
  const at = bind.indexOf(':')
  return bind.startsWith('.') ? resolve(bind.slice(0, at)) + bind.slice(at) : bind
}

function tmpfs(text: string): [string, string] {
  const at = text.indexOf(':')
  return at < 0 ? [text, ''] : [text.slice(0, at), text.slice(at + 1)]
}

type Fields = Record<string, unknown>

/** What each word of `--mount` means: where it goes in the API's Mount, and how it is read. */
const WORDS: Readonly<Record<string, (mount: Mount, value: string, word: string) => void>> = {
  type: ({ top }, value) => (top['Type'] = value),
  source: ({ top }, value) => (top['Source'] = value),
  target: ({ top }, value) => (top['Target'] = value),
  readonly: ({ top }, value, word) => (top['ReadOnly'] = flag(value, word)),
  consistency: () => undefined,
  'bind-propagation': ({ bind }, value) => (bind['Propagation'] = value),
  'bind-nonrecursive': ({ bind }, value, word) => (bind['NonRecursive'] = flag(value, word)),
  'bind-create-src': ({ bind }, value, word) => (bind['CreateMountpoint'] = flag(value, word)),
  'volume-nocopy': ({ volume }, value, word) => (volume['NoCopy'] = flag(value, word)),
  'volume-subpath': ({ volume }, value) => (volume['Subpath'] = value),
  'volume-label': ({ volume }, value) => pair((volume['Labels'] ??= {}) as Fields, value),
  'volume-driver': ({ driver }, value) => (driver['Name'] = value),
  'volume-opt': ({ driver }, value) => pair((driver['Options'] ??= {}) as Fields, value),
  'tmpfs-size': ({ tmpfs }, value) => (tmpfs['SizeBytes'] = parseSize(value, 'tmpfs-size')),
  'tmpfs-mode': ({ tmpfs }, value) => (tmpfs['Mode'] = parseInt(value, 8)),
}
const ALIASES: Readonly<Record<string, string>> = {
  src: 'source',
  dst: 'target',
  destination: 'target',
  ro: 'readonly',
}

interface Mount {
  readonly top: Fields
  readonly bind: Fields
  readonly volume: Fields
  readonly driver: Fields
  readonly tmpfs: Fields
}

/** @throws CoracleError USAGE */
function parseMount(text: string): Fields {
  const mount: Mount = { top: { Type: 'volume' }, bind: {}, volume: {}, driver: {}, tmpfs: {} }
  for (const field of fieldsOf(text)) {
    const at = field.indexOf('=')
    const word = (at < 0 ? field : field.slice(0, at)).toLowerCase()
    const name = ALIASES[word] ?? word
    const take = Object.hasOwn(WORDS, name) ? WORDS[name] : undefined
    const bare = ['readonly', 'bind-nonrecursive', 'volume-nocopy', 'bind-create-src'].includes(name)
    if (!take || (at < 0 && !bare))
      throw new CoracleError('USAGE', `--mount: '${field}' is no field of a mount. See 'coracle run --help'.`)
    take(mount, at < 0 ? 'true' : field.slice(at + 1), word)
  }
  const { top, bind, volume, driver, tmpfs } = mount
  if (typeof top['Source'] === 'string' && top['Type'] === 'bind') top['Source'] = resolve(top['Source'])
  const some = (fields: Fields): boolean => Object.keys(fields).length > 0
  if (some(driver)) volume['DriverConfig'] = driver
  return {
    ...top,
    ...(some(bind) && { BindOptions: bind }),
    ...(some(volume) && { VolumeOptions: volume }),
    ...(some(tmpfs) && { TmpfsOptions: tmpfs }),
  }
}

/** The fields of a line of comma-separated values, in which quotes keep a comma. */
function fieldsOf(text: string): string[] {
  return (text.match(/(?:"(?:[^"]|"")*"|[^,"])+/g) ?? []).map((field) =>
    field.startsWith('"') ? field.slice(1, -1).replaceAll('""', '"') : field,
  )
}

function flag(value: string, word: string): boolean {
  if (/^(true|1)$/.test(value)) return true
  if (/^(false|0)$/.test(value)) return false
  throw new CoracleError('USAGE', `--mount: ${word} is true or false, not '${value}'`)
}

function pair(into: Fields, text: string): void {
  const [key, value] = pairOf(text)
  into[key] = value
}
