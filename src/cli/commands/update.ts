import { CoracleError } from '../../errors.js'
import { containerPath } from '../client.js'
import { forEach, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { CONTAINER_REFUSED, CPU_SHARES, parseCpus, parseNumber, restartPolicy } from '../container-options.js'
import { BLKIO_WEIGHT, PIDS_LIMIT } from '../limit-options.js'
import { parseSize } from '../size.js'

const CGROUP = { type: 'string', requiresArg: true, describe: 'Process isolation' } as const

const help = {
  usage: 'update [OPTIONS] CONTAINER...',
  summary:
    'Changes limits of containers and their restart policy, running or not. A microVM that runs gives memory up and\n' +
    'takes it back, and cannot have more memory or CPUs than it was started with.',
  options: (yargs) =>
    yargs
      .option('memory', { alias: 'm', type: 'string', requiresArg: true, describe: 'Memory, such as 512m' })
      .option('cpus', { type: 'string', requiresArg: true, describe: 'Processors, such as 1.5' })
      .option('cpu-shares', CPU_SHARES)
      .option('pids-limit', PIDS_LIMIT)
      .option('memory-swap', { ...CGROUP, describe: 'As of coracle run, as what follows' })
      .option('memory-reservation', CGROUP)
      .option('cpuset-cpus', CGROUP)
      .option('cpuset-mems', CGROUP)
      .option('blkio-weight', BLKIO_WEIGHT)
      .option('cpu-period', { type: 'string', requiresArg: true, describe: 'As of coracle run' })
      .option('cpu-quota', { type: 'string', requiresArg: true, describe: 'As of coracle run' })
      .option('restart', { type: 'string', requiresArg: true, describe: 'Restart policy' }),
  examples: [
    ['update -m 256m --cpus 0.5 web', "at once; what it does not need any more is the host's again"],
    ['update --restart unless-stopped web', 'start it again when it ends'],
  ],
  words: [1, Infinity],
  refused: {
    'cpu-rt-period': CONTAINER_REFUSED['cpu-rt-period']!,
    'cpu-rt-runtime': CONTAINER_REFUSED['cpu-rt-runtime']!,
    'kernel-memory': CONTAINER_REFUSED['kernel-memory']!,
  },
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const { memory, cpus, 'cpu-shares': shares, restart, 'pids-limit': pids } = options
  const { 'memory-swap': swap, 'memory-reservation': reservation, 'blkio-weight': weight } = options
  const body = {
    ...(memory !== undefined && { Memory: parseSize(memory, '--memory') }),
    ...(cpus !== undefined && { NanoCpus: parseCpus(cpus) }),
    ...(shares !== undefined && { CpuShares: parseNumber('--cpu-shares', shares) }),
    ...(options['cpu-period'] !== undefined && {
      CpuPeriod: parseNumber('--cpu-period', options['cpu-period']),
    }),
    ...(options['cpu-quota'] !== undefined && {
      CpuQuota: parseNumber('--cpu-quota', options['cpu-quota']),
    }),
    ...(swap !== undefined && { MemorySwap: swap === '-1' ? -1 : parseSize(swap, '--memory-swap') }),
    ...(reservation !== undefined && { MemoryReservation: parseSize(reservation, '--memory-reservation') }),
    ...(options['cpuset-cpus'] !== undefined && { CpusetCpus: options['cpuset-cpus'] }),
    ...(options['cpuset-mems'] !== undefined && { CpusetMems: options['cpuset-mems'] }),
    ...(weight !== undefined && { BlkioWeight: parseNumber('--blkio-weight', weight) }),
    ...(pids !== undefined && { PidsLimit: parseNumber('--pids-limit', pids) }),
    ...(restart !== undefined && { RestartPolicy: restartPolicy(restart) }),
  }
  if (Object.keys(body).length === 0)
    throw new CoracleError('USAGE', "nothing to update: see 'coracle update --help'")
  return withClient(invocation, (client) =>
    forEach(options._, async (name) => {
      const { Warnings } = await client.json<{ Warnings?: string[] | null }>(
        'POST',
        containerPath(name, 'update'),
        { body },
      )
      for (const warning of Warnings ?? []) process.stderr.write(`coracle: ${warning}\n`)
      return name
    }),
  )
}
