import { CoracleError } from '../errors.js'
import type { Command } from './command.js'
import type { Endpoint } from './endpoint.js'

/** Each command's one line of help, and how to get it: a command's code is read when it is called. */
const COMMANDS: Record<string, readonly [summary: string, load: () => Promise<Command>]> = {
  run: ['Create a container from an image and run it', () => import('./commands/run.js')],
  create: ['Create a container', () => import('./commands/create.js')],
  exec: ['Run a further command in a container', () => import('./commands/exec.js')],
  attach: ["Join a running container's streams", () => import('./commands/attach.js')],
  wait: ['Wait until containers have ended', () => import('./commands/wait.js')],
  start: ['Start containers', () => import('./commands/start.js')],
  ps: ['List containers', () => import('./commands/ps.js')],
  logs: ["Show a container's output", () => import('./commands/logs.js')],
  kill: ['Send a signal to containers', () => import('./commands/kill.js')],
  restart: ['Stop containers and start them again', () => import('./commands/restart.js')],
  update: ['Change limits of containers', () => import('./commands/update.js')],
  rename: ['Give a container another name', () => import('./commands/rename.js')],
  stop: ['Stop containers', () => import('./commands/stop.js')],
  pause: ['Make containers stand still', async () => (await import('./commands/pause.js')).pause],
  unpause: ['Let paused containers go on', async () => (await import('./commands/pause.js')).unpause],
  cp: ['Copy files out of a container or into one', () => import('./commands/cp.js')],
  diff: ['Show what a container changed', () => import('./commands/diff.js')],
  export: ["Write a container's files as a tar", () => import('./commands/export.js')],
  commit: ['Make an image of a container', () => import('./commands/commit.js')],
  import: ['Make an image of the files in an archive', () => import('./commands/import.js')],
  rm: ['Remove containers', () => import('./commands/rm.js')],
  inspect: ['Show all about containers, images and more, as JSON', () => import('./commands/inspect.js')],
  build: ['Build an image by a Dockerfile', () => import('./commands/build.js')],
  images: ['List images', () => import('./commands/images.js')],
  pull: ['Fetch an image from a registry', () => import('./commands/pull.js')],
  search: ['Look for images on Docker Hub', () => import('./commands/search.js')],
  push: ['Send an image to a registry', () => import('./commands/push.js')],
  save: ['Write images as an archive', () => import('./commands/save.js')],
  history: ['Show how an image was made', () => import('./commands/history.js')],
  tag: ['Give an image a further name', () => import('./commands/tag.js')],
  login: ['Log in to a registry', () => import('./commands/login.js')],
  logout: ['Forget the login to a registry', () => import('./commands/logout.js')],
  load: ['Load images from an archive', () => import('./commands/load.js')],
  port: ['Show the published ports of a container', () => import('./commands/port.js')],
  rmi: ['Remove images', () => import('./commands/rmi.js')],
  stats: ['Show what containers use, live', () => import('./commands/stats.js')],
  top: ['Show what runs in a container', () => import('./commands/top.js')],
  events: ['Show what happens in the engine', () => import('./commands/events.js')],
  snapshot: ['Save running containers: create, list and remove', () => import('./commands/snapshot.js')],
  clone: ['Start a copy of a running container', () => import('./commands/clone.js')],
  sriov: [
    'Divide network adapters: list, create and delete virtual functions',
    () => import('./commands/sriov.js'),
  ],
  doctor: ['Say what this host can do', () => import('./commands/doctor.js')],
  completion: [
    "Print a shell's completion",
    async () => (await import('./commands/completion.js')).completion(tree()),
  ],
  daemon: ["Serve Docker's Engine API", () => import('./commands/daemon.js')],
  info: ['Show what the engine is and has', () => import('./commands/info.js')],
  version: ['Show versions', () => import('./commands/version.js')],
}

