import { posix } from 'node:path'
import { CoracleError } from '../../errors.js'
import type { HistoryEntry, RawConfig } from '../../image/compose.js'
import {
  type Dockerfile,
  type Instruction,
  parseDockerfile,
  parseInstruction,
  problem,
} from '../../image/dockerfile/parse.js'
import { expand, expandHeredoc, rawWords, splitWords } from '../../image/dockerfile/words.js'
import { isOwnPlatform } from '../../image/contents.js'
import { ImageFiles } from '../../image/image-files.js'
import type { Image } from '../../image/image.js'
import { canonicalName, parseReference } from '../../image/reference.js'
import type { RegistryAuth } from '../../image/registry/auth.js'
import type { ImageStore } from '../../image/store.js'
import { TAR_END } from '../../image/tar-writer.js'
import type { IsolationName } from '../../isolation/sandbox.js'
import { resolveUser } from '../../isolation/user.js'
import type { CreateRequest } from '../record.js'
import { BuildCache } from './cache.js'
import type { BuildCaches } from './caches.js'
import { configure } from './configure.js'
import type { BuildContext } from './context.js'
import {
  type CopiedTree,
  contextSource,
  copyDigest,
  copyLayer,
  folderEntry,
  imageSource,
  parents,
} from './copy.js'
import { type RunMount, openMounts, parseRunMount } from './run-mounts.js'
import type { RunStep } from './run-step.js'
import { Stage } from './stage.js'
import { Sources, sourcesDigest } from './sources.js'

/** What a build is asked for. */
export interface BuildRequest {
  /** Path of the Dockerfile in the context. @default Dockerfile */
  readonly dockerfile?: string
  /** Names of the new image. */
  readonly tags: readonly string[]
  readonly args: Readonly<Record<string, string>>
  readonly labels: Readonly<Record<string, string>>
  /** The stage to stop at, by name or number. */
  readonly target?: string
  /** Run each step, also one that is in the cache. */
  readonly noCache: boolean
  /** Fetch images though they are here: they may be old. */
  readonly pull?: boolean
  /** What each RUN runs in. @default microvm */
  readonly isolation?: IsolationName
  readonly hypervisor?: 'auto' | 'kvm' | 'qemu'
  /** Network of each RUN: none, or a network's name. */
  readonly network?: string
  /** Bytes, for each RUN. */
  readonly memory?: number
  /** `NAME:ADDRESS`, for each RUN. */
  readonly extraHosts?: readonly string[]
  /** Bytes of /dev/shm, for each RUN. */
  readonly shmSize?: number
  readonly ulimits?: CreateRequest['ulimits']
  /** For the registries of images that are fetched, by the names that the client has for them. */
  readonly auths?: Readonly<Record<string, RegistryAuth>>
  /** For `RUN --mount=type=secret`, by their ids. */
  readonly secrets?: ReadonlyMap<string, Buffer>
}

/** What a builder needs of its engine. */
export interface BuildHost {
  readonly images: Pick<ImageStore, 'get' | 'config' | 'compose' | 'tag'>
  readonly cache: BuildCache
  readonly caches: BuildCaches
  /** A folder of this build on a disk, and one in memory. Both go with the build. */
  readonly scratch: string
  readonly memory: string
  /** Fetches an image that is not here. */
  pull(name: string, signal: AbortSignal): Promise<void>
  /** Runs a command on an image. @returns the image with what it changed */
  run(step: RunStep): Promise<Image>
}

/** Arguments that need no declaration (Dockerfile reference, "Predefined ARGs"); they are no part of a step's key. */
const PREDEFINED = ['HTTP_PROXY', 'HTTPS_PROXY', 'FTP_PROXY', 'NO_PROXY', 'ALL_PROXY'].flatMap((name) => [
  name,
  name.toLowerCase(),
])
const PLATFORM: Readonly<Record<string, string>> = {
  TARGETPLATFORM: 'linux/amd64',
  TARGETOS: 'linux',
  TARGETARCH: 'amd64',
  TARGETVARIANT: '',
  BUILDPLATFORM: 'linux/amd64',
  BUILDOS: 'linux',
  BUILDARCH: 'amd64',
  BUILDVARIANT: '',
}

