import { CoracleError } from '../../errors.js'
import type { MachineDescription } from '../../vmm/description.js'
import { containerPath, imagePath, networkPath, volumePath, type Client } from '../client.js'
import { choose } from '../container-options.js'
import { machineText } from '../machine-text.js'
import { PLATFORM, platformQuery } from '../platform.js'
import { showEach } from '../inspect-each.js'
import { templateOf } from '../template.js'
import { parseOptions, withClient, type Command, type CommandHelp } from '../command.js'

/** What can be inspected, in the order in which names are looked for. */
const PATHS = {
  container: (name: string) => containerPath(name, 'json'),
  image: (name: string) => imagePath(name, 'json'),
  network: networkPath,
  volume: volumePath,
}
type Kind = keyof typeof PATHS

const help = {
  usage: 'inspect [OPTIONS] NAME...',
  summary: 'Shows all about containers, images, networks or volumes, as JSON.',
  options: (yargs) =>
    yargs
      .option('machine', {
        type: 'boolean',
        describe: "A container's virtual machine: memory map, PCI devices, queues",
      })
      .option('size', { alias: 's', type: 'boolean', describe: "With a container's SizeRw and SizeRootFs" })
      .option('type', {
        type: 'string',
        requiresArg: true,
        describe: 'container, image, network or volume; else the first that has the name',
      })
      .option('platform', { ...PLATFORM, describe: `Of images: ${PLATFORM.describe}` })
      .option('format', {
        alias: 'f',
        type: 'string',
        requiresArg: true,
        describe: 'A Go template for each, or json; with --machine text, for people, or json',
      }),
  examples: [
    ['inspect web', 'its state, its settings'],
    ["inspect -f '{{.State.Status}} {{json .Config.Labels}}' web", 'a part of it'],
    ['inspect --machine web', 'what its virtual machine is made of'],
    ['inspect --machine --format json web', 'the same for a program'],
  ],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

/** @param only the kind that a group's `inspect` is for */
const command = (only?: Kind): Command => ({
  run: async ({ words, endpoint }) => {
    const options = await parseOptions(words, only ? { ...help, usage: `${only} ${help.usage}` } : help)
    if (!options) return 0
    const { format, size = false } = options
    const wanted = choose('--type', options.type, only ? [only] : Object.keys(PATHS)) ?? only
    const kinds = (Object.keys(PATHS) as Kind[]).filter((kind) => wanted === undefined || kind === wanted)
    if (options.machine && format !== undefined && format !== 'text' && format !== 'json')
      throw new CoracleError('USAGE', `--machine has --format text and json, not '${format}'`)
    // A bad one is told before anything is asked.
    if (!options.machine) templateOf(format)
    const platform = platformQuery(options.platform)
    return withClient({ words, endpoint }, async (client) => {
      if (options.machine) return inspectMachines(client, options._, format === 'json')
      const found = []
      let status = 0
      for (const name of options._) {
        const one = await inspect(client, name, kinds, { size, platform })
        if (one !== undefined) found.push(one)
        else {
          const what = wanted ?? 'container, image, network or volume'
          process.stderr.write(`coracle: no ${what} is called ${name}\n`)
          status = 1
        }
      }
      showEach(found, format)
      return status
    })
  },
})

export const { run } = command()
export const container = command('container')
export const image = command('image')

interface Asked {
  readonly size: boolean
  readonly platform: string | undefined
}

async function inspect(
  client: Client,
  name: string,
  kinds: readonly Kind[],
  { size, platform }: Asked,
): Promise<unknown> {
  for (const kind of kinds) {
    // Each has its own: a network of that name is no image of that platform.
    const query = { container: { size: size ? 1 : undefined }, image: { platform }, network: {}, volume: {} }
    try {
      const found = await client.json('GET', PATHS[kind](name), { query: query[kind] })
      if (size && kind !== 'container')
        process.stderr.write(`coracle: --size is of containers: ${name} is none\n`)
      return found
    } catch (error) {
      if (!(error instanceof CoracleError && error.status === 404)) throw error
      // It is there, and not for that platform.
      if (kind === 'image' && platform !== undefined && /platform/.test(error.message)) throw error
    }
  }
  return undefined
}

async function inspectMachines(client: Client, names: readonly string[], json: boolean): Promise<number> {
  const found: MachineDescription[] = []
  for (const name of names)
    found.push(await client.json<MachineDescription>('GET', containerPath(name, 'machine')))
  if (json) process.stdout.write(`${JSON.stringify(found, undefined, 4)}\n`)
  else process.stdout.write(found.map(machineText).join('\n'))
  return 0
}
