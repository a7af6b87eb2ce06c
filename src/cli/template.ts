import { CoracleError } from '../errors.js'
import { FUNCTIONS, field, listOf, show, truth } from './template-values.js'

/*
 * Go's templates (text/template), as people write them after --format: fields (`.A.B`), `$`, variables, pipes, calls of
 * functions, `if` with `else if`, `range` with one or two variables, `with`, comments, and `{{-`, which eats the space
 * around it. There is nothing here that defines or names a template.
 */

/** What an expression is worked out in. */
interface Scope {
  readonly dot: unknown
  readonly root: unknown
  readonly variables: Map<string, unknown>
  /** Of the block around. */
  readonly outer?: Scope
}

type Expression = (scope: Scope) => unknown
/** Gives its text. */
type Node = (scope: Scope) => string

/** A template that was read: gives the text for one value. */
export type Template = (value: unknown) => string

/**
 * Reads a template. `\\t` and `\\n` in its text are what they are in Docker's.
 * @param isField whether what is shown has such a field; without it what is missing shows as `<no value>`
 * @throws CoracleError USAGE where it is none, or has what is not understood
 */
export function parseTemplate(text: string, isField: (name: string) => void = () => undefined): Template {
  const nodes = new Parser(text, isField).all()
  return (value) => render(nodes, { dot: value, root: value, variables: new Map() })
}

const render = (nodes: readonly Node[], scope: Scope): string => nodes.map((node) => node(scope)).join('')

