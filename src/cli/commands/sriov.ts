import { CoracleError } from '../../errors.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { table } from '../table.js'

const help = {
  usage: 'sriov ls | create ADAPTER N | delete ADAPTER',
  summary:
    'Divides network adapters of the host: lists them and their virtual functions, makes N of these, takes them away.\n' +
    'An ADAPTER is named by its interface or its PCI address. A container gets a function with run --device.',
  options: (yargs) => yargs.option('json', { type: 'boolean', describe: 'For programs (ls)' }),
  examples: [
    ['sriov ls', 'adapters with SR-IOV, their functions, and who has them'],
    ['sriov create eth0 4', 'make four virtual functions of eth0'],
    ['run --device sriov=eth0,ip=10.0.0.2/24 busybox ip address', 'a container with one of them'],
    ['sriov delete eth0', 'take them away, once no container has one'],
  ],
  words: [1, 3],
} satisfies CommandHelp<unknown>

interface AdapterShape {
  readonly Interface: string
  readonly Address: string
  readonly Driver: string
  readonly Total: number
  readonly Functions: readonly {
    readonly Address: string
    readonly Driver: string
    readonly Group: number | null
    readonly Container: string
  }[]
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const [verb, adapter = '', count, ...more] = options._
  const usage = (): never => {
    throw new CoracleError('USAGE', `usage: coracle ${help.usage}. See 'coracle sriov --help'.`)
  }
  const path = `/coracle/sriov/${encodeURIComponent(adapter)}`
  return withClient(invocation, async (client) => {
    if (verb === 'ls' && adapter === '') {
      const adapters = await client.json<AdapterShape[]>('GET', '/coracle/sriov')
      process.stdout.write(options.json ? `${JSON.stringify(adapters, undefined, 2)}\n` : show(adapters))
    } else if (verb === 'create' && count !== undefined && more.length === 0) {
      if (!/^\d{1,5}$/.test(count)) throw new CoracleError('USAGE', `'${count}' is no number of functions`)
      process.stdout.write(show([await client.json<AdapterShape>('POST', path, { query: { count } })]))
    } else if (verb === 'delete' && adapter !== '' && count === undefined) await client.json('DELETE', path)
    else usage()
    return 0
  })
}

function show(adapters: readonly AdapterShape[]): string {
  return table([
    ['ADAPTER', 'FUNCTION', 'DRIVER', 'GROUP', 'CONTAINER'],
    ...adapters.flatMap(({ Interface, Address, Driver, Total, Functions }) => [
      [Interface || '-', Address, Driver || '-', '', `${Functions.length} of ${Total} functions`],
      ...Functions.map((each) => [
        '',
        each.Address,
        each.Driver || '-',
        `${each.Group ?? '-'}`,
        each.Container,
      ]),
    ]),
  ])
}
