import { CoracleError } from '../../errors.js'
import { type Command, type CommandHelp, forEach, type Invocation, parseOptions } from '../command.js'
import {
  createContext,
  currentContext,
  findContext,
  listContexts,
  removeContext,
  useContext,
} from '../contexts.js'
import { dialOf, type Endpoint, parseTcp, readTlsFiles } from '../endpoint.js'
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

const createHelp = {
  usage: 'context create NAME --docker host=HOST[,ca=FILE,cert=FILE,key=FILE]',
  summary: 'Names an engine and how to reach it. The certificates are copied.',
  options: (yargs) =>
    yargs
      .option('docker', {
        type: 'string',
        requiresArg: true,
        demandOption: true,
        describe: 'host=unix://PATH, or host=tcp://HOST:PORT with ca, cert and key',
      })
      .option('description', { type: 'string', requiresArg: true, describe: 'What it is' }),
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
    const { docker, description } = options
    createContext(options._[0]!, {
      ...endpointOfWords(docker),
      ...(description !== undefined && { description }),
    })
    process.stdout.write(`${options._[0]}\n`)
    return 0
  },
}

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

export const inspect = command(
  'inspect [NAME...]',
  'Shows contexts as JSON, without keys.',
  [0, Infinity],
  ['context inspect farm', 'where it leads'],
  (names) => {
    const shown = (names.length > 0 ? names : [currentContext()]).map((name) => {
      const { host, tls, description } = findContext(name) ?? {}
      return { Name: name, Description: description ?? '', Host: host ?? '', TLS: tls !== undefined }
    })
    process.stdout.write(`${JSON.stringify(shown, undefined, 4)}\n`)
    return 0
  },
)

export const rm = command(
  'rm NAME...',
  'Forgets contexts.',
  [1, Infinity],
  ['context rm farm', 'with its certificates'],
  (names) =>
    forEach(names, (name) => {
      removeContext(name)
      return Promise.resolve(name)
    }),
)
