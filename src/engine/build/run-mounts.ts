import { mkdirSync, writeFileSync, chownSync, chmodSync } from 'node:fs'
import { join, posix } from 'node:path'
import { expand, type Lookup } from '../../image/dockerfile/words.js'
import { type Instruction, problem } from '../../image/dockerfile/parse.js'
import { unpack } from '../../image/unpack.js'
import { bytesOf } from '../../size.js'
import type { MountRequest } from '../mounts.js'
import type { BuildCaches, CacheSharing } from './caches.js'
import { type CopiedTree, treeTar } from './copy.js'

/** One `--mount` of a RUN (Dockerfile reference, "RUN --mount"). */
export type RunMount = {
  /** Absolute. */
  readonly target: string
  readonly readOnly: boolean
} & (
  | { readonly type: 'bind'; readonly from: string | undefined; readonly source: string }
  | {
      readonly type: 'cache'
      readonly id: string
      readonly sharing: CacheSharing
      readonly mode: number
      readonly uid: number
      readonly gid: number
      readonly from: string | undefined
      readonly source: string
    }
  | {
      readonly type: 'secret'
      readonly id: string
      /** The variable that it is put into; with it, a file only where a target was named too. */
      readonly env: string | undefined
      readonly file: boolean
      readonly required: boolean
      readonly mode: number
      readonly uid: number
      readonly gid: number
    }
  | { readonly type: 'tmpfs'; readonly size: number }
  /** A here-document that names its interpreter; no `--mount`. */
  | { readonly type: 'script'; readonly content: string }
)

const OPTIONS: Readonly<Record<string, readonly string[]>> = {
  bind: ['from', 'source'],
  cache: ['id', 'sharing', 'mode', 'uid', 'gid', 'from', 'source'],
  secret: ['id', 'required', 'mode', 'uid', 'gid', 'env'],
  tmpfs: ['size'],
}
const SHORT: Readonly<Record<string, string>> = {
  dst: 'target',
  destination: 'target',
  src: 'source',
  ro: 'readonly',
  rw: 'readwrite',
}

/** @throws CoracleError DOCKERFILE */
export function parseRunMount(
  step: Instruction,
  text: string,
  lookup: Lookup,
  workingDirectory: string,
): RunMount {
  const wrong = (why: string): Error => problem(step.line, `RUN --mount=${text.slice(0, 128)}: ${why}`)
  const options = new Map<string, string>()
  for (const word of text.split(',')) {
    const at = word.indexOf('=')
    const key = (at < 0 ? word : word.slice(0, at)).toLowerCase()
    options.set(SHORT[key] ?? key, at < 0 ? 'true' : expand(word.slice(at + 1), lookup))
  }
  const type = options.get('type') ?? 'bind'
  if (type === 'ssh')
    throw wrong(
      'keys of an SSH agent are not passed to builds: fetch on the host and COPY, or use type=secret',
    )
  if (!Object.hasOwn(OPTIONS, type)) throw wrong(`there is no mount of type ${type.slice(0, 32)}`)
  for (const key of options.keys())
    if (!['type', 'target', 'readonly', 'readwrite', ...OPTIONS[type]!].includes(key))
      throw wrong(`${key.slice(0, 32)} is no option of type ${type}`)
  const truth = (key: string): boolean => {
    const value = options.get(key) ?? 'false'
    if (!/^(true|false|1|0)$/i.test(value)) throw wrong(`${key} is true or false`)
    return /^(true|1)$/i.test(value)
  }
  const number = (key: string, fallback: number, pattern = /^\d{1,10}$/, base = 10): number => {
    const value = options.get(key)
    if (value === undefined) return fallback
    if (!pattern.test(value)) throw wrong(`${key} is no number that can be used`)
    return parseInt(value, base)
  }
  const mode = (fallback: number): number => number('mode', fallback, /^0?[0-7]{1,4}$/, 8)
  const id = options.get('id')
  const given =
    options.get('target') ??
    (type === 'secret' && id !== undefined ? `/run/secrets/${posix.basename(id)}` : '')
  if (given === '' || given.includes('\0')) throw wrong('it needs a target')
  const target = posix.resolve(workingDirectory, given)
  if (target === '/') throw wrong('the target cannot be /')
  const from = options.get('from')
  const source = posix.resolve('/', options.get('source') ?? '/')
  switch (type) {
    case 'bind':
      return { type, target, readOnly: !truth('readwrite'), from, source }
    case 'cache': {
      const sharing = options.get('sharing') ?? 'shared'
      if (sharing !== 'shared' && sharing !== 'private' && sharing !== 'locked')
        throw wrong('sharing is shared, private or locked')
      const common = { type, target, readOnly: truth('readonly'), from, source, sharing } as const
      return { ...common, id: id ?? target, mode: mode(0o755), uid: number('uid', 0), gid: number('gid', 0) }
    }
    case 'secret': {
      const env = options.get('env')
      if (env !== undefined && !/^[a-zA-Z_]\w*$/.test(env)) throw wrong('env is no name of a variable')
      const name = id ?? posix.basename(given)
      const common = { type, target, readOnly: true, required: truth('required'), env } as const
      const file = env === undefined || options.has('target')
      return { ...common, id: name, file, mode: mode(0o400), uid: number('uid', 0), gid: number('gid', 0) }
    }
    default: {
      const text = options.get('size') ?? '0'
      const size = text === '0' ? 0 : bytesOf(text)
      if (size === undefined) throw wrong('size is no number of bytes, also with k, m or g')
      return { type: 'tmpfs', target, readOnly: truth('readonly'), size }
    }
  }
}

