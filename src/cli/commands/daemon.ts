import { chmodSync, mkdirSync, rmSync } from 'node:fs'
import type { Server } from 'node:http'
import {
  type AddressInfo,
  connect,
  createServer as createNetServer,
  type Server as NetServer,
} from 'node:net'
import { dirname } from 'node:path'
import { createServer as createTlsServer, type Server as TlsServer } from 'node:tls'
import { CoracleError } from '../../errors.js'
import type { Engine } from '../../engine/engine.js'
import { LOG_LEVELS, Log, type LogLevel } from '../../log.js'
import { defaultSocket } from '../client.js'
import { listOf, parseOptions, type CommandHelp, type Invocation } from '../command.js'
import { parseTcp, readTlsFiles, type TlsFiles } from '../endpoint.js'

const MOST_BOXES = 64
/** ms in which a TLS client has to say who it is. */
const HANDSHAKE = 10_000
/** Connections that may wait to be taken; one more is refused at once (listen(2), of a Unix socket EAGAIN). */
const BACKLOG = 4096

const help = {
  usage: 'daemon [OPTIONS]',
  summary: "Serves Docker's Engine API until SIGTERM. Containers go on without it.",
  options: (yargs) =>
    yargs
      .option('listen', {
        alias: 'l',
        type: 'string',
        array: true,
        requiresArg: true,
        describe: 'Where: unix://PATH, or tcp://HOST:PORT with TLS; may be repeated',
        defaultDescription: `unix://${defaultSocket()}`,
      })
      .option('tlscacert', {
        type: 'string',
        requiresArg: true,
        describe: "Who signs the clients' certificates, a PEM file; without a valid one no client gets in",
      })
      .option('tlscert', { type: 'string', requiresArg: true, describe: "The daemon's own certificate" })
      .option('tlskey', { type: 'string', requiresArg: true, describe: "Its certificate's key" })
      .option('pool', {
        type: 'string',
        requiresArg: true,
        describe: 'Processes kept ready for containers, 0 to 64 of a kind',
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
    [
      'daemon -l unix:///run/docker.sock -l tcp://0.0.0.0:2376 --tlscacert ca.pem --tlscert cert.pem --tlskey key.pem',
      'also for other hosts',
    ],
    ['daemon --log-level warn', 'without what happens to containers'],
    ['daemon --pool 8', 'for bursts of up to eight starts'],
  ],
  words: [0, 0],
} satisfies CommandHelp<unknown>

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const listen = listOf(options.listen)
  const places = (listen.length > 0 ? listen : [`unix://${defaultSocket()}`]).map(placeOf)
  const tls = tlsOf(options)
  if (!tls && places.some((place) => 'port' in place))
    throw new CoracleError(
      'USAGE',
      'who reaches the API is root on this host: tcp:// needs --tlscacert, --tlscert and --tlskey',
    )
  if (options.pool !== undefined && !(/^\d{1,2}$/.test(options.pool) && Number(options.pool) <= MOST_BOXES))
    throw new CoracleError('USAGE', `--pool takes a number from 0 to ${MOST_BOXES}, not '${options.pool}'`)
  const [{ openHostEngine, openBoxPool, openKeeper, openMonitorPool }, { createApiServer }] =
    await Promise.all([import('../../engine/open.js'), import('../../api/server.js')])
  for (const place of places) if ('path' in place) await prepareSocket(place.path)
  const size = options.pool === undefined ? undefined : Number(options.pool)
  const log = new Log((options['log-level'] as LogLevel | undefined) ?? 'info')
  await using boxes = openBoxPool(size, (message) => log.warn('pool', { message }))
  await using keeper = openKeeper()
  using monitors = openMonitorPool(size)
  const engine = await openHostEngine({ boxes, monitors, keeper })
  await engine.reconcile()
  const server = createApiServer(engine)
  const listeners: NetServer[] = []
  for (const place of places) {
    const listener =
      'path' in place ? await listenUnix(server, place.path) : await listenTls(server, place, tls!)
    listeners.push(listener)
    const address = listener.address() as AddressInfo | string
    const shown =
      typeof address === 'string' ? `unix://${address}` : `tcp://${address.address}:${address.port}`
    log.info('serving', { address: shown })
  }
  const ending = new AbortController()
  void logEvents(engine, log, ending.signal)
  await new Promise<void>((resolve) => {
    process.once('SIGTERM', () => resolve())
    process.once('SIGINT', () => resolve())
  })
  ending.abort()
  log.info('ending')
  engine.close()
  for (const listener of listeners) listener.close()
  server.closeAllConnections()
  return 0
}

type Place = { readonly path: string } | { readonly address: string; readonly port: number }

/** @throws CoracleError USAGE */
function placeOf(text: string): Place {
  const path = text.replace(/^unix:\/\//, '')
  const place = path.startsWith('/') ? { path } : parseTcp(text)
  if (!place) throw new CoracleError('USAGE', `--listen takes unix://PATH or tcp://HOST:PORT, not '${text}'`)
  return place
}

/** @throws CoracleError USAGE */
function tlsOf({ tlscacert, tlscert, tlskey }: Partial<Record<string, unknown>>): TlsFiles | undefined {
  if (tlscacert === undefined && tlscert === undefined && tlskey === undefined) return undefined
  if (typeof tlscacert !== 'string' || typeof tlscert !== 'string' || typeof tlskey !== 'string')
    throw new CoracleError('USAGE', 'TLS needs all of --tlscacert, --tlscert and --tlskey')
  return readTlsFiles({ ca: tlscacert, cert: tlscert, key: tlskey })
}

/** @throws CoracleError CONFLICT */
async function prepareSocket(path: string): Promise<void> {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
  if (await isServed(path)) throw new CoracleError('CONFLICT', `another daemon serves ${path} already`)
}

/** Whoever can open the socket is root on this host: it is made for its owner alone from the first moment on. */
async function listenUnix(server: Server, path: string): Promise<NetServer> {
  const listener = createNetServer({ allowHalfOpen: true }, (socket) => server.emit('connection', socket))
  rmSync(path, { force: true })
  const mask = process.umask(0o177)
  try {
    await listening(listener, path, () => listener.listen({ path, backlog: BACKLOG }))
  } finally {
    process.umask(mask)
  }
  chmodSync(path, 0o600)
  return listener
}

/** Lets nobody in without a certificate of the authority's. */
async function listenTls(
  server: Server,
  { address, port }: { readonly address: string; readonly port: number },
  tls: TlsFiles,
): Promise<NetServer> {
  const rules = { requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.2' } as const
  let listener: TlsServer
  try {
    listener = createTlsServer({ ...tls, ...rules, handshakeTimeout: HANDSHAKE, allowHalfOpen: true })
  } catch (error) {
    throw new CoracleError('USAGE', `the certificates are of no use: ${(error as Error).message}`)
  }
  listener.on('secureConnection', (socket) => server.emit('connection', socket))
  // A stranger, or a scanner: it is let go, and there is nobody to tell.
  listener.on('tlsClientError', (_error, socket) => socket.destroy())
  await listening(listener, `tcp://${address}:${port}`, () =>
    listener.listen({ port, host: address, backlog: BACKLOG }),
  )
  return listener
}

async function listening(listener: NetServer, name: string, listen: () => void): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    listener.once('error', (error) =>
      reject(new CoracleError('USAGE', `cannot listen on ${name}: ${error.message}`)),
    )
    listener.once('listening', resolve)
    listen()
  })
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
