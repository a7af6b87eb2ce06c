import { createInterface } from 'node:readline'
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { constants } from 'node:os'
import { join, relative, resolve } from 'node:path'
import { pipeline, Readable } from 'node:stream'
import { createGzip } from 'node:zlib'
import { CoracleError } from '../../errors.js'
import type { Client } from '../client.js'
import {
  CONTENT_TRUST,
  listOf,
  parseOptions,
  withClient,
  type CommandHelp,
  type Invocation,
} from '../command.js'
import { choose, CONTAINER_REFUSED, environmentOf } from '../container-options.js'
import { DockerIgnore } from '../dockerignore.js'
import { ULIMIT, ulimit } from '../limit-options.js'
import { pack } from '../pack.js'
import { PLATFORM } from '../platform.js'
import { pairOf } from '../pair.js'
import { configHeader } from '../registry.js'
import { parseSize } from '../size.js'

const help = {
  usage: 'build [OPTIONS] FOLDER | -',
  summary: 'Builds an image by a Dockerfile. Each RUN has a microVM of its own.',
  options: (yargs) =>
    yargs
      .option('tag', { alias: 't', type: 'string', array: true, requiresArg: true, describe: 'NAME[:TAG]' })
      .option('file', {
        alias: 'f',
        type: 'string',
        requiresArg: true,
        describe: 'The Dockerfile (FOLDER/Dockerfile)',
      })
      .option('build-arg', {
        type: 'string',
        array: true,
        requiresArg: true,
        describe: 'NAME=VALUE of an ARG, or NAME to pass this one on',
      })
      .option('secret', {
        type: 'string',
        array: true,
        requiresArg: true,
        describe:
          'id=ID[,src=FILE|,env=NAME] for RUN --mount=type=secret; it stays out of the image and the cache',
      })
      .option('label', { type: 'string', array: true, requiresArg: true, describe: 'KEY=VALUE' })
      .option('target', { type: 'string', requiresArg: true, describe: 'The stage to stop at' })
      .option('no-cache', { type: 'boolean', describe: 'Run each step again' })
      .option('pull', { type: 'boolean', describe: 'Fetch images though they are here' })
      .option('quiet', { alias: 'q', type: 'boolean', describe: 'Print the id alone' })
      .option('iidfile', { type: 'string', requiresArg: true, describe: 'A file for the id' })
      .option('platform', PLATFORM)
      .option('compress', { type: 'boolean', describe: 'Send the folder compressed, by gzip' })
      .option('cache-from', {
        type: 'string',
        array: true,
        requiresArg: true,
        describe: 'As without: steps are found by their content',
      })
      .option('progress', { type: 'string', requiresArg: true, describe: 'auto or plain: a line each, both' })
      .option('load', { type: 'boolean', describe: 'As without: images are among the others at once' })
      .option('rm', { type: 'boolean', describe: 'As without: containers of RUN go in any case' })
      .option('force-rm', { type: 'boolean', describe: 'As without' })
      .option('add-host', {
        type: 'string',
        array: true,
        requiresArg: true,
        describe: "NAME:ADDRESS for RUN's /etc/hosts",
      })
      .option('shm-size', { type: 'string', requiresArg: true, describe: "Bytes of RUN's /dev/shm" })
      .option('ulimit', ULIMIT)
      .option('network', { type: 'string', requiresArg: true, describe: "RUN's network, such as none" })
      .option('memory', { alias: 'm', type: 'string', requiresArg: true, describe: "RUN's memory" })
      .option('isolation', { type: 'string', requiresArg: true, describe: 'microvm (default) or process' })
      .option('hypervisor', { type: 'string', requiresArg: true, describe: 'auto (default), kvm or qemu' }),
  examples: [
    ['build -t app .', 'the Dockerfile in this folder'],
    ['build --network none -t app .', 'without a network: for a Dockerfile of a stranger'],
    ['build --secret id=npm,src=$HOME/.npmrc .', 'for RUN --mount=type=secret,id=npm'],
    ['build --isolation process -t app .', 'RUN in plain containers'],
  ],
  words: [1, 1],
  refused: {
    ...CONTENT_TRUST,
    squash: 'layers stay as they are made, so that images share them',
    'security-opt': 'each RUN has a microVM of its own, or with --isolation process the default profile',
    'cgroup-parent': CONTAINER_REFUSED['cgroup-parent']!,
    ...Object.fromEntries(
      ['c', 'cpu-period', 'cpu-quota', 'cpu-shares', 'cpuset-cpus', 'cpuset-mems', 'memory-swap'].map(
        (option) => [option, 'of the limits of a RUN there is --memory'],
      ),
    ),
    push: "'coracle push' does it",
    ssh: "forwarding of an ssh agent is BuildKit's",
    ...Object.fromEntries(
      [
        ...['output', 'cache-to', 'build-context', 'builder', 'attest', 'provenance', 'sbom', 'allow'],
        ...['no-cache-filter', 'metadata-file', 'annotation', 'check', 'call'],
      ].map((option) => [option, "it is BuildKit's"]),
    ),
  },
} satisfies CommandHelp<unknown>

