import { CoracleError } from '../../errors.js'
import { containerPath, imagePath, type Client } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'inspect NAME...',
  summary: 'Shows all about containers or images, as JSON.',
  options: (yargs) => yargs,
  examples: [['inspect web', 'its state, its settings']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, async (client) => {
    const found = []
    let status = 0
    for (const name of options._) {
      const one = await inspect(client, name)
      if (one !== undefined) found.push(one)
      else {
        process.stderr.write(`coracle: no container or image is called ${name}\n`)
        status = 1
      }
    }
    process.stdout.write(`${JSON.stringify(found, undefined, 4)}\n`)
    return status
  })
}

async function inspect(client: Client, name: string): Promise<unknown> {
  for (const path of [containerPath(name, 'json'), imagePath(name, 'json')]) {
    try {
      return await client.json('GET', path)
    } catch (error) {
      if (!(error instanceof CoracleError && error.status === 404)) throw error
    }
  }
  return undefined
}
