import { CoracleError } from '../../errors.js'
import { containerPath } from '../client.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'port CONTAINER [PORT[/PROTOCOL]]',
  summary: "Shows at which ports of the host a container's ports are reached.",
  options: (yargs) => yargs,
  examples: [
    ['port web', 'all of them'],
    ['port web 80', 'where port 80 is'],
  ],
  words: [1, 2],
} satisfies CommandHelp<unknown>

interface Inspected {
  readonly NetworkSettings: {
    readonly Ports: Readonly<Record<string, readonly { HostIp: string; HostPort: string }[] | null>>
  }
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const [name = '', wanted] = options._
  return withClient(invocation, async (client) => {
    const { NetworkSettings } = await client.json<Inspected>('GET', containerPath(name, 'json'))
    const { Ports } = NetworkSettings
    const at = ({ HostIp, HostPort }: { HostIp: string; HostPort: string }): string =>
      `${HostIp.includes(':') ? `[${HostIp}]` : HostIp}:${HostPort}`
    if (wanted !== undefined) {
      const port = wanted.includes('/') ? wanted : `${wanted}/tcp`
      const found = Ports[port] ?? []
      if (found.length === 0)
        throw new CoracleError('NOT_PUBLISHED', `no public port '${port}' published for ${name}`)
      process.stdout.write(found.map((each) => `${at(each)}\n`).join(''))
      return 0
    }
    for (const [port, bindings] of Object.entries(Ports))
      for (const each of bindings ?? []) process.stdout.write(`${port} -> ${at(each)}\n`)
    return 0
  })
}
