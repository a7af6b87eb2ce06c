import { networkPath } from '../client.js'
import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { pairOf } from '../pair.js'
import { ipam } from '../network-options.js'

const help = {
  usage: 'network connect [OPTIONS] NETWORK CONTAINER',
  summary: 'Puts a container on a further network, at once where it runs.',
  options: (yargs) =>
    yargs
      .option('alias', {
        type: 'string',
        array: true,
        requiresArg: true,
        describe: 'A further name on the network',
      })
      .option('ip', { type: 'string', requiresArg: true, describe: 'IPv4 address' })
      .option('ip6', { type: 'string', requiresArg: true, describe: 'IPv6 address' })
      .option('driver-opt', {
        type: 'string',
        array: true,
        requiresArg: true,
        describe: 'KEY=VALUE for the driver: kept, and shown by inspect',
      }),
  examples: [['network connect --alias db back postgres', 'it answers to db there']],
  words: [2, 2],
  refused: {
    'gw-priority': 'the way out is by the first network that has one',
    link: 'give the other container an --alias on that network',
    'link-local-ip': 'addresses are given by --ip and --ip6',
  },
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const [network = '', container] = options._
  const aliases = listOf(options.alias)
  return withClient(invocation, async (client) => {
    const EndpointConfig = {
      ...(aliases.length > 0 ? { Aliases: aliases } : {}),
      ...ipam(options.ip, options.ip6),
      DriverOpts: Object.fromEntries(listOf(options['driver-opt']).map(pairOf)),
    }
    await client.json('POST', networkPath(network, 'connect'), {
      body: { Container: container, EndpointConfig },
    })
    return 0
  })
}
