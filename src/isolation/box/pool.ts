import { closeSync, mkdirSync, openSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { type ProcessIdentity, identify } from '../liveness.js'
import { Box, type BoxOptions } from './box.js'

/** After a box was taken, ms until the next is started: the run that took it comes first. */
const PAUSE = 1_000

export interface BoxPoolInit {
  /** Empty boxes that are kept; 0 keeps none. */
  readonly size: number
  /** Ours and other pools': each has a folder by its process's id in it. */
  readonly folder: string
  /** Hears why none could be started. */
  readonly log?: (line: string) => void
  /** @default PAUSE */
  readonly pause?: number
}

/**
 * Boxes that are started and empty, so that a microVM waits neither for crun nor for Node. They are no containers:
 * nobody counts them, and they end with the pool, by their sockets, also when its process is killed.
 */
export class BoxPool implements AsyncDisposable {
  readonly #size: number
  readonly #folder: string
  readonly #log: (line: string) => void
  readonly #pause: number
  readonly #ready: Box[] = []
  #filling: Promise<void> | undefined
  #timer: NodeJS.Timeout | undefined
  #started = 0
  #closed = false

  constructor({ size, folder, log = () => undefined, pause = PAUSE }: BoxPoolInit) {
    this.#size = size
    this.#folder = join(folder, String(process.pid))
    this.#log = log
    this.#pause = pause
    removeStale(folder)
    if (size > 0) this.#fill()
  }

  /** Those that wait. */
  get idle(): ProcessIdentity[] {
    return this.#ready.filter(({ alive }) => alive).map(({ identity }) => identity)
  }

  /** Resolves when as many wait as are to be kept, or none could be started. */
  async filled(): Promise<void> {
    await this.#filling
  }

  /** One that waits, else a fresh one. @see Box.start */
  readonly take = async (folder: string, log: number, options?: BoxOptions): Promise<Box> => {
    let box: Box | undefined
    while ((box = this.#ready.shift()) && !box.alive) await box.end()
    if (this.#size > 0 && !this.#closed) this.#timer ??= setTimeout(() => this.#fill(), this.#pause).unref()
    return box ?? Box.start(folder, log, options)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true
    clearTimeout(this.#timer)
    await this.#filling
    await Promise.all(this.#ready.splice(0).map((box) => box.end()))
    rmSync(this.#folder, { recursive: true, force: true })
  }

  #fill(): void {
    this.#timer = undefined
    this.#filling ??= this.#start().finally(() => (this.#filling = undefined))
  }

  /** One after the other, since nobody waits for them. */
  async #start(): Promise<void> {
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 })
    const path = join(this.#folder, 'log')
    const log = openSync(path, 'w', 0o600)
    try {
      while (!this.#closed && this.#ready.length < this.#size)
        this.#ready.push(await Box.start(join(this.#folder, String(this.#started++)), log))
    } catch (error) {
      // The next run starts its own, and tells whoever asked for it.
      const said = readFileSync(path, 'utf8').trim().split('\n').at(-1)
      this.#log(`no empty microVM process is kept: ${(error as Error).message}${said ? ` (${said})` : ''}`)
    } finally {
      closeSync(log)
    }
  }
}

/** Removes the folders of pools whose process was killed. */
function removeStale(folder: string): void {
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  for (const name of readdirSync(folder))
    if (/^\d+$/.test(name) && !identify(Number(name)))
      rmSync(join(folder, name), { recursive: true, force: true })
}
