import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { filterQuery } from '../filter.js'
import { ago } from '../time.js'
import { table } from '../table.js'

const help = {
  usage: 'ps [OPTIONS]',
  summary: 'Lists containers.',
  options: (yargs) =>
    yargs
      .option('all', { alias: 'a', type: 'boolean', describe: 'Those that do not run too' })
      .option('filter', {
        alias: 'f',
        type: 'string',
        array: true,
        requiresArg: true,
        describe: 'NAME=VALUE: status, health, name, label, ancestor, network, …',
      })
      .option('quiet', { alias: 'q', type: 'boolean', describe: 'Only ids' })
      .option('no-trunc', { type: 'boolean', describe: 'Show everything in full' }),
  examples: [
    ['ps -aq', 'the ids of all'],
    ['ps -f health=unhealthy', 'those whose health check fails'],
  ],
  words: [0, 0],
} satisfies CommandHelp<unknown>

interface Summary {
  readonly Id: string
  readonly Names: readonly string[]
  readonly Image: string
  readonly Command: string
  readonly Created: number
  readonly Status: string
  readonly Ports: readonly Port[]
}

interface Port {
  readonly IP?: string
  readonly PrivatePort: number
  readonly PublicPort?: number
  readonly Type: string
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const cut = (text: string, length: number): string =>
    options['no-trunc'] || text.length <= length ? text : `${text.slice(0, length - 1)}…`
  return withClient(invocation, async (client) => {
    const all = await client.json<Summary[]>('GET', '/containers/json', {
      query: { all: options.all ? 1 : 0, filters: filterQuery(listOf(options.filter)) },
    })
    const id = (each: Summary): string => (options['no-trunc'] ? each.Id : each.Id.slice(0, 12))
    if (options.quiet) process.stdout.write(all.map((each) => `${id(each)}\n`).join(''))
    else
      process.stdout.write(
        table([
          ['CONTAINER ID', 'IMAGE', 'COMMAND', 'CREATED', 'STATUS', 'PORTS', 'NAMES'],
          ...all.map((each) => [
            id(each),
            each.Image,
            JSON.stringify(cut(each.Command, 20)),
            `${ago(each.Created)} ago`,
            each.Status,
            each.Ports.map(portOf).join(', '),
            each.Names.map((name) => name.replace(/^\//, '')).join(','),
          ]),
        ]),
      )
    return 0
  })
}

/** As Docker shows it: `0.0.0.0:8080->80/tcp`, or `80/tcp` where it is not published. */
function portOf({ IP = '', PrivatePort, PublicPort, Type }: Port): string {
  if (PublicPort === undefined) return `${PrivatePort}/${Type}`
  return `${IP.includes(':') ? `[${IP}]` : IP}:${PublicPort}->${PrivatePort}/${Type}`
}
