import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { showBinarySize } from '../size.js'
import { templateOf } from '../template.js'

const help = {
  usage: 'info [OPTIONS]',
  summary: 'Shows what the engine is and has.',
  options: (yargs) =>
    yargs.option('format', {
      alias: 'f',
      type: 'string',
      requiresArg: true,
      describe: 'json, or a Go template',
    }),
  examples: [["info -f '{{.NCPU}} {{.MemTotal}}'", 'processors and bytes of memory']],
  words: [0, 0],
} satisfies CommandHelp<unknown>

interface Info extends Record<string, unknown> {
  readonly MemTotal: number
}

/** What is shown without a format, by the names of the API. */
const LINES = {
  Containers: 'Containers',
  ContainersRunning: ' Running',
  ContainersPaused: ' Paused',
  ContainersStopped: ' Stopped',
  Images: 'Images',
  ServerVersion: 'Server Version',
  Driver: 'Storage Driver',
  LoggingDriver: 'Logging Driver',
  DefaultRuntime: 'Default Runtime',
  KernelVersion: 'Kernel Version',
  Architecture: 'Architecture',
  NCPU: 'CPUs',
  MemTotal: 'Total Memory',
  Name: 'Name',
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const { format } = options
  const template = templateOf(format)
  return withClient(invocation, async (client) => {
    const info = await client.json<Info>('GET', '/info')
    const shown: Record<string, unknown> = { ...info, MemTotal: showBinarySize(info.MemTotal) }
    process.stdout.write(
      format === 'json'
        ? `${JSON.stringify(info)}\n`
        : template
          ? `${template(info)}\n`
          : Object.entries(LINES)
              .map(([name, head]) => `${head}: ${String(shown[name])}\n`)
              .join(''),
    )
    return 0
  })
}