interface Message {
  readonly stream?: string
  readonly error?: string
  readonly aux?: { readonly ID: string }
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const pairs = (entries: readonly string[]): string | undefined =>
    entries.length === 0
      ? undefined
      : JSON.stringify(
          Object.fromEntries(
            entries.map((entry) => [entry.split('=', 1)[0], entry.slice(entry.indexOf('=') + 1)]),
          ),
        )
  const tags = listOf(options.tag)
  const { tar, dockerfile } = contextOf(options._[0]!, options.file)
  choose('--progress', options.progress, ['auto', 'plain'])
  const isolation = choose('--isolation', options.isolation, ['microvm', 'process'])
  const query = new URLSearchParams([
    ...tags.map((tag): [string, string] => ['t', tag]),
    ...listOf(options['add-host']).map((host): [string, string] => ['extrahosts', host]),
  ]).toString()
  const settings = {
    dockerfile,
    target: options.target,
    pull: options.pull ? 1 : undefined,
    platform: options.platform,
    shmsize: options['shm-size'] === undefined ? undefined : parseSize(options['shm-size'], '--shm-size'),
    ulimits: options.ulimit && JSON.stringify(listOf(options.ulimit).map(ulimit)),
    nocache: options['no-cache'] ? 1 : undefined,
    networkmode: options.network,
    isolation,
    hypervisor: choose('--hypervisor', options.hypervisor, ['auto', 'kvm', 'qemu']),
    memory: options.memory === undefined ? undefined : parseSize(options.memory, '--memory'),
    buildargs: pairs(listOf(options['build-arg']).flatMap(environmentOf)),
    labels: pairs(listOf(options.label)),
    q: options.quiet ? 1 : undefined,
  }
  const { iidfile } = options
  const secrets = secretsOf(listOf(options.secret))
  return withClient(invocation, async (client) => {
    const stop = new AbortController()
    const interrupted = new Promise<number>((resolve) => {
      // The build's container is taken away before we go.
      const onSignal = (signal: NodeJS.Signals): void => {
        stop.abort(new Error('the build was called off'))
        void client.idle().then(() => resolve(128 + constants.signals[signal]))
      }
      process.once('SIGINT', onSignal).once('SIGTERM', onSignal)
    })
    try {
      return await follow(client, stop.signal)
    } catch (error) {
      if (stop.signal.aborted) return interrupted
      throw error
    }
  })

