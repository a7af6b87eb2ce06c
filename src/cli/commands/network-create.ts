import { CoracleError } from '../../errors.js'
import { choose } from '../container-options.js'
import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { pairOf } from '../pair.js'

const help = {
  usage: 'network create [OPTIONS] NAME',
  summary:
    'Makes a network. Containers on it find each other by name; those of other networks do not reach them.',
  options: (yargs) =>
    yargs
      .option('driver', {
        alias: 'd',
        type: 'string',
        requiresArg: true,
        describe: 'bridge (default), macvlan or sriov',
      })
      .option('subnet', {
        type: 'string',
        array: true,
        requiresArg: true,
        describe: 'Subnet in CIDR, one a family',
      })
      .option('gateway', { type: 'string', array: true, requiresArg: true, describe: "The subnet's gateway" })
      .option('ip-range', {
        type: 'string',
        array: true,
        requiresArg: true,
        describe: 'Give out this part alone',
      })
      .option('aux-address', {
        type: 'string',
        array: true,
        requiresArg: true,
        describe: 'NAME=ADDRESS: never given out',
      })
      .option('ipv6', { type: 'boolean', describe: 'Also IPv6' })
      .option('ipv4', { type: 'boolean', default: true, describe: 'Also IPv4' })
      .option('internal', { type: 'boolean', describe: 'Without a way outside' })
      .option('ipam-driver', { type: 'string', requiresArg: true, describe: 'default: there is no other' })
      .option('ipam-opt', {
        type: 'string',
        array: true,
        requiresArg: true,
        describe: 'KEY=VALUE for that driver: kept, and shown by inspect',
      })
      .option('scope', { type: 'string', requiresArg: true, describe: 'local: there is no swarm' })
      .option('attachable', { type: 'boolean', describe: 'Taken, without effect outside a swarm' })
      .option('opt', {
        alias: 'o',
        type: 'string',
        array: true,
        requiresArg: true,
        describe: 'Option of the driver: parent=DEVICE, vlan=N (sriov), com.docker.network.driver.mtu=N, …',
      })
      .option('label', { type: 'string', array: true, requiresArg: true, describe: 'KEY=VALUE' }),
  examples: [
    ['network create back', 'then: coracle run --network back …'],
    ['network create --internal --subnet 10.9.0.0/24 db', 'no way in or out'],
    ['network create -d macvlan -o parent=eth0 --subnet 192.168.1.0/24 lan', "on the host's own network"],
    [
      'network create -d sriov -o parent=eth0 -o vlan=12 --subnet 10.2.0.0/24 fast',
      'a virtual function of the adapter to each container',
    ],
  ],
  words: [1, 1],
  refused: {
    'config-from': 'networks without a life of their own are not built yet: give the options themselves',
    'config-only': 'networks without a life of their own are not built yet: make the network itself',
    ingress: 'there is no swarm: -p publishes ports on the host',
  },
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const subnets = listOf(options.subnet)
  const family = (text: string): boolean => text.includes(':')
  const forSubnet = (all: readonly string[], subnet: string): string | undefined =>
    all.find((text) => family(text) === family(subnet))
  const gateways = listOf(options.gateway)
  const ranges = listOf(options['ip-range'])
  if (subnets.length === 0 && gateways.length + ranges.length > 0)
    throw new CoracleError('USAGE', '--gateway and --ip-range need --subnet')
  const reserved = Object.fromEntries(listOf(options['aux-address']).map(pairOf))
  const Config = subnets.map((subnet) => {
    const Gateway = forSubnet(gateways, subnet)
    const IPRange = forSubnet(ranges, subnet)
    const own = Object.entries(reserved).filter(([, address]) => family(address) === family(subnet))
    return {
      Subnet: subnet,
      ...(Gateway ? { Gateway } : {}),
      ...(IPRange ? { IPRange } : {}),
      ...(own.length > 0 ? { AuxiliaryAddresses: Object.fromEntries(own) } : {}),
    }
  })
  choose('--scope', options.scope, ['local'])
  const body = {
    Name: options._[0],
    Driver: options.driver ?? 'bridge',
    Internal: options.internal ?? false,
    Attachable: options.attachable ?? false,
    EnableIPv4: options.ipv4,
    EnableIPv6: options.ipv6 ?? false,
    IPAM: {
      Driver: options['ipam-driver'] ?? 'default',
      Options: Object.fromEntries(listOf(options['ipam-opt']).map(pairOf)),
      Config,
    },
    Options: Object.fromEntries(listOf(options.opt).map(pairOf)),
    Labels: Object.fromEntries(listOf(options.label).map(pairOf)),
  }
  return withClient(invocation, async (client) => {
    const { Id } = await client.json<{ Id: string }>('POST', '/networks/create', { body })
    process.stdout.write(`${Id}\n`)
    return 0
  })
}