/** What {@link openMounts} needs. */
export interface MountHost {
  readonly caches: BuildCaches
  /** A folder of this build on a disk, and one in memory. Both go with the build. */
  readonly scratch: string
  readonly memory: string
  readonly secrets: ReadonlyMap<string, Buffer>
  readonly signal: AbortSignal
}

/** A RUN's mounts, ready: disposed of when it is over. */
export interface OpenMounts extends Disposable {
  readonly mounts: readonly MountRequest[]
  /** Mount point to options. */
  readonly tmpfs: Readonly<Record<string, string>>
  /** NAME=VALUE of secrets that are variables. */
  readonly env: readonly string[]
}

let made = 0

/**
 * Makes what a RUN's mounts need on this host.
 * @param wanted with the files that a bind, or a new cache, is of
 * @throws CoracleError DOCKERFILE for a secret that is required and was not given; INVALID_ARGUMENT
 */
export async function openMounts(
  step: Instruction,
  wanted: readonly (readonly [RunMount, CopiedTree | undefined])[],
  host: MountHost,
): Promise<OpenMounts> {
  const held: Disposable[] = []
  const mounts: MountRequest[] = []
  const tmpfs: Record<string, string> = {}
  const env: string[] = []
  const close = (): void => {
    for (const each of held) each[Symbol.dispose]()
  }
  try {
    for (const [mount, tree] of wanted) {
      const { target, readOnly } = mount
      const bind = (source: string): MountRequest => ({ type: 'bind', source, target, readOnly })
      if (mount.type === 'tmpfs')
        tmpfs[target] = [
          'mode=0755',
          'exec',
          ...(mount.size > 0 ? [`size=${mount.size}`] : []),
          ...(readOnly ? ['ro'] : []),
        ].join()
      else if (mount.type === 'bind')
        mounts.push(bind(await lay(tree!, join(host.scratch, `bind-${made++}`))))
      else if (mount.type === 'cache') {
        const fill = tree && (async (folder: string) => void (await lay(tree, folder)))
        const cache = await host.caches.take({ ...mount, ...(fill && { fill }) }, host.signal)
        held.push(cache)
        mounts.push(bind(cache.path))
      } else if (mount.type === 'script') {
        const path = join(host.scratch, `script-${made++}`)
        writeFileSync(path, mount.content, { flag: 'wx' })
        chmodSync(path, 0o755)
        mounts.push(bind(path))
      } else {
        const value = host.secrets.get(mount.id)
        if (!value) {
          if (mount.required)
            throw problem(step.line, `the secret ${mount.id.slice(0, 64)} was not given: --secret id=…`)
          continue
        }
        if (mount.env !== undefined) env.push(`${mount.env}=${value.toString('utf8')}`)
        if (!mount.file) continue
        const path = join(host.memory, `secret-${made++}`)
        writeFileSync(path, value, { flag: 'wx', mode: 0o600 })
        chownSync(path, mount.uid, mount.gid)
        chmodSync(path, mount.mode)
        mounts.push(bind(path))
      }
    }
    return { mounts, tmpfs, env, [Symbol.dispose]: close }
  } catch (error) {
    close()
    throw error
  }
}

/** Lays a tree down as files of this host. @param folder its path, also of a single file's folder @returns what to mount */
async function lay(tree: CopiedTree, folder: string): Promise<string> {
  mkdirSync(folder, { recursive: true, mode: 0o755 })
  async function* tar(): AsyncGenerator<Buffer> {
    yield* treeTar(tree)
  }
  await unpack(tar(), folder, { rename: (name) => name, owners: true })
  return tree.isFolder ? folder : join(folder, 'file')
}
