import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { newImageOptions, newImageQuery } from '../new-image.js'

const help = {
  usage: 'commit [OPTIONS] CONTAINER [NAME[:TAG]]',
  summary: 'Makes an image of what a container changed.',
  options: (yargs) =>
    newImageOptions(yargs)
      .option('author', {
        alias: 'a',
        type: 'string',
        requiresArg: true,
        describe: 'Who made it',
      })
      .option('pause', {
        alias: 'p',
        type: 'boolean',
        default: true,
        describe: 'Let it stand still while its files are read (--pause=false: not)',
      }),
  examples: [['commit -m "with curl" box tools:2', 'a name for the image']],
  words: [1, 2],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const [container, name] = options._
  return withClient(invocation, async (client) => {
    const { Id } = await client.json<{ Id: string }>('POST', '/commit', {
      query: {
        container,
        comment: options.message,
        author: options.author,
        pause: options.pause ? undefined : '0',
        ...newImageQuery(name, options),
      },
    })
    process.stdout.write(`${Id}\n`)
    return 0
  })
}
