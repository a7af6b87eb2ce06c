import { networkPath } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'network disconnect [OPTIONS] NETWORK CONTAINER',
  summary: 'Takes a container off a network, at once where it runs.',
  options: (yargs) =>
    yargs.option('force', { alias: 'f', type: 'boolean', describe: 'Taken, without effect' }),
  examples: [['network disconnect back web', 'it has its other networks still']],
  words: [2, 2],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const [network = '', container] = options._
  return withClient(invocation, async (client) => {
    const body = { Container: container, Force: options.force ?? false }
    await client.json('POST', networkPath(network, 'disconnect'), { body })
    return 0
  })
}
