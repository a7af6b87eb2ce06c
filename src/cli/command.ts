import type { Argv } from 'yargs'
import { CoracleError } from '../errors.js'
import type { Client } from './client.js'
import type { Endpoint } from './endpoint.js'

/** What a command is run with. */
export interface Invocation {
  /** The words behind the command's name. */
  readonly words: readonly string[]
  /** Where the API answers: by `-H`, DOCKER_HOST or a context; undefined for the default. Asked of by commands that need it. */
  readonly endpoint: () => Promise<Endpoint | undefined>
}

/** A command's options as yargs found them, and the words that are none. */
export type Options<T> = T & { readonly _: readonly string[] }

/** One command of the command line: a file each in commands/. */
export interface Command {
  /** Resolves to the exit status. */
  readonly run: (invocation: Invocation) => Promise<number>
}

/** What {@link parseOptions} needs to know of a command. */
export interface CommandHelp<T> {
  readonly usage: string
  readonly summary: string
  readonly examples: readonly (readonly [line: string, meaning: string])[]
  readonly options: (yargs: Argv) => Argv<T>
  /** Words that must and may follow the options. */
  readonly words: readonly [least: number, most: number]
  /** Options end with the first word: what follows belongs to the container. */
  readonly halt?: boolean
  /** Options of Docker's that have no meaning here, by name. */
  readonly refused?: Refused
}

/** Why an option is refused: at any value, or at one. `false` of another is as good as not given. */
export type Refused = Readonly<Record<string, string | { readonly value: string; readonly why: string }>>

/** The one of many commands: there are no signatures of Docker Content Trust here. */
export const CONTENT_TRUST: Refused = {
  'disable-content-trust': { value: 'false', why: 'signatures of images are not checked here' },
}

/** What yargs knows of its options, and does not have among its types. */
interface Declared {
  getOptions(): { readonly array: readonly string[] }
}

/**
 * Parses a command's words.
 * @returns undefined where help was asked for and printed
 * @throws CoracleError USAGE
 */
export async function parseOptions<T>(
  words: readonly string[],
  help: CommandHelp<T>,
): Promise<Options<T> | undefined> {
  const { default: yargs } = await import('yargs')
  // Of a group's member two words.
  const [name = ''] = /^coracle [a-z]+(?: [a-z]+(?= |$))?/.exec(`coracle ${help.usage}`) ?? []
  const fail = (message: string): never => {
    throw new CoracleError('USAGE', `${message.split('\n')[0]}. See '${name} --help'.`)
  }
  const parser = help
    .options(yargs([...words]))
    .scriptName('coracle')
    .usage(`Usage: coracle ${help.usage}\n\n${help.summary}`)
    .parserConfiguration({
      'halt-at-non-option': help.halt ?? false,
      'greedy-arrays': false,
      'camel-case-expansion': false,
      'dot-notation': false,
      'boolean-negation': false,
      'duplicate-arguments-array': true,
      'parse-positional-numbers': false,
      'parse-numbers': false,
    })
    .strictOptions()
    .version(false)
    .help('help')
    .locale('en')
    .wrap(100)
    .exitProcess(false)
    .showHelpOnFail(false)
    .fail((message, error) => fail(message || error.message))
  const refused = Object.entries(help.refused ?? {})
  // Without their dashes: a shell's completion takes names with dashes from here.
  const names = refused.map(([option]) => option).filter((option) => option.length > 1)
  if (names.length > 0) parser.epilogue(`Of Docker's, refused here: ${names.join(', ')}.`)
  for (const [option] of refused) parser.option(option, { hidden: true })
  for (const [line, meaning] of help.examples) parser.example(`coracle ${line}`, meaning)
  let helped = false
  const argv = (await parser.parseAsync([...words], {}, (_error, _argv, output) => {
    if (output === '') return
    helped = true
    process.stdout.write(`${output}\n`)
  })) as unknown as Options<T>
  if (helped) return undefined
  for (const [option, reason] of refused) {
    const value = (argv as Readonly<Record<string, unknown>>)[option]
    const { value: at, why } = typeof reason === 'string' ? { value: undefined, why: reason } : reason
    if (at === undefined ? value !== undefined && String(value) !== 'false' : String(value) === at)
      throw new CoracleError(
        'USAGE',
        `${option.length > 1 ? '--' : '-'}${option}${at === undefined ? '' : `=${at}`} is refused: ${why}`,
      )
  }
  const [least, most] = help.words
  if (argv._.length < least) fail(`${name} needs ${least === 1 ? 'a word' : `${least} words`} more`)
  if (argv._.length > most) fail(`${name} does not take so many words: ${argv._[most]}`)
  const lists = (parser as unknown as Declared).getOptions().array
  // Of an option that is given twice the last counts, unless it makes a list.
  const single = Object.entries(argv).map(([name, value]): [string, unknown] => [
    name,
    Array.isArray(value) && !lists.includes(name) ? value.at(-1) : value,
  ])
  return { ...(Object.fromEntries(single) as Options<T>), _: argv._.map(String) }
}

/** A repeated option as a list. */
export function listOf(value: string | readonly string[] | undefined): readonly string[] {
  return value === undefined ? [] : typeof value === 'string' ? [value] : value
}

/**
 * Does one thing to each of several containers or images: prints what was done, and goes on after an error.
 * @returns the exit status: 1 where any failed
 */
export async function forEach(
  names: readonly string[],
  action: (name: string) => Promise<string>,
): Promise<number> {
  let status = 0
  for (const name of names) {
    try {
      process.stdout.write(`${await action(name)}\n`)
    } catch (error) {
      if (!(error instanceof CoracleError) || error.code === 'DAEMON_UNREACHABLE') throw error
      process.stderr.write(`coracle: ${error.message}\n`)
      status = 1
    }
  }
  return status
}

/** Connects to the API for one command. */
export async function withClient(
  { endpoint }: Invocation,
  action: (client: Client) => Promise<number>,
): Promise<number> {
  const { connect } = await import('./client.js')
  const client = await connect(await endpoint())
  try {
    return await action(client)
  } finally {
    client.close()
  }
}

/**
 * A command that does one thing to each of those that its words name.
 * @param act resolves to what is printed of it
 */
export const eachOf =
  <T>(
    help: CommandHelp<T>,
    act: (client: Client, name: string, options: Options<T>) => Promise<string>,
  ): Command['run'] =>
  async (invocation) => {
    const options = await parseOptions(invocation.words, help)
    if (!options) return 0
    return withClient(invocation, (client) => forEach(options._, (name) => act(client, name, options)))
  }