/**
 * Builds an image by a Dockerfile (Dockerfile reference of Docker). Each RUN has a container of its own, in a microVM
 * unless asked otherwise; what copies and configures touches no container at all. Steps are cached by content.
 */
export class Builder {
  readonly #host: BuildHost
  readonly #request: BuildRequest
  readonly #context: BuildContext
  readonly #say: (text: string) => void
  readonly #signal: AbortSignal
  readonly #globals = new Map<string, string>()
  readonly #stages: Stage[] = []
  readonly #unused: Set<string>
  readonly #pulled = new Set<string>()
  readonly #sources: Sources
  #escape = '\\'

  /** @param say gets what a user reads, lines or parts of some */
  constructor(
    host: BuildHost,
    request: BuildRequest,
    context: BuildContext,
    say: (text: string) => void,
    signal: AbortSignal,
  ) {
    this.#host = host
    this.#request = request
    this.#context = context
    this.#say = say
    this.#signal = signal
    this.#sources = new Sources({ context, scratch: host.scratch, network: request.network, say, signal })
    this.#unused = new Set(Object.keys(request.args).filter((name) => !PREDEFINED.includes(name)))
  }

  /** @throws CoracleError DOCKERFILE with the line, INVALID_ARGUMENT, BUILD_FAILED for a RUN that failed */
  async build(): Promise<Image> {
    using _sources = this.#sources
    return await this.#build()
  }

  async #build(): Promise<Image> {
    const tags = this.#request.tags.map((tag) => canonicalName(parseReference(tag)))
    const steps = this.#wanted(this.#parse())
    for (const [i, step] of steps.entries()) {
      this.#signal.throwIfAborted()
      this.#say(`Step ${i + 1}/${steps.length} : ${asWritten(step)}\n`)
      await this.#step(step)
      const stage = this.#stages.at(-1)
      if (stage?.image && stage.pending.length === 0) this.#say(` ---> ${short(stage.image.id)}\n`)
    }
    const stage = this.#stages.at(-1)
    if (!stage) throw problem(1, 'no build stage: the Dockerfile has no FROM')
    const { labels } = this.#request
    if (Object.keys(labels).length > 0) {
      stage.config['Labels'] = { ...(stage.config['Labels'] as object | undefined), ...labels }
      stage.note(
        `LABEL ${Object.entries(labels)
          .map(([name, value]) => `${name}=${value}`)
          .join(' ')}`,
      )
    }
    const image = await this.#settle(stage)
    for (const tag of tags) this.#host.images.tag(image.id, tag)
    for (const name of this.#unused)
      this.#say(`[Warning] One or more build-args were not consumed: ${name}\n`)
    return this.#host.images.get(image.id)
  }

