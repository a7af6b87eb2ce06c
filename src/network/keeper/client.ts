import { spawn } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { CoracleError } from '../../errors.js'
import { gone, type ProcessIdentity } from '../../isolation/liveness.js'
import { KEPT } from '../../isolation/monitor-pool.js'
import { programFile } from '../../programs.js'

/** How long a keeper may take to look, in ms. */
const PATIENCE = 30_000
/** Times that one is started anew where it ended just when it was asked. */
const ATTEMPTS = 3

/** The keeper's sockets, one to ask it and one to keep it while nothing is attached, and the lock that says which process it is. */
export const keeperFiles = (run: string) => ({
  socket: join(run, 'net', 'keeper.sock'),
  stay: join(run, 'net', 'keeper-stay.sock'),
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

/** A daemon that wanted no keeper for so long lets it go, in ms. */
const IDLE = 30_000

/**
 * Asks as {@link askKeeper}, and keeps the keeper between one container and the next: it takes longer to start than
 * most containers live. For a process that stays; the keeper goes with it where nothing is attached.
 */
export class KeptKeeper implements AsyncDisposable {
  readonly #run: string
  readonly #state: string
  #held: Socket | undefined
  #timer: NodeJS.Timeout | undefined
  #identity: ProcessIdentity | undefined

  constructor(run: string, state: string) {
    this.#run = run
    this.#state = state
  }

  readonly ask = async (needed: boolean): Promise<Looked | undefined> => {
    const looked = await askKeeper(this.#run, this.#state, needed)
    this.#identity = looked?.identity ?? this.#identity
    if (needed && looked && !looked.ending) this.#hold()
    return looked
  }

  #hold(): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => void this.#letGo(), IDLE).unref()
    if (this.#held && !this.#held.closed) return
    this.#held = connect(keeperFiles(this.#run).stay)
    this.#held.on('error', () => undefined).resume()
    this.#held.unref()
  }

  /** Resolves when the keeper has heard of it. */
  async #letGo(): Promise<void> {
    clearTimeout(this.#timer)
    const held = this.#held
    this.#held = undefined
    if (!held || held.closed) return
    const closed = new Promise((resolve) => held.once('close', resolve))
    held.ref().end()
    await closed
  }

  /** Also waits for its end, where nothing is attached. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#held) return
    await this.#letGo()
    const looked = await askKeeper(this.#run, this.#state, false)
    // It may have found out by itself that it is not needed: then it does not answer any more.
    if (!looked && this.#identity) await gone([this.#identity])
  }
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
  const child = spawn(process.execPath, ['--no-warnings', programFile('keeper'), run, state], {
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
