import { CoracleError } from '../../errors.js'
import { containerPath } from '../client.js'
import { listOf, parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { environmentOf } from '../container-options.js'
import { linesOf } from '../limit-options.js'
import { closeInput, copyInput, copyOutput, DETACH_KEYS, ownTerminal } from '../session.js'
import { detachKeys } from './run.js'

const help = {
  usage: 'exec [OPTIONS] CONTAINER COMMAND [ARGUMENT...]',
  summary: 'Runs a further command in a running container.',
  options: (yargs) =>
    yargs
      .option('interactive', { alias: 'i', type: 'boolean', describe: 'Keep stdin open' })
      .option('tty', { alias: 't', type: 'boolean', describe: 'Give the command a terminal' })
      .option('detach', { alias: 'd', type: 'boolean', describe: 'Do not wait for its end' })
      .option('env', {
        alias: 'e',
        type: 'string',
        array: true,
        requiresArg: true,
        describe: 'NAME=VALUE, or NAME to pass this one on',
      })
      .option('env-file', {
        type: 'string',
        array: true,
        requiresArg: true,
        describe: 'A file of lines as --env has them',
      })
      .option('workdir', {
        alias: 'w',
        type: 'string',
        requiresArg: true,
        describe: 'Working directory inside',
      })
      .option('user', {
        alias: 'u',
        type: 'string',
        requiresArg: true,
        describe: 'USER[:GROUP], names or numbers',
      })
      .option('privileged', { type: 'boolean', describe: 'Give the command all capabilities' })
      .option('detach-keys', DETACH_KEYS),
  examples: [
    ['exec -it web sh', 'a shell beside what runs there'],
    ['exec web cat /etc/hosts', 'one command; its exit status is ours'],
  ],
  words: [2, Infinity],
  halt: true,
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const { interactive = false, tty = false, detach = false } = options
  if (tty && interactive && !detach && !process.stdin.isTTY)
    throw new CoracleError('USAGE', 'the input device is not a terminal: leave out -t')
  const [container, ...command] = options._
  const keys = detachKeys(options['detach-keys'])
  const size = tty && process.stdout.isTTY ? [process.stdout.rows, process.stdout.columns] : undefined
  const body = {
    Cmd: command,
    Env: [
      ...listOf(options['env-file']).flatMap((path) => linesOf('--env-file', path)),
      ...listOf(options.env),
    ].flatMap(environmentOf),
    WorkingDir: options.workdir ?? '',
    User: options.user ?? '',
    ...(options.privileged === true && { Privileged: true }),
    Tty: tty,
    DetachKeys: keys.text ?? '',
    AttachStdin: interactive && !detach,
    AttachStdout: !detach,
    AttachStderr: !detach,
    ...(size ? { ConsoleSize: size } : {}),
  }
  return withClient(invocation, async (client) => {
    const { Id } = await client.json<{ Id: string }>('POST', containerPath(container!, 'exec'), { body })
    const path = `/exec/${Id}`
    const start = { Detach: detach, Tty: tty }
    if (detach) {
      await client.json('POST', `${path}/start`, { body: start })
      return 0
    }
    const { socket, multiplexed } = await client.hijack(`${path}/start`, {}, start)
    const output = copyOutput(socket, multiplexed)
    let detached = false
    const restore = tty ? ownTerminal(client, path, interactive) : undefined
    try {
      if (interactive) {
        const leave = (): void => ((detached = true), void socket.destroy())
        copyInput(socket, tty && process.stdin.isTTY ? { keys: keys.bytes, then: leave } : undefined)
      }
      await output
      if (detached) return 0
      const { ExitCode } = await client.json<{ ExitCode: number | null }>('GET', `${path}/json`)
      return ExitCode ?? 125
    } finally {
      restore?.()
      closeInput(socket)
    }
  })
}