  #parse(): Dockerfile {
    const path = this.#request.dockerfile || 'Dockerfile'
    const text = this.#context.text(path)
    if (text === undefined)
      throw new CoracleError('INVALID_ARGUMENT', `Cannot locate specified Dockerfile: ${path.slice(0, 128)}`)
    const dockerfile = parseDockerfile(text)
    this.#escape = dockerfile.escape
    if (dockerfile.syntax !== undefined)
      this.#say(
        `Note: # syntax=${dockerfile.syntax.slice(0, 128)} is not fetched: this builder reads the file itself\n`,
      )
    return dockerfile
  }

  /** The steps of the stages that the target needs: those it copies from or begins with, and itself. */
  #wanted({ instructions }: Dockerfile): Instruction[] {
    const head: Instruction[] = []
    const stages: { name: string | undefined; steps: Instruction[] }[] = []
    for (const step of instructions) {
      if (step.word === 'FROM') stages.push({ name: stageName(step), steps: [step] })
      else if (stages.length > 0) stages.at(-1)!.steps.push(step)
      else if (step.word === 'ARG') head.push(step)
      else throw problem(step.line, 'no build stage in current context: a Dockerfile begins with FROM')
    }
    const { target } = this.#request
    if (!target) return [...head, ...stages.flatMap(({ steps }) => steps)]
    const at = stages.findIndex(({ name }, i) => name === target.toLowerCase() || String(i) === target)
    if (at < 0) throw new CoracleError('INVALID_ARGUMENT', `target stage "${target}" could not be found`)
    return [...head, ...stages.slice(0, at + 1).flatMap(({ steps }) => steps)]
  }

  async #step(step: Instruction): Promise<void> {
    if (step.word === 'FROM') return this.#from(step)
    const stage = this.#stages.at(-1)
    if (!stage) return this.#globalArg(step)
    switch (step.word) {
      case 'RUN':
        return this.#run(stage, step)
      case 'COPY':
      case 'ADD':
        return this.#copy(stage, step)
      case 'WORKDIR':
        return this.#workdir(stage, step)
      case 'ARG':
        return this.#arg(stage, step)
      default:
        configure(stage, step, this.#escape)
        stage.note(`${step.word} ${step.rest}`)
    }
  }

  async #from(step: Instruction): Promise<void> {
    const previous = this.#stages.at(-1)
    if (previous) await this.#settle(previous)
    const lookup = (name: string): string | undefined => this.#globals.get(name) ?? PLATFORM[name]
    const words = splitWords(step.rest, lookup, this.#escape)
    if (words.length !== 1 && !(words.length === 3 && /^as$/i.test(words[1]!)))
      throw problem(step.line, 'FROM requires either one argument, or three: FROM IMAGE [AS NAME]')
    for (const [name, value] of step.flags)
      if (name !== 'platform' || !isOwnPlatform(expand(value, lookup, this.#escape)))
        throw problem(step.line, `--${name}=${value}: only images for linux/amd64 run here`)
    const name = words[2]?.toLowerCase()
    const reference = words[0]!
    const earlier = this.#stages.find((stage) => stage.name === reference.toLowerCase())
    const image = earlier ? earlier.image : reference === 'scratch' ? undefined : await this.#image(reference)
    const config = earlier ? earlier.config : image ? this.#configOf(image) : {}
    const stage = new Stage(name, image, config)
    this.#stages.push(stage)
    const triggers = (stage.config['OnBuild'] as string[] | null | undefined) ?? []
    Reflect.deleteProperty(stage.config, 'OnBuild')
    if (triggers.length > 0) this.#say(`# Executing ${triggers.length} build triggers\n`)
    for (const trigger of triggers) await this.#step(parseInstruction(trigger, step.line, () => undefined))
  }

  /** A stage's or a registry's image, fetched where it is not here. */
  async #image(reference: string): Promise<Image> {
    try {
      const image = this.#host.images.get(reference)
      if (!this.#request.pull || this.#pulled.has(reference)) return image
    } catch (error) {
      if (!(error instanceof CoracleError && error.code === 'NO_SUCH_IMAGE')) throw error
    }
    this.#say(`Pulling ${reference}\n`)
    await this.#host.pull(reference, this.#signal)
    this.#pulled.add(reference)
    return this.#host.images.get(reference)
  }

  #configOf(image: Image): RawConfig {
    return ((this.#host.images.config(image) as { config?: RawConfig | null }).config ?? {}) as RawConfig
  }

  #globalArg(step: Instruction): void {
    for (const [name, fallback] of declared(step, (each) => this.#globals.get(each), this.#escape)) {
      const given = this.#given(name)
      const value = given ?? fallback
      if (value !== undefined) this.#globals.set(name, value)
    }
  }

  #arg(stage: Stage, step: Instruction): void {
    for (const [name, fallback] of declared(step, stage.lookup, this.#escape)) {
      const value = this.#given(name) ?? fallback ?? this.#globals.get(name) ?? PLATFORM[name]
      if (value !== undefined) stage.args.set(name, value)
    }
    stage.note(`ARG ${step.rest}`)
  }

  #given(name: string): string | undefined {
    this.#unused.delete(name)
    return Object.hasOwn(this.#request.args, name) ? this.#request.args[name] : undefined
  }

  async #run(stage: Stage, step: Instruction): Promise<void> {
    let { network } = this.#request
    const mounts: RunMount[] = []
    for (const [name, value] of step.flags) {
      if (name === 'network' && (value === 'none' || value === 'default'))
        network = value === 'none' ? 'none' : network
      else if (name === 'mount') mounts.push(parseRunMount(step, value, stage.lookup, stage.workingDirectory))
      else
        throw problem(
          step.line,
          `RUN --${name}=${value} is not built: what a RUN may do is the builder's to say`,
        )
    }
    if (!stage.image) throw problem(step.line, 'there is nothing to run in scratch')
    const script = scriptOf(step)
    if (script) mounts.push(script)
    const command = runCommand(stage, step)
    const args = [...stage.args].filter(([name]) => stage.env.every((entry) => !entry.startsWith(`${name}=`)))
    const predefined = PREDEFINED.filter((name) => Object.hasOwn(this.#request.args, name))
    const env = [
      ...predefined.map((name) => `${name}=${this.#request.args[name]!}`),
      ...args.map(([name, value]) => `${name}=${value}`),
      ...stage.env,
    ]
    const base = stage.image
    const opened: Disposable[] = []
    try {
      const wanted: (readonly [RunMount, CopiedTree | undefined])[] = []
      for (const mount of mounts) wanted.push([mount, await this.#mounted(step, mount, opened)] as const)
      const told = wanted.map(([mount, tree]) => [mount, tree && copyDigest([tree])])
      await this.#layer(
        stage,
        step,
        ['RUN', command, args, stage.env, stage.user, stage.workingDirectory, network, ...told],
        async (history) => {
          using open = await openMounts(step, wanted, {
            ...this.#host,
            secrets: this.#request.secrets ?? new Map(),
            signal: this.#signal,
          })
          return await this.#host.run({
            base,
            config: stage.config,
            history,
            command,
            env: [...env, ...open.env],
            user: stage.user,
            workingDirectory: stage.workingDirectory,
            mounts: open.mounts,
            tmpfs: open.tmpfs,
            network,
            isolation: this.#request.isolation,
            hypervisor: this.#request.hypervisor,
            memory: this.#request.memory,
            extraHosts: this.#request.extraHosts,
            shmSize: this.#request.shmSize,
            ulimits: this.#request.ulimits,
            say: this.#say,
            signal: this.#signal,
          })
        },
      )
    } finally {
      for (const each of opened) each[Symbol.dispose]()
    }
  }

  /** The files that a mount begins with; undefined where it has none. */
  async #mounted(step: Instruction, mount: RunMount, opened: Disposable[]): Promise<CopiedTree | undefined> {
    if (mount.type !== 'bind' && (mount.type !== 'cache' || mount.from === undefined)) return undefined
    let source = contextSource(this.#context)
    if (mount.from !== undefined) {
      const other = await this.#filesOf(step, mount.from)
      opened.push(other)
      source = imageSource(other.files)
    }
    const [tree, ...more] = source.match(mount.source)
    if (!tree || more.length > 0) throw problem(step.line, `${mount.source} is more than one thing to mount`)
    return tree
  }

  async #copy(stage: Stage, step: Instruction): Promise<void> {
    const flags = new Map(step.flags)
    const known = [
      'chown',
      'chmod',
      'link',
      ...(step.word === 'ADD' ? ['checksum', 'keep-git-dir'] : ['from']),
    ]
    for (const name of flags.keys())
      if (!known.includes(name)) throw problem(step.line, `${step.word} --${name} is not built yet`)
    const words = (step.list ?? rawWords(step.rest, this.#escape)).map((word) =>
      step.list ? expandOnly(word, stage) : expand(word, stage.lookup, this.#escape),
    )
    if (words.length < 2) throw problem(step.line, `${step.word} requires at least two arguments`)
    const target = words.pop()!
    const from = flags.get('from')
    using files = new ImageFiles(stage.image?.layers ?? [])
    using other =
      from === undefined ? undefined : await this.#filesOf(step, expand(from, stage.lookup, this.#escape))
    const checksum = flags.get('checksum')
    const trees = await this.#sources.find(step, words, {
      target,
      checksum: checksum === undefined ? undefined : expand(checksum, stage.lookup, this.#escape),
      keepGit: /^(1|true)$/i.test(flags.get('keep-git-dir') ?? ''),
      other: other && imageSource(other.files),
      expand: (text) => expandHeredoc(text, stage.lookup),
    })
    const chown = flags.get('chown')
    const owner =
      chown === undefined
        ? other
          ? undefined
          : { uid: 0, gid: 0 }
        : { ...ownerOf(expand(chown, stage.lookup), files), asked: true }
    const chmod = flags.get('chmod')
    const mode = modeOf(step, chmod === undefined ? undefined : expand(chmod, stage.lookup, this.#escape))
    const key = [step.word, sourcesDigest(trees), other?.id, target, stage.workingDirectory, owner, mode]
    await this.#layer(stage, step, key, async (history) => {
      const copied = await Promise.all(trees.map((tree) => ('load' in tree ? tree.load() : tree)))
      const options = { target, workingDirectory: stage.workingDirectory, owner, mode }
      return this.#compose(stage, history, copyLayer(copied, files, options))
    })
  }

  /** The files of a stage, by name or number, or of an image. */
  async #filesOf(step: Instruction, from: string): Promise<{ id: string; files: ImageFiles } & Disposable> {
    const stage = this.#stages
      .slice(0, -1)
      .find(({ name }, i) => name === from.toLowerCase() || String(i) === from)
    const image = stage ? stage.image : await this.#image(from)
    if (!image) throw problem(step.line, `the stage ${from} is empty`)
    const files = new ImageFiles(image.layers)
    return { id: image.id, files, [Symbol.dispose]: () => files[Symbol.dispose]() }
  }

  async #workdir(stage: Stage, step: Instruction): Promise<void> {
    const path = posix.resolve(stage.workingDirectory, expand(step.rest, stage.lookup, this.#escape))
    stage.config['WorkingDir'] = path
    using files = new ImageFiles(stage.image?.layers ?? [])
    const { path: real, node } = files.resolve(path)
    if (node) return stage.note(`WORKDIR ${path}`)
    const layer = function* (): Generator<Buffer> {
      yield* parents(real, files, new Set())
      yield folderEntry(real, undefined)
      yield TAR_END
    }
    await this.#layer(stage, step, ['WORKDIR', path], (history) => this.#compose(stage, history, layer()))
  }

  #compose(
    stage: Stage,
    history: [...HistoryEntry[], HistoryEntry],
    layer: Generator<Buffer>,
  ): Promise<Image> {
    const { image: base, config } = stage
    return this.#host.images.compose({
      base,
      layer: (async function* () {
        yield* layer
      })(),
      config,
      history,
      signal: this.#signal,
    })
  }

  /** A step that makes a layer: out of the cache where the same was done on the same before. */
  async #layer(
    stage: Stage,
    step: Instruction,
    parts: readonly unknown[],
    make: (history: [...HistoryEntry[], HistoryEntry]) => Promise<Image>,
  ): Promise<void> {
    const key = BuildCache.key(stage.key, stage.image?.id, stage.config, parts)
    const found = this.#request.noCache || stage.missed ? undefined : this.#cached(key)
    if (found) {
      this.#say(' ---> Using cache\n')
      stage.image = found
    } else {
      stage.missed = true
      const line = { created: new Date().toISOString(), created_by: `${step.word} ${step.rest}` }
      stage.image = await make([...stage.pending, line])
      this.#host.cache.put(key, stage.image.id)
    }
    stage.pending = []
    stage.key = key
  }

  #cached(key: string): Image | undefined {
    const id = this.#host.cache.get(key)
    if (id === undefined) return undefined
    try {
      return this.#host.images.get(id)
    } catch {
      return undefined
    }
  }

  /** Makes an image of what was said since the last one. @throws CoracleError INVALID_ARGUMENT for an empty stage */
  async #settle(stage: Stage): Promise<Image> {
    const [...pending] = stage.pending
    const last = pending.pop()
    if (!last) {
      if (stage.image) return stage.image
      throw new CoracleError('INVALID_ARGUMENT', 'No image was generated: the last stage is empty')
    }
    const key = BuildCache.key(stage.key, stage.image?.id, stage.config, 'end')
    const found = this.#request.noCache || stage.missed ? undefined : this.#cached(key)
    stage.image =
      found ??
      (await this.#host.images.compose({
        base: stage.image,
        config: stage.config,
        history: [...pending, last],
        signal: this.#signal,
      }))
    if (!found) this.#host.cache.put(key, stage.image.id)
    stage.pending = []
    stage.key = key
    return stage.image
  }
}

