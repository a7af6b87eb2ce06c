import { createInterface } from 'node:readline/promises'
import { CoracleError } from '../errors.js'

/**
 * Asks before something is removed.
 * @param warning one sentence
 * @throws CoracleError USAGE where nobody can be asked
 */
export async function confirm(warning: string): Promise<boolean> {
  if (!process.stdin.isTTY)
    throw new CoracleError('USAGE', `${warning} Say --force: there is no terminal to ask on.`)
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  try {
    return /^y(es)?$/i.test((await terminal.question(`${warning} Go on? [y/N] `)).trim())
  } finally {
    terminal.close()
  }
}
