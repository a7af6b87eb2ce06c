import { familiarName, parseReference } from '../../image/reference.js'
import { imagePath } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'tag IMAGE NAME[:TAG]',
  summary: 'Gives an image a further name. The name leaves the image that had it.',
  options: (yargs) => yargs,
  examples: [['tag app registry.example:5000/team/app:1', 'a name under which it can be pushed']],
  words: [2, 2],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const [image, name] = options._ as readonly [string, string]
  const { repository, tag } = parseReference(name)
  return withClient(invocation, async (client) => {
    await client.json('POST', imagePath(image, 'tag'), { query: { repo: familiarName(repository), tag } })
    return 0
  })
}