  async function follow(client: Client, signal: AbortSignal): Promise<number> {
    const context = Readable.from(tar, { objectMode: false })
    const answer = await client.stream('POST', `/build${query === '' ? '' : `?${query}`}`, {
      query: settings,
      headers: { ...(await configHeader()), ...(secrets && { 'X-Coracle-Build-Secrets': secrets }) },
      upload: options!.compress ? pipeline(context, createGzip(), () => undefined) : context,
      signal,
    })
    let failure: string | undefined
    for await (const line of createInterface({ input: answer })) {
      if (line === '') continue
      const { stream, error, aux } = JSON.parse(line) as Message
      if (aux && iidfile !== undefined) writeFileSync(iidfile, aux.ID)
      if (stream !== undefined) process.stdout.write(stream)
      failure ??= error
    }
    if (signal.aborted) throw signal.reason as Error
    if (failure === undefined) return 0
    process.stderr.write(`coracle: ${failure}\n`)
    return 1
  }
}

/** Bytes of all secrets of a build, in base64: they go in a request's head. */
const MAX_SECRETS = 48 * 1024

/** `--secret` as the API's header. @throws CoracleError USAGE */
function secretsOf(texts: readonly string[]): string | undefined {
  if (texts.length === 0) return undefined
  const secrets = texts.map((text): [string, string] => {
    const options = new Map(text.split(',').map(pairOf))
    const id = options.get('id')
    const file = options.get('src') ?? options.get('source')
    const name = options.get('env')
    if (!id || [...options.keys()].some((key) => !['id', 'src', 'source', 'env', 'type'].includes(key)))
      throw new CoracleError('USAGE', `--secret ${id ?? ''}: it is id=ID[,src=FILE|,env=NAME]`)
    const variable = process.env[name ?? (file === undefined ? id : '')]
    if (name !== undefined && variable === undefined)
      throw new CoracleError('USAGE', `--secret ${id}: the variable ${name} is not set`)
    if (variable !== undefined) return [id, Buffer.from(variable).toString('base64')]
    try {
      return [id, readFileSync(file ?? id).toString('base64')]
    } catch (error) {
      throw new CoracleError(
        'USAGE',
        `--secret ${id}: cannot read it (${(error as NodeJS.ErrnoException).code})`,
      )
    }
  })
  const header = Buffer.from(JSON.stringify(Object.fromEntries(secrets))).toString('base64')
  if (header.length > MAX_SECRETS)
    throw new CoracleError('USAGE', `all secrets of a build have at most about ${MAX_SECRETS / 2048} KiB`)
  return header
}

/** The context as a tar, and the Dockerfile's path in it. @throws CoracleError USAGE */
function contextOf(
  word: string,
  file: string | undefined,
): { tar: AsyncIterable<Buffer>; dockerfile: string | undefined } {
  if (word === '-') return { tar: process.stdin, dockerfile: file }
  const folder = resolve(word)
  if (!statSync(folder, { throwIfNoEntry: false })?.isDirectory())
    throw new CoracleError('USAGE', `${word} is no folder: a build takes one, or - for a tar on stdin`)
  const dockerfile = relative(folder, resolve(file ?? join(folder, 'Dockerfile')))
  if (dockerfile.startsWith('..'))
    throw new CoracleError('USAGE', `the Dockerfile ${file} is not below ${word}: copy it there`)
  if (!existsSync(join(folder, dockerfile)))
    throw new CoracleError('USAGE', `${join(word, dockerfile)} is not there: write one, or name it with -f`)
  const rules = ['.dockerignore']
  if (existsSync(join(folder, `${dockerfile}.dockerignore`))) rules[0] = `${dockerfile}.dockerignore`
  const path = join(folder, rules[0]!)
  const ignore = new DockerIgnore(existsSync(path) ? readFileSync(path, 'utf8') : '')
  const filter = (name: string): 'keep' | 'skip' | 'prune' => {
    if (name === dockerfile || name === rules[0] || !ignore.excludes(name)) return 'keep'
    return ignore.isFinal && !dockerfile.startsWith(`${name}/`) ? 'prune' : 'skip'
  }
  return { tar: pack(folder, '.', { owners: false, follow: true, filter }), dockerfile }
}
