import { CoracleError } from '../errors.js'
import { type CommandHelp, type Invocation, parseOptions, withClient } from './command.js'

/** A command that shows things as JSON, and names on stderr those that are not there. @param path of one in the API */
export const inspectEach =
  (help: CommandHelp<unknown>, path: (name: string) => string) =>
  async (invocation: Invocation): Promise<number> => {
    const options = await parseOptions(invocation.words, help)
    if (!options) return 0
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
      process.stdout.write(`${JSON.stringify(found, undefined, 4)}\n`)
      return status
    })
  }
