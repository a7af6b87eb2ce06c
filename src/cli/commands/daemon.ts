import { chmodSync, mkdirSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { dirname } from 'node:path'
import { CoracleError } from '../../errors.js'
import type { Engine } from '../../engine/engine.js'
import { LOG_LEVELS, Log, type LogLevel } from '../../log.js'
import { defaultSocket } from '../client.js'
import { parseOptions, type CommandHelp, type Invocation } from '../command.js'

const MOST_BOXES = 64

const help = {
  usage: 'daemon [OPTIONS]',
  summary: "Serves Docker's Engine API on a Unix socket until SIGTERM. Containers go on without it.",
  options: (yargs) =>
    yargs
      .option('listen', {
        alias: 'l',
        type: 'string',
        requiresArg: true,
        describe: 'The socket: unix://PATH',
        defaultDescription: `unix://${defaultSocket()}`,
      })
      .option('pool', {
        type: 'string',
        requiresArg: true,
        describe: 'Empty microVM processes kept ready, 0 to 64 (where KVM is used)',
        defaultDescription: '2',
      })
      .option('log-level', {
        type: 'string',
        choices: LOG_LEVELS,
        requiresArg: true,
        describe: 'What stderr gets: a JSON object a line',
        defaultDescription: 'info',
      }),
  examples: [
    ['daemon --listen unix:///run/docker.sock', "where Docker's clients look"],
    ['daemon --log-level warn', 'without what happens to containers'],
    ['daemon --pool 8', 'for bursts of up to eight starts'],
  ],
  words: [0, 0],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const path = (options.listen ?? `unix://${defaultSocket()}`).replace(/^unix:\/\//, '')
  if (!path.startsWith('/'))
    throw new CoracleError('USAGE', `--listen takes unix://PATH, not '${options.listen}'`)
  if (options.pool !== undefined && !(/^\d{1,2}$/.test(options.pool) && Number(options.pool) <= MOST_BOXES))
    throw new CoracleError('USAGE', `--pool takes a number from 0 to ${MOST_BOXES}, not '${options.pool}'`)
  const [{ openHostEngine, openBoxPool }, { createApiServer }] = await Promise.all([
    import('../../engine/open.js'),
    import('../../api/server.js'),
  ])
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
  if (await isServed(path)) throw new CoracleError('CONFLICT', `another daemon serves ${path} already`)
  const size = options.pool === undefined ? undefined : Number(options.pool)
  const log = new Log((options['log-level'] as LogLevel | undefined) ?? 'info')
  await using boxes = openBoxPool(size, (message) => log.warn('pool', { message }))
  const engine = await openHostEngine({ boxes })
  await engine.reconcile()
  const server = createApiServer(engine)
  rmSync(path, { force: true })
  // Whoever can open the socket is root on this host: it is made for its owner alone from the first moment on.
  const mask = process.umask(0o177)
  await new Promise<void>((resolve, reject) => {
    server.on('error', (error) =>
      reject(new CoracleError('USAGE', `cannot listen on ${path}: ${error.message}`)),
    )
    server.listen(path, resolve)
  })
  process.umask(mask)
  chmodSync(path, 0o600)
  log.info('serving', { address: `unix://${path}` })
  const ending = new AbortController()
  void logEvents(engine, log, ending.signal)
  await new Promise<void>((resolve) => {
    process.once('SIGTERM', () => resolve())
    process.once('SIGINT', () => resolve())
  })
  ending.abort()
  log.info('ending')
  engine.close()
  server.close()
  server.closeAllConnections()
  return 0
}

/** What happens in the engine; of its labels a container's log line has none. */
async function logEvents(engine: Engine, log: Log, signal: AbortSignal): Promise<void> {
  try {
    for await (const { type, action, id, attributes } of engine.events({ signal })) {
      const { name, image, exitCode, oldName } = attributes
      log.info(action, { [type]: id, name, image, exitCode, oldName })
    }
  } catch (error) {
    if (!signal.aborted) log.error('events-ended', { message: (error as Error).message })
  }
}

function isServed(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path)
    socket.on('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.on('error', () => resolve(false))
  })
}
