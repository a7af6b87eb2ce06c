import { spawn } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { CoracleError } from '../../errors.js'
import { KEPT } from '../../isolation/launch.js'
import { gone, type ProcessIdentity } from '../../isolation/liveness.js'

const MAIN = fileURLToPath(new URL('main.js', import.meta.url))
/** How long a keeper may take to look, in ms. */
const PATIENCE = 30_000
/** Times that one is started anew where it ended just when it was asked. */
const ATTEMPTS = 3

/** The keeper's socket, the lock that says which process it is, and what it has to say: nothing when all is well. */
export const keeperFiles = (run: string) => ({
  socket: join(run, 'net', 'keeper.sock'),
  lock: join(run, 'net', 'keeper.lock'),
})

/** What a keeper says when it has looked at what is attached. */
export interface Looked {
  /** What it could not do for a container, by its id: the port that is taken, say. */
  readonly errors: Readonly<Record<string, string>>
  /** It has nothing to do, and ends. */
  readonly ending: boolean
  readonly identity: ProcessIdentity
}

/**
 * Asks the keeper of a run folder to look at what is attached now; resolves when it has done so, or has ended because
 * nothing is.
 * @param needed start one where none runs
 * @throws CoracleError NETWORK_FAILED
 */
export async function askKeeper(run: string, state: string, needed: boolean): Promise<Looked | undefined> {
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const looked = await look(keeperFiles(run).socket)
    if (looked && !(looked.ending && needed)) return looked
    if (!needed) return undefined
    await start(run, state)
  }
  throw new CoracleError('NETWORK_FAILED', 'the process that keeps the networks does not start')
}

async function look(path: string): Promise<Looked | undefined> {
  const text = await new Promise<string | undefined>((resolve) => {
    const socket = connect(path)
    let all = ''
    const done = (): void => {
      socket.destroy()
      resolve(all.endsWith('\n') ? all : undefined)
    }
    socket.setEncoding('utf8').setTimeout(PATIENCE, done)
    socket.on('data', (chunk: string) => {
      all += chunk
      if (all.endsWith('\n')) done()
    })
    socket.on('error', done).on('close', done)
  })
  if (text === undefined) return undefined
  const looked = JSON.parse(text) as Looked
  if (looked.ending) await gone([looked.identity])
  return looked
}

/** Starts a keeper, and resolves when it answers, or when another does already. */
async function start(run: string, state: string): Promise<void> {
  mkdirSync(join(run, 'net'), { recursive: true, mode: 0o700 })
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => KEPT.test(name)))
  const child = spawn(process.execPath, ['--no-warnings', MAIN, run, state], {
    cwd: '/',
    detached: true,
    env,
    stdio: ['ignore', 'ignore', 'ignore', 'pipe'],
  })
  child.unref()
  const pipe = child.stdio[3] as Socket
  await new Promise<void>((resolve, reject) => {
    pipe.on('data', () => pipe.destroy()).on('close', () => resolve())
    child.on('error', (error) =>
      reject(new CoracleError('HOST_TOOL', `cannot start the networks' keeper: ${error.message}`)),
    )
  })
}
