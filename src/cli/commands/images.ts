import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { showSize } from '../size.js'
import { table } from '../table.js'
import { ago } from '../time.js'

const help = {
  usage: 'images [OPTIONS]',
  summary: 'Lists images.',
  options: (yargs) => yargs.option('quiet', { alias: 'q', type: 'boolean', describe: 'Only ids' }),
  examples: [['images -q', 'the ids of all']],
  words: [0, 0],
} satisfies CommandHelp<unknown>

interface Summary {
  readonly Id: string
  readonly RepoTags: readonly string[] | null
  readonly Created: number
  readonly Size: number
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, async (client) => {
    const images = await client.json<Summary[]>('GET', '/images/json')
    const id = (image: Summary): string => image.Id.replace('sha256:', '').slice(0, 12)
    if (options.quiet) process.stdout.write(images.map((image) => `${id(image)}\n`).join(''))
    else
      process.stdout.write(
        table([
          ['REPOSITORY', 'TAG', 'IMAGE ID', 'CREATED', 'SIZE'],
          ...images.flatMap((image) =>
            (image.RepoTags?.length ? image.RepoTags : ['<none>:<none>']).map((name) => {
              const at = name.lastIndexOf(':')
              return [
                name.slice(0, at),
                name.slice(at + 1),
                id(image),
                `${ago(image.Created)} ago`,
                showSize(image.Size),
              ]
            }),
          ),
        ]),
      )
    return 0
  })
}
