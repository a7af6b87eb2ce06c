import { CoracleError } from '../../errors.js'
import type { MachineDescription } from '../../vmm/description.js'
import { containerPath, imagePath, type Client } from '../client.js'
import { choose } from '../container-options.js'
import { machineText } from '../machine-text.js'
import { templateOf } from '../template.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'inspect [OPTIONS] NAME...',
  summary: 'Shows all about containers or images, as JSON.',
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
        describe: 'container or image; else whichever it is',
      })
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

const PATHS = { container: containerPath, image: imagePath }

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const { format, type } = options
  choose('--type', type, Object.keys(PATHS))
  const paths = Object.entries(PATHS).flatMap(([kind, path]) =>
    type === undefined || type === kind ? [path] : [],
  )
  if (options.machine && format !== undefined && format !== 'text' && format !== 'json')
    throw new CoracleError('USAGE', `--machine has --format text and json, not '${format}'`)
  const template = templateOf(format)
  return withClient(invocation, async (client) => {
    if (options.machine) return inspectMachines(client, options._, format === 'json')
    const found = []
    let status = 0
    for (const name of options._) {
      const one = await inspect(client, name, paths, options.size ?? false)
      if (one !== undefined) found.push(one)
      else {
        process.stderr.write(`coracle: no ${type ?? 'container or image'} is called ${name}\n`)
        status = 1
      }
    }
    process.stdout.write(
      template
        ? found.map((each) => `${template(each)}\n`).join('')
        : `${JSON.stringify(found, undefined, format === 'json' ? undefined : 4)}\n`,
    )
    return status
  })
}

async function inspect(
  client: Client,
  name: string,
  paths: readonly ((name: string, verb: string) => string)[],
  size: boolean,
): Promise<unknown> {
  for (const path of paths) {
    try {
      return await client.json('GET', path(name, 'json'), { query: { size: size ? 1 : undefined } })
    } catch (error) {
      if (!(error instanceof CoracleError && error.status === 404)) throw error
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
