import { createInterface } from 'node:readline'
import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { filterOption, filterQuery } from '../filter.js'
import { templateOf } from '../template.js'

const help = {
  usage: 'events [OPTIONS]',
  summary: 'Shows what happens in the engine, as it happens, until Ctrl-C.',
  options: (yargs) =>
    yargs
      .option('filter', {
        alias: 'f',
        ...filterOption('NAME=VALUE: container, image, network, volume, event, type, label'),
      })
      .option('since', { type: 'string', requiresArg: true, describe: 'From then on, such as 10m' })
      .option('until', { type: 'string', requiresArg: true, describe: 'Up to then' })
      .option('format', {
        type: 'string',
        requiresArg: true,
        describe: 'A Go template, or json: an object a line',
      }),
  examples: [
    ['events -f event=die', 'which containers end'],
    ['events --since 1h --until 0s', 'the last hour'],
  ],
  words: [0, 0],
} satisfies CommandHelp<unknown>

interface Event {
  readonly Type: string
  readonly Action: string
  readonly Actor: { readonly ID: string; readonly Attributes: Readonly<Record<string, string>> }
  readonly timeNano: number
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const { format } = options
  const template = templateOf(format)
  return withClient(invocation, async (client) => {
    const answer = await client.stream('GET', '/events', {
      query: { since: options.since, until: options.until, filters: filterQuery(listOf(options.filter)) },
    })
    for await (const line of createInterface({ input: answer })) {
      const event = JSON.parse(line) as Event
      process.stdout.write(`${template ? template(event) : format === 'json' ? line : describe(event)}\n`)
    }
    return 0
  })
}

function describe({ Type, Action, Actor, timeNano }: Event): string {
  const attributes = Object.entries(Actor.Attributes).map(([name, value]) => `${name}=${value}`)
  const time = new Date(timeNano / 1e6).toISOString()
  return `${time} ${Type} ${Action} ${Actor.ID}${attributes.length > 0 ? ` (${attributes.join(', ')})` : ''}`
}
