import { CoracleError } from '../errors.js'

/*
 * The part of Go's templates (text/template) that people write after --format: fields (`.A.B`), `$`, `json`, `join`,
 * `index`, `len`, `lower`, `upper`, `println`, comparisons with `eq` and `ne`, pipes, `if`, `range` and `with`.
 */

type Expression = (dot: unknown, root: unknown) => unknown
type Node =
  | string
  | { readonly value: Expression }
  | {
      readonly kind: 'if' | 'range' | 'with'
      readonly value: Expression
      readonly body: readonly Node[]
      readonly otherwise: readonly Node[]
    }

const FUNCTIONS: Record<string, (...values: readonly unknown[]) => unknown> = {
  json: (value) => JSON.stringify(value ?? null),
  join: (list, separator) => asList(list).map(show).join(show(separator)),
  index: (value, ...keys) => keys.reduce((at, key) => field(at, show(key)), value),
  len: (value) => (typeof value === 'string' ? value.length : asList(value).length),
  lower: (value) => show(value).toLowerCase(),
  upper: (value) => show(value).toUpperCase(),
  println: (...values) => `${values.map(show).join(' ')}\n`,
  eq: (first, ...others) => others.some((other) => first === other),
  ne: (first, second) => first !== second,
  not: (value) => !truth(value),
}

/** A template that was read: gives the text for one value. */
export type Template = (value: unknown) => string

/**
 * Reads a template. `\\t` and `\\n` in its text are what they are in Docker's.
 * @throws CoracleError USAGE where it is none, or has what is not understood
 */
export function parseTemplate(text: string): Template {
  const words = text.split(/\{\{-?\s*(.*?)\s*-?\}\}/s)
  let at = 0
  const block = (inside: boolean): { nodes: Node[]; end: string } => {
    const nodes: Node[] = []
    for (; at < words.length; at++) {
      const word = words[at]!
      if (at % 2 === 0) nodes.push(word.replace(/\\t/g, '\t').replace(/\\n/g, '\n'))
      else if (inside && (word === 'end' || word === 'else')) return { nodes, end: word }
      else nodes.push(action(word))
    }
    if (inside) throw bad(text, 'an {{end}} is missing')
    return { nodes, end: '' }
  }
  const action = (word: string): Node => {
    const [, kind, rest] = /^(if|range|with)\s+(.+)$/s.exec(word) ?? []
    if (kind === undefined) return { value: parsePipe(word, text) }
    at++
    const { nodes: body, end } = block(true)
    let otherwise: Node[] = []
    if (end === 'else') {
      at++
      otherwise = block(true).nodes
    }
    return { kind: kind as 'if' | 'range' | 'with', value: parsePipe(rest!, text), body, otherwise }
  }
  const { nodes } = block(false)
  return (value) => render(nodes, value, value)
}

function render(nodes: readonly Node[], dot: unknown, root: unknown): string {
  return nodes
    .map((node) => {
      if (typeof node === 'string') return node
      const value = node.value(dot, root)
      if (!('kind' in node)) return show(value)
      if (!truth(value)) return render(node.otherwise, dot, root)
      if (node.kind === 'range')
        return asList(value)
          .map((each) => render(node.body, each, root))
          .join('')
      return render(node.body, node.kind === 'with' ? value : dot, root)
    })
    .join('')
}

/** `A | f B`: what is on the left is the last argument of what is on the right. */
function parsePipe(pipe: string, text: string): Expression {
  const tokens = pipe.match(/"(?:[^"\\]|\\.)*"|`[^`]*`|[()|]|[^\s()|]+/g) ?? []
  let at = 0
  const operand = (): Expression => {
    const token = tokens[at++]
    if (token === undefined) throw bad(text, 'a value is missing')
    if (token === '(') {
      const inner = whole()
      if (tokens[at++] !== ')') throw bad(text, 'a ) is missing')
      return inner
    }
    if (token.startsWith('"')) return constant(JSON.parse(token))
    if (token.startsWith('`')) return constant(token.slice(1, -1))
    if (/^-?\d+$/.test(token)) return constant(Number(token))
    if (token === 'true' || token === 'false') return constant(token === 'true')
    const [, start, path] = /^(\$?)((?:\.[A-Za-z_]\w*)*|\.)$/.exec(token) ?? []
    if (path === undefined) throw bad(text, `'${token}' is not understood`)
    const names = path.split('.').filter((name) => name !== '')
    return (dot, root) => names.reduce(field, start === '$' ? root : dot)
  }
  const command = (before?: Expression): Expression => {
    const name = tokens[at] ?? ''
    const call = Object.hasOwn(FUNCTIONS, name) ? FUNCTIONS[name] : undefined
    if (call === undefined) {
      if (before) throw bad(text, `'${name}' is no function`)
      return operand()
    }
    at++
    const given: Expression[] = []
    while (at < tokens.length && tokens[at] !== '|' && tokens[at] !== ')') given.push(operand())
    if (before) given.push(before)
    return (dot, root) => call(...given.map((each) => each(dot, root)))
  }
  const whole = (): Expression => {
    let value = command()
    while (tokens[at] === '|') {
      at++
      value = command(value)
    }
    return value
  }
  const value = whole()
  if (at < tokens.length) throw bad(text, `'${tokens[at]}' is not understood`)
  return value
}

const constant =
  (value: unknown): Expression =>
  () =>
    value

const bad = (text: string, what: string): CoracleError =>
  new CoracleError('USAGE', `bad --format '${text}': ${what}`)

function field(value: unknown, name: string): unknown {
  if (typeof value !== 'object' || value === null || !Object.hasOwn(value, name)) return undefined
  return (value as Record<string, unknown>)[name]
}

const asList = (value: unknown): readonly unknown[] =>
  typeof value === 'object' && value !== null ? Object.values(value) : []

function truth(value: unknown): boolean {
  return typeof value === 'object' && value !== null ? Object.keys(value).length > 0 : Boolean(value)
}

/** As Go prints it. */
function show(value: unknown): string {
  if (value === undefined || value === null) return '<no value>'
  if (Array.isArray(value)) return `[${value.map(show).join(' ')}]`
  if (typeof value !== 'object') return String(value as string | number | boolean)
  const fields = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))
  return `map[${fields.map(([name, each]) => `${name}:${show(each)}`).join(' ')}]`
}

/**
 * What `--format` of a command that shows one thing says.
 * @returns undefined where it is not given, or `json`
 * @throws CoracleError USAGE
 */
export const templateOf = (format: string | undefined): Template | undefined =>
  format === undefined || format === 'json' ? undefined : parseTemplate(format)
