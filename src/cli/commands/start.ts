import { CoracleError } from '../../errors.js'
import { containerPath, type Client } from '../client.js'
import { forEach, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import type { Streams } from '../container-options.js'
import { DETACH_KEYS } from '../session.js'
import { detachKeys, runAttached } from './run.js'

const help = {
  usage: 'start [OPTIONS] CONTAINER...',
  summary: 'Starts containers, in the background unless it is said otherwise.',
  options: (yargs) =>
    yargs
      .option('attach', { alias: 'a', type: 'boolean', describe: 'Show its output, and end as it does' })
      .option('interactive', { alias: 'i', type: 'boolean', describe: 'Pass stdin on to it, too' })
      .option('detach-keys', DETACH_KEYS),
  examples: [
    ['start job', 'start a container that was created or has ended'],
    ['start -ai shell', 'and go on in its terminal'],
  ],
  words: [1, Infinity],
  refused: {
    checkpoint: "'coracle run --from SNAPSHOT' goes on from where a container was",
    'checkpoint-dir': "snapshots are in the engine's own folder",
  },
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const { attach = false, interactive = false, _: names } = options
  const keys = detachKeys(options['detach-keys'])
  return withClient(invocation, async (client) => {
    if (attach || interactive) {
      if (names.length > 1) throw new CoracleError('USAGE', 'one container is attached at a time: name one')
      const [name = ''] = names
      return runAttached(client, name, {
        ...(await terminalOf(client, name, interactive)),
        keys,
        proxy: true,
        existing: 'to start',
      })
    }
    return forEach(names, async (name) => {
      await client.json('POST', containerPath(name, 'start'))
      return name
    })
  })
}

/** How an existing container is attached. @throws CoracleError NO_SUCH_CONTAINER */
export async function terminalOf(
  client: Client,
  name: string,
  interactive: boolean,
): Promise<{ tty: boolean; streams: Streams; autoRemove: false }> {
  const { Config } = await client.json<{ Config: { Tty: boolean; OpenStdin: boolean } }>(
    'GET',
    containerPath(name, 'json'),
  )
  const streams = { stdin: interactive && Config.OpenStdin, stdout: true, stderr: true }
  return { tty: Config.Tty, streams, autoRemove: false }
}
