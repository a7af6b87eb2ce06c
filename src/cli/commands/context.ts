import { writeFileSync } from 'node:fs'
import { CoracleError } from '../../errors.js'
import { type Command, type CommandHelp, forEach, type Invocation, parseOptions } from '../command.js'
import { contextMeta, packContext, readContext } from '../context-archive.js'
import {
  type Context,
  createContext,
  currentContext,
  findContext,
  listContexts,
  removeContext,
  updateContext,
  useContext,
} from '../contexts.js'
import { dialOf, type Endpoint, parseTcp, readTlsFiles } from '../endpoint.js'
import { openArchive } from '../open-archive.js'
import { showEach } from '../inspect-each.js'
import { FORMAT, listing } from '../listing.js'

/** One of the commands below: `act` gets the words. */
const command = (
  usage: string,
  summary: string,
  words: readonly [number, number],
  example: readonly [string, string],
  act: (words: readonly string[]) => number | Promise<number>,
): Command => {
  const help = {
    usage: `context ${usage}`,
    summary,
    options: (yargs) => yargs,
    examples: [example],
    words,
  } satisfies CommandHelp<unknown>
  return {
    run: async ({ words }: Invocation): Promise<number> => {
      const options = await parseOptions(words, help)
      return options ? act(options._) : 0
    },
  }
}

const DOCKER = {
  type: 'string',
  requiresArg: true,
  describe: 'host=unix://PATH, or host=tcp://HOST:PORT with ca, cert and key',
} as const
const DESCRIPTION = { type: 'string', requiresArg: true, describe: 'What it is' } as const

const createHelp = {
  usage: 'context create NAME --docker host=HOST[,ca=FILE,cert=FILE,key=FILE]',
  summary: 'Names an engine and how to reach it. The certificates are copied.',
  options: (yargs) =>
    yargs
      .option('docker', DOCKER)
      .option('from', {
        type: 'string',
        requiresArg: true,
        describe: 'As this context, in place of --docker',
      })
      .option('description', DESCRIPTION),
  examples: [
    [
      'context create farm --docker host=tcp://farm.example:2376,ca=ca.pem,cert=cert.pem,key=key.pem',
      'an engine elsewhere',
    ],
  ],
  words: [1, 1],
} satisfies CommandHelp<unknown>

export const create: Command = {
  run: async ({ words }) => {
    const options = await parseOptions(words, createHelp)
    if (!options) return 0
    const { docker, from, description } = options
    if ((docker === undefined) === (from === undefined))
      throw new CoracleError('USAGE', 'one of --docker and --from says which engine it is')
    createContext(options._[0]!, {
      ...(docker === undefined ? contextOf(from!) : endpointOfWords(docker)),
      ...(description !== undefined && { description }),
    })
    process.stdout.write(`${options._[0]}\n`)
    return 0
  },
}

/** One that leads somewhere. @throws CoracleError NOT_FOUND, USAGE for the default */
function contextOf(name: string): Context {
  const context = findContext(name)
  if (context) return context
  throw new CoracleError(
    'USAGE',
    `the context '${name}' names no host: it is this host's daemon, or the command itself`,
  )
}

const updateHelp = {
  usage: 'context update [OPTIONS] NAME',
  summary: 'Changes where a context leads, or what is said of it.',
  options: (yargs) => yargs.option('docker', DOCKER).option('description', DESCRIPTION),
  examples: [['context update farm --description "the machines in the barn"', 'the rest stays']],
  words: [1, 1],
} satisfies CommandHelp<unknown>

export const update: Command = {
  run: async ({ words }) => {
    const options = await parseOptions(words, updateHelp)
    if (!options) return 0
    const { docker, description } = options
    updateContext(options._[0]!, {
      ...(docker !== undefined && endpointOfWords(docker)),
      ...(description !== undefined && { description }),
    })
    process.stdout.write(`${options._[0]}\n`)
    return 0
  },
}

export const exporting = command(
  'export NAME [FILE|-]',
  "Writes a context as a tar, with its keys, as Docker's client does; without a FILE it is NAME.dockercontext.",
  [1, 2],
  ['context export farm - | ssh other coracle context import farm -', 'to another machine'],
  ([name, file = `${name}.dockercontext`]) => {
    const tar = packContext(name!, contextOf(name!))
    if (file === '-') {
      if (process.stdout.isTTY)
        throw new CoracleError('USAGE', 'a tar is not for a terminal: name a FILE, or redirect stdout')
      process.stdout.write(tar)
      return 0
    }
    try {
      writeFileSync(file, tar, { flag: 'wx', mode: 0o600 })
    } catch (error) {
      throw new CoracleError('USAGE', `cannot make ${file} (${(error as NodeJS.ErrnoException).code})`)
    }
    process.stdout.write(`Written file "${file}"\n`)
    return 0
  },
)

export const importing = command(
  'import NAME FILE|-',
  "Takes a context from a tar, of 'coracle context export' or of Docker's client.",
  [2, 2],
  ['context import farm farm.dockercontext', 'under a name that may be another'],
  async ([name, file]) => {
    createContext(name!, await readContext(await openArchive(file === '-' ? undefined : file, 'name a FILE')))
    process.stdout.write(`${name}\n`)
    return 0
  },
)