/** `prune` of a group. */
const pruning =
  (group: 'container' | 'image' | 'network' | 'volume' | 'builder' | 'system') =>
  async (): Promise<Command> =>
    (await import('./commands/prune.js'))[group]

/** Docker's groups of commands: the same commands by longer names, and some that have no short one. */
const GROUPS: Record<string, Record<string, string | (() => Promise<Command>)>> = {
  system: {
    df: () => import('./commands/system-df.js'),
    prune: pruning('system'),
    info: 'info',
    events: 'events',
  },
  builder: { build: 'build', prune: pruning('builder') },
  container: {
    ...Object.fromEntries(
      [
        'run',
        'create',
        'exec',
        'start',
        'logs',
        'kill',
        'stop',
        'pause',
        'update',
        'unpause',
        'restart',
        'rename',
        'rm',
        'port',
        'cp',
        'diff',
        'export',
        'commit',
        'stats',
        'top',
        'attach',
        'wait',
      ].map((name) => [name, name]),
    ),
    ls: 'ps',
    inspect: async () => (await import('./commands/inspect.js')).container,
    prune: pruning('container'),
    move: () => import('./commands/container-move.js'),
  },
  image: {
    build: 'build',
    ls: 'images',
    pull: 'pull',
    push: 'push',
    tag: 'tag',
    load: 'load',
    save: 'save',
    import: 'import',
    history: 'history',
    prune: pruning('image'),
    rm: 'rmi',
    inspect: async () => (await import('./commands/inspect.js')).image,
  },
  context: {
    ...Object.fromEntries(
      (['create', 'ls', 'use', 'show', 'inspect', 'update', 'rm'] as const).map((name) => [
        name,
        async () => (await import('./commands/context.js'))[name],
      ]),
    ),
    export: async () => (await import('./commands/context.js')).exporting,
    import: async () => (await import('./commands/context.js')).importing,
  },
  network: {
    create: () => import('./commands/network-create.js'),
    ls: () => import('./commands/network-ls.js'),
    inspect: () => import('./commands/network-inspect.js'),
    connect: () => import('./commands/network-connect.js'),
    disconnect: () => import('./commands/network-disconnect.js'),
    rm: () => import('./commands/network-rm.js'),
    prune: pruning('network'),
  },
  volume: {
    create: () => import('./commands/volume-create.js'),
    ls: () => import('./commands/volume-ls.js'),
    inspect: () => import('./commands/volume-inspect.js'),
    rm: () => import('./commands/volume-rm.js'),
    prune: pruning('volume'),
  },
}

const tree = (): ReadonlyMap<string, readonly string[]> =>
  new Map([
    ...Object.keys(COMMANDS).map((name): [string, string[]] => [name, []]),
    ...Object.entries(GROUPS).map(([name, members]): [string, string[]] => [name, Object.keys(members)]),
  ])

/** Docker's other names of a group's members. */
const ALIASES: Readonly<Record<string, string>> = { list: 'ls', remove: 'rm', ps: 'ls' }

const SWARM = 'there is no swarm here'
/** Docker's commands that have no meaning here, and why. */
const REFUSED: Readonly<Record<string, string>> = {
  ...Object.fromEntries(
    ['config', 'node', 'secret', 'service', 'stack', 'swarm'].map((name) => [name, SWARM]),
  ),
  buildx: "'coracle build' builds, without BuildKit",
  checkpoint: "'coracle snapshot' saves running containers",
  compose: 'run docker compose itself, with DOCKER_HOST=unix://… of a daemon',
  manifest: 'images are of one platform here',
  plugin: 'there are no plugins here',
  trust: 'signatures of images are not checked here',
}