/** What a RUN calls: its list, or its text and here-documents by the shell. @throws CoracleError DOCKERFILE */
function runCommand(stage: Stage, step: Instruction): readonly string[] {
  if (step.list) return step.list
  const [first] = step.heredocs
  if (first === undefined) return [...stage.shell, step.rest]
  if (!ALONE.test(step.rest)) {
    const heredocs = step.heredocs.map(({ name, content }) => `${content}${name}\n`).join('')
    return [...stage.shell, `${step.rest}\n${heredocs}`]
  }
  const script = scriptOf(step)
  return script ? [script.target] : [...stage.shell, first.content]
}

/** The here-document that is a program by itself, and where the RUN finds it: as with BuildKit. */
function scriptOf(step: Instruction): RunMount | undefined {
  const [first] = step.heredocs
  if (!first?.content.startsWith('#!') || !ALONE.test(step.rest)) return undefined
  return { type: 'script', target: `/dev/pipes/${first.name}`, readOnly: true, content: first.content }
}

/** A RUN that is nothing but a here-document. */
const ALONE = /^<<-?["']?\w+["']?$/

const short = (id: string): string => id.replace('sha256:', '').slice(0, 12)

function stageName(step: Instruction): string | undefined {
  return /\sas\s+(\S+)\s*$/i.exec(step.rest)?.[1]?.toLowerCase()
}

/** In the list form of COPY, words are whole: only variables are replaced. */
const expandOnly = (word: string, stage: Stage): string => expandHeredoc(word, stage.lookup)

function* declared(
  step: Instruction,
  lookup: (name: string) => string | undefined,
  escape: string,
): Generator<[name: string, fallback: string | undefined]> {
  if (step.word !== 'ARG') throw problem(step.line, `${step.word} before the first FROM`)
  for (const word of rawWords(step.rest, escape)) {
    const at = word.indexOf('=')
    const name = at < 0 ? word : word.slice(0, at)
    if (!/^[a-zA-Z_]\w*$/.test(name)) throw problem(step.line, `invalid ARG name: ${name.slice(0, 64)}`)
    yield [name, at < 0 ? undefined : expand(word.slice(at + 1), lookup, escape)]
  }
}

/** The owner of `--chown`, by the image's own files. */
function ownerOf(text: string, files: ImageFiles): { uid: number; gid: number } {
  const { uid, gid } = resolveUser(
    text,
    files.readText('/etc/passwd') ?? '',
    files.readText('/etc/group') ?? '',
  )
  // Docker: without a group it is the user's number.
  return { uid, gid: text.includes(':') ? gid : /^\d+$/.test(text) ? uid : gid }
}

function modeOf(step: Instruction, text: string | undefined): number | undefined {
  if (text === undefined) return undefined
  if (!/^0?[0-7]{3,4}$/.test(text))
    throw problem(step.line, `--chmod takes an octal mode such as 0644, not ${text}`)
  return parseInt(text, 8)
}

/** The first line of a step, for its reader. */
function asWritten({ word, flags, rest }: Instruction): string {
  const shown = flags.map(([name, value]) => (value === 'true' ? `--${name}` : `--${name}=${value}`))
  return [word, ...shown, rest.split('\n')[0]].join(' ')
}
