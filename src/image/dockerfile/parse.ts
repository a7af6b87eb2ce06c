import { CoracleError } from '../../errors.js'

/** Bytes of a Dockerfile at most. */
export const MAX_DOCKERFILE = 1024 * 1024

/** A here-document of RUN, COPY or ADD. */
export interface Heredoc {
  readonly name: string
  readonly content: string
  /** Variables in it are expanded: its name stood without quotes. */
  readonly expand: boolean
}

/** One instruction of a Dockerfile. */
export interface Instruction {
  /** In capitals, such as `RUN`. */
  readonly word: string
  /** The line on which it begins, from 1. */
  readonly line: number
  /** `--name=value` before the arguments, in their order; `true` for a flag without a value. */
  readonly flags: readonly (readonly [name: string, value: string])[]
  /** What follows the flags, continued lines joined. */
  readonly rest: string
  /** The arguments where they are written as a list in JSON. */
  readonly list: readonly string[] | undefined
  readonly heredocs: readonly Heredoc[]
}

export interface Dockerfile {
  readonly instructions: readonly Instruction[]
  /** The escape character: a backslash, or a backtick by `# escape=`. */
  readonly escape: string
  /** The image that `# syntax=` names to read the file: BuildKit runs it. */
  readonly syntax: string | undefined
}

const WORDS = new Set(
  'ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL MAINTAINER ONBUILD RUN SHELL STOPSIGNAL USER VOLUME WORKDIR'.split(
    ' ',
  ),
)
const FLAGGED = new Set(['ADD', 'COPY', 'FROM', 'HEALTHCHECK', 'RUN'])
const LISTED = new Set(['ADD', 'CMD', 'COPY', 'ENTRYPOINT', 'RUN', 'SHELL', 'VOLUME'])
const WITH_HEREDOCS = new Set(['ADD', 'COPY', 'RUN'])

/**
 * Takes a Dockerfile apart (Dockerfile reference: "Format", "Parser directives", "Here-Documents").
 * @throws CoracleError DOCKERFILE with the line
 */
export function parseDockerfile(text: string): Dockerfile {
  if (text.length > MAX_DOCKERFILE) throw problem(1, 'the Dockerfile is too large')
  const lines = text.replace(/^\uFEFF/, '').split(/\r?\n/)
  const { escape, syntax } = directivesOf(lines)
  const instructions: Instruction[] = []
  // One that is itself escaped continues nothing.
  const continued = escape === '\\' ? /(?<!\\)\\[ \t]*$/ : /(?<!`)`[ \t]*$/
  for (let at = 0; at < lines.length; at++) {
    if (isSkipped(lines[at]!)) continue
    const line = at + 1
    let logical = lines[at]!.trimStart()
    while (continued.test(logical)) {
      logical = logical.replace(continued, '')
      do at++
      while (at < lines.length && isSkipped(lines[at]!))
      if (at >= lines.length) break
      logical += lines[at]!
    }
    const take = (): string | undefined => lines[++at]
    instructions.push(parseInstruction(logical.trimEnd(), line, take))
  }
  if (instructions.length === 0) throw problem(1, 'the Dockerfile has no instruction')
  return { instructions, escape, syntax }
}

const isSkipped = (line: string): boolean => /^\s*(#|$)/.test(line)

/** What is wrong with a Dockerfile, and where. */
export const problem = (line: number, message: string): CoracleError =>
  new CoracleError('DOCKERFILE', `Dockerfile line ${line}: ${message}`)

/** Directives are the comments of the form `# name=value` before anything else. */
function directivesOf(lines: readonly string[]): Pick<Dockerfile, 'escape' | 'syntax'> {
  let escape = '\\'
  let syntax: string | undefined
  for (const [i, line] of lines.entries()) {
    const [, name, value] = /^#\s*([a-zA-Z]+)\s*=\s*(.+?)\s*$/.exec(line) ?? []
    if (name === undefined) break
    if (name.toLowerCase() === 'syntax') syntax = value
    if (name.toLowerCase() !== 'escape') continue
    if (value !== '\\' && value !== '`') throw problem(i + 1, `invalid escape '${value}': \\ or \`, no other`)
    escape = value
  }
  return { escape, syntax }
}

/** Parses the text of one instruction, also behind ONBUILD. @param take gives the lines that follow, for here-documents */
export function parseInstruction(text: string, line: number, take: () => string | undefined): Instruction {
  const [, name = '', after = ''] = /^(\S+)(?:\s+([\s\S]*))?$/.exec(text) ?? []
  const word = name.toUpperCase()
  if (!WORDS.has(word)) throw problem(line, `unknown instruction: ${name.slice(0, 64)}`)
  let rest = after.trim()
  const flags: [string, string][] = []
  while (FLAGGED.has(word)) {
    const flag = /^--([a-zA-Z][\w-]*)(?:=("[^"]*"|\S*))?(?:\s+|$)/.exec(rest)
    if (!flag) break
    flags.push([flag[1]!, flag[2]?.replace(/^"(.*)"$/, '$1') ?? 'true'])
    rest = rest.slice(flag[0].length)
  }
  if (rest === '' && word !== 'SHELL') throw problem(line, `${word} requires at least one argument`)
  const heredocs = WITH_HEREDOCS.has(word) ? readHeredocs(rest, line, take) : []
  return { word, line, flags, rest, list: LISTED.has(word) ? listOf(rest) : undefined, heredocs }
}

function listOf(text: string): string[] | undefined {
  if (!text.startsWith('[')) return undefined
  try {
    const value: unknown = JSON.parse(text)
    if (Array.isArray(value) && value.every((each) => typeof each === 'string')) return value
  } catch {
    // Then it is a line for the shell.
  }
  return undefined
}

const HEREDOC = /(?:^|[\s\d])<<(-?)(["']?)([a-zA-Z_][a-zA-Z0-9_]*)\2(?=\s|$|[;|&<>])/g

function readHeredocs(rest: string, line: number, take: () => string | undefined): Heredoc[] {
  const heredocs: Heredoc[] = []
  for (const [, dash, quote, name] of rest.matchAll(HEREDOC)) {
    const lines: string[] = []
    for (;;) {
      const next = take()
      if (next === undefined) throw problem(line, `the here-document ${name} has no end`)
      const stripped = dash === '-' ? next.replace(/^\t+/, '') : next
      if (stripped === name) break
      lines.push(stripped)
    }
    heredocs.push({ name: name!, content: lines.map((each) => `${each}\n`).join(''), expand: quote === '' })
  }
  return heredocs
}