const HELP = `Usage: coracle [-H HOST | --context NAME] COMMAND ...

Runs each container in a virtual machine of its own.

Commands:
${Object.entries(COMMANDS)
  .map(([name, [summary]]) => `  ${name.padEnd(10)}${summary}`)
  .join('\n')}

Groups of commands: ${Object.keys(GROUPS).join(', ')}.

Options:
  -H, --host HOST   The engine: unix://PATH or tcp://HOST:PORT (or DOCKER_HOST). Without one it is
                    this host's daemon, or, where none runs, the command itself. TLS: DOCKER_TLS_VERIFY=1,
                    with ca.pem, cert.pem and key.pem in DOCKER_CERT_PATH.
  -c, --context NAME  One of 'coracle context ls', for this command (or DOCKER_CONTEXT)
  --tlsverify, --tlscacert FILE, --tlscert FILE, --tlskey FILE
                    TLS by these, in place of the variables
  --config FOLDER   Where Docker's config.json is, whose logins are read too (or DOCKER_CONFIG)
  -D, --debug       Show where an internal error came from (or CORACLE_DEBUG=1)
  -v, --version     Show the version

Examples:
  coracle run --rm busybox uname -r                       a command in a microVM
  coracle run --rm -it --isolation process busybox        a shell in a plain container
  coracle COMMAND --help                                  a command's options
`

const groupHelp = (group: string): string =>
  `Usage: coracle ${group} COMMAND ...\n\nCommands: ${Object.keys(GROUPS[group]!).sort().join(', ')}.\n\n` +
  `'coracle ${group} COMMAND --help' says what each does.\n`

/** What stands before the command: of the engine that it speaks to, for the most part. */
interface Globals {
  host?: string
  context?: string
  /** Certificate files by the names of their flags, and whether TLS is wanted by itself. */
  readonly tls: Partial<Record<'tlscacert' | 'tlscert' | 'tlskey', string>> & { verify?: boolean }
}

/** Flags before the command that have a value, by their short names too. */
const VALUED: Readonly<Record<string, (globals: Globals, value: string) => void>> = {
  host: (globals, value) => (globals.host = value),
  context: (globals, value) => (globals.context = value),
  config: (_, value) => (process.env['DOCKER_CONFIG'] = value),
  tlscacert: ({ tls }, value) => (tls.tlscacert = value),
  tlscert: ({ tls }, value) => (tls.tlscert = value),
  tlskey: ({ tls }, value) => (tls.tlskey = value),
  // Nothing is logged by a client, whatever its level; that of debug is more than that.
  'log-level': (_, value) => {
    if (!['debug', 'info', 'warn', 'error', 'fatal'].includes(value))
      throw new CoracleError('USAGE', `--log-level is debug, info, warn, error or fatal, not '${value}'`)
    if (value === 'debug') process.env['CORACLE_DEBUG'] = '1'
  },
}
const SHORT: Readonly<Record<string, string>> = { H: 'host', c: 'context', l: 'log-level', D: 'debug' }

async function main(words: readonly string[]): Promise<number> {
  const globals: Globals = { tls: {} }
  for (let at = 0; at < words.length; at++) {
    const word = words[at]!
    if (word === 'help' && words[at + 1] !== undefined) return helpOf(words.slice(at + 1))
    if (word === '--help' || word === '-h' || word === 'help') return print(HELP)
    if (word === '--version' || word === '-v') {
      const { VERSION } = await import('../api/version.js')
      return print(`coracle ${VERSION}\n`)
    }
    if (Object.hasOwn(GROUPS, word) && [undefined, '--help', '-h', 'help'].includes(words[at + 1]))
      return print(groupHelp(word))
    if (!word.startsWith('-')) {
      const { load, length } = find(words.slice(at))
      const { run } = await load()
      return run({ words: words.slice(at + length), endpoint: () => chooseEndpoint(globals) })
    }
    const [, long, value] = /^--([a-z-]+)(?:=(.*))?$/s.exec(word) ?? []
    const [, short, rest] = /^-([A-Za-z])=?(.*)$/s.exec(word) ?? []
    const name = long ?? SHORT[short ?? ''] ?? ''
    const given = value ?? (rest || undefined)
    const isOn = given === undefined || given === 'true'
    if (name === 'debug') process.env['CORACLE_DEBUG'] = isOn ? '1' : ''
    else if (name === 'tlsverify') globals.tls.verify = isOn
    else if (name === 'tls')
      throw new CoracleError('USAGE', '--tls is refused: it trusts any engine; --tlsverify does not')
    else if (Object.hasOwn(VALUED, name)) {
      const chosen = given ?? words[++at]
      if (!chosen) throw new CoracleError('USAGE', `--${name} needs a value. See 'coracle --help'.`)
      VALUED[name]!(globals, chosen)
    } else throw new CoracleError('USAGE', `unknown flag: ${word}. See 'coracle --help'.`)
  }
  return print(HELP)
}

