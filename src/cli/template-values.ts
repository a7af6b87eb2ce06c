import { CoracleError } from '../errors.js'

/* What Go's templates do with values: how they are shown and compared, and the functions of Go's and of Docker's. */

/** Go's names of fields, where those of the API's JSON are written otherwise. */
const JSON_NAMES: Readonly<Record<string, string>> = {
  ID: 'Id',
  APIVersion: 'ApiVersion',
  MinAPIVersion: 'MinApiVersion',
}

/** A field; undefined where there is none. */
export function field(value: unknown, name: string): unknown {
  if (typeof value !== 'object' || value === null) return undefined
  const known = Object.hasOwn(value, name) ? name : JSON_NAMES[name]
  return known !== undefined && Object.hasOwn(value, known)
    ? (value as Record<string, unknown>)[known]
    : undefined
}

/** What `range` goes through: a map in the order of its keys. */
export function listOf(value: unknown): readonly (readonly [key: unknown, value: unknown])[] {
  if (typeof value !== 'object' || value === null) return []
  if (Array.isArray(value)) return value.map((each, index) => [index, each])
  return Object.entries(value).sort(byKey)
}

const byKey = ([a]: readonly [string, unknown], [b]: readonly [string, unknown]): number => (a < b ? -1 : 1)

export function truth(value: unknown): boolean {
  return typeof value === 'object' && value !== null ? Object.keys(value).length > 0 : Boolean(value)
}

/** As Go prints it. */
export function show(value: unknown): string {
  if (value === undefined || value === null) return '<no value>'
  if (Array.isArray(value)) return `[${value.map(show).join(' ')}]`
  if (typeof value !== 'object') return String(value as string | number | boolean)
  const fields = Object.entries(value).sort(byKey)
  return `map[${fields.map(([name, each]) => `${name}:${show(each)}`).join(' ')}]`
}

const wrong = (what: string): CoracleError => new CoracleError('USAGE', `bad --format: ${what}`)

function compare(a: unknown, b: unknown): number {
  if (typeof a === typeof b && (typeof a === 'number' || typeof a === 'string'))
    return a === b ? 0 : a < (b as typeof a) ? -1 : 1
  throw wrong(`${show(a)} and ${show(b)} have no order`)
}

const number = (value: unknown): number => {
  if (typeof value === 'number' && Number.isSafeInteger(value)) return value
  throw wrong(`${show(value)} is no whole number`)
}

const spaces = (count: unknown): string => ' '.repeat(Math.min(Math.max(number(count), 0), 1024))

/** Go's verbs that have a meaning for JSON. */
function printf(format: unknown, ...values: readonly unknown[]): string {
  let at = 0
  return show(format).replace(
    /%([-0]?)(\d{0,3})(?:\.(\d{1,2}))?([a-zA-Z%])/g,
    (_, flag: string, width: string, digits: string | undefined, verb: string) => {
      if (verb === '%') return '%'
      if (at >= values.length) throw wrong(`printf has fewer values than its text '${show(format)}'`)
      const text = showBy(verb, values[at++], digits === undefined ? undefined : Number(digits))
      return flag === '-' ? text.padEnd(Number(width)) : text.padStart(Number(width), flag || ' ')
    },
  )
}

function showBy(verb: string, value: unknown, digits: number | undefined): string {
  if (verb === 'q') return JSON.stringify(show(value))
  if (verb === 'f' && typeof value === 'number') return value.toFixed(digits ?? 6)
  if (verb === 'x' && typeof value === 'number') return value.toString(16)
  if ('svdt'.includes(verb)) return verb === 's' ? show(value).slice(0, digits) : show(value)
  throw wrong(`printf has no %${verb} for ${show(value)}`)
}

/** Go's own functions, and those that Docker adds. */
export const FUNCTIONS: Readonly<Record<string, (...values: readonly unknown[]) => unknown>> = {
  json: (value) => JSON.stringify(value ?? null),
  join: (list, separator) =>
    listOf(list)
      .map(([, each]) => show(each))
      .join(show(separator)),
  split: (text, separator) => show(text).split(show(separator)),
  lower: (text) => show(text).toLowerCase(),
  upper: (text) => show(text).toUpperCase(),
  title: (text) => show(text).replace(/\b\p{L}/gu, (letter) => letter.toUpperCase()),
  pad: (text, before, after) => (text === '' ? '' : `${spaces(before)}${show(text)}${spaces(after)}`),
  truncate: (text, length) => show(text).slice(0, Math.max(number(length), 0)),
  index: (value, ...keys) => keys.reduce((at, key) => item(at, key), value),
  slice: (value, from = 0, to = undefined) => {
    const end = to === undefined ? undefined : number(to)
    return Array.isArray(value) ? value.slice(number(from), end) : show(value).slice(number(from), end)
  },
  len: (value) => (typeof value === 'string' ? Buffer.byteLength(value) : listOf(value).length),
  print: (...values) =>
    values
      .map((each, i) => {
        const apart = i > 0 && typeof each !== 'string' && typeof values[i - 1] !== 'string'
        return `${apart ? ' ' : ''}${show(each)}`
      })
      .join(''),
  println: (...values) => `${values.map(show).join(' ')}\n`,
  printf,
  urlquery: (...values) => encodeURIComponent(values.map(show).join('')),
  eq: (first, ...others) => others.some((other) => first === other),
  ne: (first, second) => first !== second,
  lt: (first, second) => compare(first, second) < 0,
  le: (first, second) => compare(first, second) <= 0,
  gt: (first, second) => compare(first, second) > 0,
  ge: (first, second) => compare(first, second) >= 0,
  and: (...values) => values.at(values.findIndex((value) => !truth(value))),
  or: (...values) => values.find(truth) ?? values.at(-1),
  not: (value) => !truth(value),
}

/** One of a list or a map; of a map what is not there is nothing, as with Go. */
function item(value: unknown, key: unknown): unknown {
  if (!Array.isArray(value)) return value === undefined || value === null ? undefined : own(value, show(key))
  if (number(key) < 0 || number(key) >= value.length)
    throw wrong(`there is no item ${show(key)} of ${value.length}`)
  return value[number(key)] as unknown
}

const own = (value: object, name: string): unknown =>
  Object.hasOwn(value, name) ? (value as Record<string, unknown>)[name] : undefined
