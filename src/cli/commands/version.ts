import { API_VERSION } from '../../api/router.js'
import { VERSION } from '../../api/version.js'
import { templateOf } from '../template.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'version [OPTIONS]',
  summary: 'Shows the versions of this command and of the engine.',
  options: (yargs) =>
    yargs.option('format', {
      alias: 'f',
      type: 'string',
      requiresArg: true,
      describe: "json, or a Go template such as '{{.Server.Version}}'",
    }),
  examples: [['version', '']],
  words: [0, 0],
} satisfies CommandHelp<unknown>

interface Answer {
  readonly Version: string
  readonly ApiVersion: string
  readonly KernelVersion: string
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, async (client) => {
    const { format } = options
    const template = templateOf(format)
    const engine = await client.json<Answer>('GET', '/version')
    const both = { Client: { Version: VERSION, ApiVersion: API_VERSION }, Server: engine }
    if (format !== undefined) {
      process.stdout.write(`${template ? template(both) : JSON.stringify(both)}\n`)
      return 0
    }
    process.stdout.write(
      `coracle ${VERSION} (API ${API_VERSION}, Node.js ${process.version})\n` +
        `engine  ${engine.Version} (API ${engine.ApiVersion}, Linux ${engine.KernelVersion})\n`,
    )
    return 0
  })
}