/** @throws CoracleError USAGE */
function endpointOfWords(text: string): Endpoint {
  const fields = new Map(
    text.split(',').map((each): [string, string] => {
      const [name = '', ...value] = each.split('=')
      return [name.trim(), value.join('=')]
    }),
  )
  for (const name of fields.keys())
    if (!['host', 'ca', 'cert', 'key'].includes(name))
      throw new CoracleError('USAGE', `--docker has host, ca, cert and key, and no '${name}'`)
  const [host, ca, cert, key] = ['host', 'ca', 'cert', 'key'].map((name) => fields.get(name))
  if (!host) throw new CoracleError('USAGE', '--docker needs host=unix://PATH or host=tcp://HOST:PORT')
  dialOf({ host })
  if (!ca && !cert && !key) return { host }
  if (!ca || !cert || !key || !parseTcp(host))
    throw new CoracleError('USAGE', 'TLS needs all of ca, cert and key, and a host of tcp://')
  return { host, tls: readTlsFiles({ ca, cert, key }) }
}

const lsHelp = {
  usage: 'context ls [OPTIONS]',
  summary: 'Lists contexts.',
  options: (yargs) =>
    yargs.option('format', FORMAT).option('quiet', { alias: 'q', type: 'boolean', describe: 'Only names' }),
  examples: [
    ['context ls', '* is the one in use'],
    ["context ls --format '{{.Name}} {{.DockerEndpoint}}'", 'a line each'],
  ],
  words: [0, 0],
} satisfies CommandHelp<unknown>

const COLUMNS = {
  Name: 'NAME',
  Description: 'DESCRIPTION',
  DockerEndpoint: 'HOST',
  Current: undefined,
  Error: undefined,
}

export const ls: Command = {
  run: async ({ words }) => {
    const options = await parseOptions(words, lsHelp)
    if (!options) return 0
    const { format, quiet } = options
    const current = currentContext()
    const all = listContexts()
    if (quiet) {
      process.stdout.write(all.map(({ name }) => `${name}\n`).join(''))
      return 0
    }
    // The star is for people: a program asks for .Current.
    const mark = (name: string): string => (format === undefined && name === current ? ' *' : '')
    const rows = all.map(({ name, context }) => ({
      Name: `${name}${mark(name)}`,
      Description: context?.description ?? (context ? '' : "This host's daemon, or the command itself"),
      DockerEndpoint: `${context?.host ?? ''}${context?.tls && format === undefined ? ' (TLS)' : ''}`,
      Current: String(name === current),
      Error: '',
    }))
    process.stdout.write(listing(COLUMNS, rows, format))
    return 0
  },
}

export const use = command(
  'use NAME',
  'Makes a context the one in use.',
  [1, 1],
  ['context use default', 'back to this host'],
  ([name]) => {
    useContext(name!)
    process.stdout.write(`${name}\n`)
    if (process.env['DOCKER_HOST'] || process.env['DOCKER_CONTEXT'])
      process.stderr.write('coracle: DOCKER_HOST or DOCKER_CONTEXT is set, and goes first\n')
    return 0
  },
)

export const show = command(
  'show',
  'Shows the name of the context in use.',
  [0, 0],
  ['context show', 'such as default'],
  () => {
    process.stdout.write(`${currentContext()}\n`)
    return 0
  },
)

const inspectHelp = {
  usage: 'context inspect [OPTIONS] [NAME...]',
  summary: 'Shows contexts as JSON, without keys.',
  options: (yargs) =>
    yargs.option('format', {
      alias: 'f',
      type: 'string',
      requiresArg: true,
      describe: 'A Go template for each, or json',
    }),
  examples: [["context inspect -f '{{.Endpoints.docker.Host}}' farm", 'where it leads']],
  words: [0, Infinity],
} satisfies CommandHelp<unknown>

export const inspect: Command = {
  run: async ({ words }) => {
    const options = await parseOptions(words, inspectHelp)
    if (!options) return 0
    const { format, _: names } = options
    const shown = (names.length > 0 ? names : [currentContext()]).map((name) => {
      const context = findContext(name) ?? {}
      const TLSMaterial = 'tls' in context ? { docker: ['ca.pem', 'cert.pem', 'key.pem'] } : {}
      return { ...contextMeta(name, context), TLSMaterial, Storage: {} }
    })
    showEach(shown, format)
    return 0
  },
}

const rmHelp = {
  usage: 'context rm [OPTIONS] NAME...',
  summary: 'Forgets contexts.',
  options: (yargs) =>
    yargs.option('force', {
      alias: 'f',
      type: 'boolean',
      describe: 'Also the one in use: the default is then',
    }),
  examples: [['context rm farm', 'with its certificates']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export const rm: Command = {
  run: async ({ words }) => {
    const options = await parseOptions(words, rmHelp)
    if (!options) return 0
    return forEach(options._, (name) => {
      removeContext(name, options.force ?? false)
      return Promise.resolve(name)
    })
  },
}
