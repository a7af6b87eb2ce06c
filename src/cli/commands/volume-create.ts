import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { pairOf } from '../pair.js'

const help = {
  usage: 'volume create [OPTIONS] [NAME]',
  summary: 'Makes a volume: a folder that outlives containers. One that is there already is left as it is.',
  options: (yargs) =>
    yargs
      .option('driver', {
        alias: 'd',
        type: 'string',
        requiresArg: true,
        describe: 'local: there is no other',
      })
      .option('opt', {
        alias: 'o',
        type: 'string',
        array: true,
        requiresArg: true,
        describe: 'type=none, o=bind, device=PATH: a folder of the host under a name',
      })
      .option('label', { type: 'string', array: true, requiresArg: true, describe: 'KEY=VALUE' }),
  examples: [
    ['volume create data', 'then: coracle run -v data:/var/lib/data …'],
    ['volume create -o type=none -o o=bind -o device=/srv/www www', 'a name for /srv/www'],
  ],
  words: [0, 1],
  refused: Object.fromEntries(
    [
      ...['availability', 'group', 'limit-bytes', 'required-bytes', 'scope', 'secret', 'sharing'],
      ...['topology-preferred', 'topology-required', 'type'],
    ].map((option) => [option, "it is of a swarm's volumes: there are local ones alone"]),
  ),
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const body = {
    Name: options._[0] ?? '',
    Driver: options.driver ?? 'local',
    DriverOpts: Object.fromEntries(listOf(options.opt).map(pairOf)),
    Labels: Object.fromEntries(listOf(options.label).map(pairOf)),
  }
  return withClient(invocation, async (client) => {
    const { Name } = await client.json<{ Name: string }>('POST', '/volumes/create', { body })
    process.stdout.write(`${Name}\n`)
    return 0
  })
}
