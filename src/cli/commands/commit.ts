import { familiarName, parseReference } from '../../image/reference.js'
import { parseOptions, listOf, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'commit [OPTIONS] CONTAINER [NAME[:TAG]]',
  summary: 'Makes an image of what a container changed.',
  options: (yargs) =>
    yargs
      .option('message', { alias: 'm', type: 'string', requiresArg: true, describe: 'What it is' })
      .option('author', { alias: 'a', type: 'string', requiresArg: true, describe: 'Who made it' })
      .option('change', {
        alias: 'c',
        type: 'string',
        array: true,
        requiresArg: true,
        describe: 'An instruction such as \'CMD ["httpd"]\'',
      }),
  examples: [['commit -m "with curl" box tools:2', 'a name for the image']],
  words: [1, 2],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const [container, name] = options._
  const reference = name === undefined ? undefined : parseReference(name)
  return withClient(invocation, async (client) => {
    const { Id } = await client.json<{ Id: string }>('POST', '/commit', {
      query: {
        container,
        repo: reference && familiarName(reference.repository),
        tag: reference?.tag,
        comment: options.message,
        author: options.author,
        changes: listOf(options.change).join('\n') || undefined,
      },
    })
    process.stdout.write(`${Id}\n`)
    return 0
  })
}
