import type { Argv } from 'yargs'
import { CoracleError } from '../errors.js'
import type { Command, CommandHelp } from './command.js'
import { parseOptions, withClient } from './command.js'
import { templateOf } from './template.js'

/** A command that shows things as JSON, or by a template, and names on stderr those that are not there. */
export const inspectEach =
  (
    help: Omit<CommandHelp<unknown>, 'options' | 'words'>,
    /** Of one in the API. */
    path: (name: string) => string,
    /** An option more, without effect. */
    more: (yargs: Argv) => Argv = (yargs) => yargs,
  ): Command['run'] =>
  async (invocation) => {
    const options = await parseOptions(invocation.words, {
      ...help,
      words: [1, Infinity],
      options: (yargs) =>
        more(yargs).option('format', {
          alias: 'f',
          type: 'string',
          requiresArg: true,
          describe: 'A Go template for each, or json',
        }),
    })
    if (!options) return 0
    const { format } = options
    templateOf(format)
    return withClient(invocation, async (client) => {
      const found: unknown[] = []
      let status = 0
      for (const name of options._)
        try {
          found.push(await client.json('GET', path(name)))
        } catch (error) {
          if (!(error instanceof CoracleError && error.status === 404)) throw error
          process.stderr.write(`coracle: ${error.message}\n`)
          status = 1
        }
      showEach(found, format)
      return status
    })
  }

/** Prints things as JSON, or each by a template. @throws CoracleError USAGE */
export function showEach(found: readonly unknown[], format: string | undefined): void {
  const template = templateOf(format)
  process.stdout.write(
    template
      ? found.map((each) => `${template(each)}\n`).join('')
      : `${JSON.stringify(found, undefined, format === 'json' ? undefined : 4)}\n`,
  )
}