const TOKEN = /"(?:[^"\\]|\\.)*"|`[^`]*`|:=|[()|,=]|[^\s()|,="`:]+/gs
const ACTION = /\{\{(-\s)?\s*(\/\*.*?\*\/|(?:"(?:[^"\\]|\\.)*"|`[^`]*`|[^"`])*?)\s*(\s-)?\}\}/gs

class Parser {
  readonly #text: string
  readonly #isField: (name: string) => void
  /** Texts and, at odd places, actions. */
  readonly #parts: string[] = []
  #at = 0
  /** Blocks around here in which the dot is another than at the top. */
  #depth = 0

  constructor(text: string, isField: (name: string) => void) {
    this.#text = text
    this.#isField = isField
    let [end, trim] = [0, false]
    const plain = (part: string): void => {
      const left = trim ? part.trimStart() : part
      this.#parts.push(left.replace(/\\t/g, '\t').replace(/\\n/g, '\n'))
    }
    for (const match of text.matchAll(ACTION)) {
      const [whole, before, action, after] = match
      const part = text.slice(end, match.index)
      plain(before === undefined ? part : part.trimEnd())
      this.#parts.push(action!)
      trim = after !== undefined
      end = match.index + whole.length
    }
    const rest = text.slice(end)
    if (rest.includes('{{')) throw this.#bad('a }} is missing')
    plain(rest)
  }

  #bad(what: string): CoracleError {
    return new CoracleError('USAGE', `bad --format '${this.#text}': ${what}`)
  }

  all(): Node[] {
    return this.#block([]).nodes
  }

  /** Up to one of the words in `ends`, or to the end of all where there are none. */
  #block(ends: readonly string[]): { nodes: Node[]; end: string } {
    const nodes: Node[] = []
    for (; this.#at < this.#parts.length; this.#at++) {
      const part = this.#parts[this.#at]!
      if (this.#at % 2 === 0) nodes.push(() => part)
      else if (ends.some((end) => part === end || part.startsWith(`${end} `))) return { nodes, end: part }
      else if (!part.startsWith('/*')) nodes.push(this.#action(part))
    }
    if (ends.length > 0) throw this.#bad('an {{end}} is missing')
    return { nodes, end: '' }
  }

  #action(action: string): Node {
    const [, kind, rest] = /^(if|range|with)\s+(.+)$/s.exec(action) ?? []
    if (kind !== undefined) return this.#branch(kind, rest!)
    const [, name, operator, pipe] = /^(\$\w+)\s*(:?=)\s*(.+)$/s.exec(action) ?? []
    const value = this.#pipe(pipe ?? action)
    if (operator === undefined) return (scope) => show(value(scope))
    return (scope) => {
      const at = operator === ':=' ? scope : this.#scopeOf(scope, name!)
      at.variables.set(name!, value(scope))
      return ''
    }
  }

  #scopeOf(scope: Scope, variable: string): Scope {
    for (let at: Scope | undefined = scope; at; at = at.outer) if (at.variables.has(variable)) return at
    throw this.#bad(`there is no variable ${variable}`)
  }

  #branch(kind: string, head: string): Node {
    const [, first, second, pipe] =
      /^(\$\w+)\s*(?:,\s*(\$\w+)\s*)?:=\s*(.+)$/s.exec(head) ?? ([] as readonly undefined[])
    const value = this.#pipe(pipe ?? head)
    this.#at++
    const isOther = kind !== 'if'
    if (isOther) this.#depth++
    const { nodes: body, end } = this.#block(['end', 'else'])
    if (isOther) this.#depth--
    let otherwise: readonly Node[] = []
    const [, chained, condition] = /^else\s+(if|with)\s+(.+)$/s.exec(end) ?? []
    if (chained !== undefined) otherwise = [this.#branch(chained, condition!)]
    else if (end.startsWith('else')) {
      this.#at++
      otherwise = this.#block(['end']).nodes
    }
    return (scope) => {
      const found = value(scope)
      const inner = (dot: unknown, ...named: readonly unknown[]): string => {
        const variables = new Map<string, unknown>()
        if (first !== undefined) variables.set(first, named[0])
        if (second !== undefined) variables.set(second, named[1])
        return render(body, { dot, root: scope.root, variables, outer: scope })
      }
      if (!truth(found)) return render(otherwise, scope)
      if (kind !== 'range') return inner(kind === 'with' ? found : scope.dot, found)
      return listOf(found)
        .map(([key, each]) => (second === undefined ? inner(each, each) : inner(each, key, each)))
        .join('')
    }
  }

  /** `A | f B`: what is on the left is the last argument of what is on the right. */
  #pipe(text: string): Expression {
    const tokens = text.match(TOKEN) ?? []
    let at = 0
    const isEnd = (): boolean => at >= tokens.length || tokens[at] === '|' || tokens[at] === ')'
    const operand = (): Expression => {
      const token = tokens[at++]
      if (token === undefined) throw this.#bad('a value is missing')
      if (token === '(') {
        const inner = whole()
        if (tokens[at++] !== ')') throw this.#bad('a ) is missing')
        const names = /^(?:\.[A-Za-z_]\w*)+$/.test(tokens[at] ?? '') ? namesOf(tokens[at++]!) : []
        return (scope) => names.reduce(field, inner(scope))
      }
      return this.#plain(token)
    }
    const command = (before?: Expression): Expression => {
      const name = tokens[at] ?? ''
      const call = Object.hasOwn(FUNCTIONS, name) ? FUNCTIONS[name] : undefined
      const value = call === undefined ? operand() : (at++, undefined)
      const given: Expression[] = []
      while (!isEnd()) given.push(operand())
      if (before) given.push(before)
      if (value === undefined) return (scope) => call!(...given.map((each) => each(scope)))
      if (given.length === 0) return value
      // A method, such as `.Label "key"` of a list's lines.
      return (scope) => {
        const method = value(scope)
        if (typeof method !== 'function') throw this.#bad(`'${name}' is no function`)
        return (method as (...values: unknown[]) => unknown)(...given.map((each) => each(scope)))
      }
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
    if (at < tokens.length) throw this.#bad(`'${tokens[at]}' is not understood`)
    return value
  }

  /** A constant, a variable or a field. */
  #plain(token: string): Expression {
    const constant =
      (value: unknown): Expression =>
      () =>
        value
    if (token.startsWith('"')) return constant(this.#unquote(token))
    if (token.startsWith('`')) return constant(token.slice(1, -1))
    if (/^-?\d+(\.\d+)?$/.test(token)) return constant(Number(token))
    if (token === 'true' || token === 'false') return constant(token === 'true')
    if (token === 'nil') return constant(undefined)
    const [, start, path] = /^(\$\w*)?((?:\.[A-Za-z_]\w*)*|\.)$/.exec(token) ?? []
    if (path === undefined) throw this.#bad(`'${token}' is not understood`)
    const names = namesOf(path)
    if (names.length > 0 && (start === '$' || (start === undefined && this.#depth === 0)))
      this.#isField(names[0]!)
    return (scope) => {
      if (start === undefined) return names.reduce(field, scope.dot)
      if (start === '$') return names.reduce(field, scope.root)
      return names.reduce(field, this.#scopeOf(scope, start).variables.get(start))
    }
  }

  #unquote(token: string): unknown {
    try {
      return JSON.parse(token.replace(/\t/g, '\\t').replace(/\n/g, '\\n'))
    } catch {
      throw this.#bad(`${token} is no text`)
    }
  }
}

const namesOf = (path: string): string[] => path.split('.').filter((name) => name !== '')

/**
 * What `--format` of a command that shows one thing says.
 * @returns undefined where it is not given, or `json`
 * @throws CoracleError USAGE
 */
export const templateOf = (format: string | undefined): Template | undefined =>
  format === undefined || format === 'json' ? undefined : parseTemplate(format)
