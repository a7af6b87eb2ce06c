import { containerPath } from '../client.js'
import { forEach, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { parseCpus, restartPolicy } from '../container-options.js'
import { parseSize } from '../size.js'

const help = {
  usage: 'update [OPTIONS] CONTAINER...',
  summary: 'Changes limits of containers and their restart policy, running or not.',
  options: (yargs) =>
    yargs
      .option('memory', { alias: 'm', type: 'string', requiresArg: true, describe: 'Memory, such as 512m' })
      .option('cpus', { type: 'string', requiresArg: true, describe: 'Processors, such as 1.5' })
      .option('pids-limit', {
        type: 'string',
        requiresArg: true,
        describe: 'Processes and threads at most, -1 for no limit',
      })
      .option('restart', { type: 'string', requiresArg: true, describe: 'Restart policy' }),
  examples: [
    ['update -m 1g --cpus 2 web', 'more of both, at once'],
    ['update --restart unless-stopped web', 'start it again when it ends'],
  ],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const { memory, cpus, restart, 'pids-limit': pids } = options
  const body = {
    ...(memory !== undefined && { Memory: parseSize(memory, '--memory') }),
    ...(cpus !== undefined && { NanoCpus: parseCpus(cpus) }),
    ...(pids !== undefined && { PidsLimit: Number(pids) }),
    ...(restart !== undefined && { RestartPolicy: restartPolicy(restart) }),
  }
  return withClient(invocation, (client) =>
    forEach(options._, async (name) => {
      await client.json('POST', containerPath(name, 'update'), { body })
      return name
    }),
  )
}
