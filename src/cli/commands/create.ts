import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import {
  CONTAINER_REFUSED,
  containerOptions,
  createBody,
  NO_STREAMS,
  streamsOf,
} from '../container-options.js'
import { create, mannerOf } from './run.js'

const help = {
  usage: 'create [OPTIONS] IMAGE [COMMAND] [ARGUMENT...]',
  summary: 'Creates a container, to be started later.',
  options: containerOptions,
  examples: [['create --name job busybox true', 'then: coracle start job']],
  words: [0, Infinity],
  halt: true,
  refused: CONTAINER_REFUSED,
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const manner = mannerOf(options)
  const body = createBody(options, options._, options.attach ? streamsOf(options) : NO_STREAMS)
  return withClient(invocation, async (client) => {
    process.stdout.write(`${await create(client, body, manner)}\n`)
    return 0
  })
}
