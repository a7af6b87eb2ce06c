import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { DETACH_KEYS } from '../session.js'
import { detachKeys, runAttached, SIG_PROXY } from './run.js'
import { terminalOf } from './start.js'

const help = {
  usage: 'attach [OPTIONS] CONTAINER',
  summary: "Joins a running container's streams; ctrl-p ctrl-q leaves a terminal again.",
  options: (yargs) =>
    yargs
      .option('no-stdin', { type: 'boolean', describe: 'Only its output' })
      .option('detach-keys', DETACH_KEYS)
      .option('sig-proxy', SIG_PROXY),
  examples: [['attach shell', 'its terminal, or its output and input']],
  words: [1, 1],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const [name = ''] = options._
  const keys = detachKeys(options['detach-keys'])
  return withClient(invocation, async (client) =>
    runAttached(client, name, {
      ...(await terminalOf(client, name, options['no-stdin'] !== true)),
      keys,
      proxy: options['sig-proxy'],
      existing: 'running',
    }),
  )
}