/** `help COMMAND`, as `COMMAND --help`. */
async function helpOf(words: readonly string[]): Promise<number> {
  if (words.length === 1 && Object.hasOwn(GROUPS, words[0]!)) return print(groupHelp(words[0]!))
  const { run } = await find(words).load()
  return run({ words: ['--help'], endpoint: () => Promise.resolve(undefined) })
}

/**
 * Where the API is, by whoever says so first, as with Docker: the flags, DOCKER_HOST, DOCKER_CONTEXT, the context in use.
 * @throws CoracleError USAGE for both flags, NOT_FOUND
 */
async function chooseEndpoint({ host, context, tls }: Globals): Promise<Endpoint | undefined> {
  if (host && context) throw new CoracleError('USAGE', '--host and --context name two engines: give one')
  const named = host ?? (context ? undefined : process.env['DOCKER_HOST'])
  if (named) return (await import('./endpoint.js')).endpointOf(named, process.env, tls)
  if (Object.keys(tls).length > 0)
    throw new CoracleError('USAGE', '--tls… goes with --host or DOCKER_HOST: a context has TLS of its own')
  const { currentContext, findContext } = await import('./contexts.js')
  return findContext(context ?? currentContext())
}

/** The command that the words begin with, and how many of them name it. @throws CoracleError USAGE */
function find([word, next]: readonly string[]): { load: () => Promise<Command>; length: number } {
  const own = <T>(record: Record<string, T>, name = ''): T | undefined =>
    Object.hasOwn(record, name) ? record[name] : undefined
  const command = own(COMMANDS, word)
  if (command) return { load: command[1], length: 1 }
  const group = own(GROUPS, word)
  const refused = own(REFUSED, word)
  if (refused !== undefined) throw new CoracleError('USAGE', `'${word}' is refused: ${refused}`)
  if (!group) throw new CoracleError('USAGE', `'${word}' is not a command. See 'coracle --help'.`)
  const member = own(group, next) ?? own(group, own(ALIASES, next))
  if (!member)
    throw new CoracleError('USAGE', `${word} is followed by one of: ${Object.keys(group).sort().join(', ')}`)
  return { load: typeof member === 'string' ? COMMANDS[member]![1] : member, length: 2 }
}

function print(text: string): number {
  process.stdout.write(text)
  return 0
}

/** A reader that went away is no error: the status is that of a program killed by SIGPIPE. */
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  process.exit(error.code === 'EPIPE' ? 141 : 125)
})
process.stderr.on('error', () => undefined)

let status
try {
  status = await main(process.argv.slice(2))
} catch (error) {
  const known = error instanceof CoracleError
  const message = known ? error.message : `internal error: ${(error as Error).message}`
  process.stderr.write(`coracle: ${message.split('\n')[0]}\n`)
  if (!known && process.env['CORACLE_DEBUG']) process.stderr.write(`${(error as Error).stack}\n`)
  status = known ? error.exit : 125
}
// An engine in this process may hold connections to containers that go on without it. Whoever reads slowly gets the rest.
process.stderr.write('', () => process.stdout.write('', () => process.exit(status)))
