import { mkdirSync, readFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { CoracleError } from '../errors.js'
import { replaceFile } from '../durable.js'
import type { Endpoint } from './endpoint.js'

/** The context of whoever chose none: this host's daemon, or the command itself. */
export const DEFAULT_CONTEXT = 'default'

/** An engine by a name, with all that is needed to reach it. */
export interface Context extends Endpoint {
  readonly description?: string
}

interface File {
  readonly current: string
  readonly contexts: Readonly<Record<string, Context>>
}

const path = (): string =>
  join(process.env['XDG_CONFIG_HOME'] || join(homedir(), '.config'), 'coracle', 'contexts.json')

function read(): File {
  let text
  try {
    text = readFileSync(path(), 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { current: DEFAULT_CONTEXT, contexts: {} }
    throw new CoracleError('USAGE', `cannot read the contexts: ${(error as Error).message}`)
  }
  try {
    return JSON.parse(text) as File
  } catch {
    throw new CoracleError('USAGE', `${path()} is not JSON: mend it, or remove it to be without contexts`)
  }
}

/** Keys of clients are among it: for its owner alone. */
function write(file: File): void {
  mkdirSync(dirname(path()), { recursive: true, mode: 0o700 })
  replaceFile(path(), `${JSON.stringify(file, undefined, 2)}\n`)
}

/** The name of the context in use, by whoever says so first. */
export function currentContext(): string {
  return process.env['DOCKER_CONTEXT'] || read().current
}

/** All of them by name; the default has no endpoint. */
export function listContexts(): readonly { readonly name: string; readonly context: Context | undefined }[] {
  const named = Object.entries(read().contexts).map(([name, context]) => ({ name, context }))
  return [{ name: DEFAULT_CONTEXT, context: undefined }, ...named]
}

/** @returns undefined for the default @throws CoracleError NOT_FOUND */
export function findContext(name: string): Context | undefined {
  const found = listContexts().find((each) => each.name === name)
  if (!found)
    throw new CoracleError('NOT_FOUND', `there is no context '${name}': 'coracle context ls' lists them`)
  return found.context
}

/** @throws CoracleError CONFLICT, USAGE */
export function createContext(name: string, context: Context): void {
  if (!/^[a-zA-Z0-9][a-zA-Z0-9_.+-]*$/.test(name))
    throw new CoracleError('USAGE', `'${name}' is no name of a context: letters, digits and _.+- are`)
  const file = read()
  if (name === DEFAULT_CONTEXT || Object.hasOwn(file.contexts, name))
    throw new CoracleError('CONFLICT', `there is a context '${name}' already`)
  write({ ...file, contexts: { ...file.contexts, [name]: context } })
}

/** Changes what is given. @throws CoracleError NOT_FOUND, CONFLICT for the default */
export function updateContext(name: string, changes: Partial<Context>): void {
  const context = findContext(name)
  if (!context) throw new CoracleError('CONFLICT', 'the default context stays as it is')
  // Another host has TLS of its own, or none.
  const { tls: _old, ...rest } = context
  const file = read()
  const changed = { ...(changes.host === undefined ? context : rest), ...changes } as Context
  write({ ...file, contexts: { ...file.contexts, [name]: changed } })
}

/** Makes it the one in use from now on. @throws CoracleError NOT_FOUND */
export function useContext(name: string): void {
  findContext(name)
  write({ ...read(), current: name })
}

/**
 * @param force also the one in use: the default is then
 * @throws CoracleError NOT_FOUND, CONFLICT for the one in use
 */
export function removeContext(name: string, force: boolean): void {
  if (!findContext(name)) throw new CoracleError('CONFLICT', 'the default context stays')
  const file = read()
  const isCurrent = file.current === name
  if (isCurrent && !force)
    throw new CoracleError('CONFLICT', `the context '${name}' is in use: 'coracle context use default' first`)
  const { [name]: _gone, ...contexts } = file.contexts
  write({ current: isCurrent ? DEFAULT_CONTEXT : file.current, contexts })
}
