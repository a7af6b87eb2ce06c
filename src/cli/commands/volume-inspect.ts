import { CoracleError } from '../../errors.js'
import { volumePath } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'volume inspect VOLUME...',
  summary: 'Shows all about volumes, as JSON.',
  options: (yargs) => yargs,
  examples: [['volume inspect data', 'where it is on the host, its labels']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, async (client) => {
    const found: unknown[] = []
    let status = 0
    for (const name of options._)
      try {
        found.push(await client.json('GET', volumePath(name)))
      } catch (error) {
        if (!(error instanceof CoracleError && error.status === 404)) throw error
        process.stderr.write(`coracle: ${error.message}\n`)
        status = 1
      }
    process.stdout.write(`${JSON.stringify(found, undefined, 4)}\n`)
    return status
  })
}
