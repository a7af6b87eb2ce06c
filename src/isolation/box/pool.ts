import { closeSync, mkdirSync, openSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { type ProcessIdentity, identify } from '../liveness.js'
import { Fd, O_RDONLY, O_RDWR } from '@coracle/sys'
import type { SnapshotFiles } from '../../vmm/snapshot/files.js'
import { Handover } from '../handover.js'
import { Box, type BoxOptions } from './box.js'

/** After a box was taken, ms until the next is started: the run that took it comes first. */
const PAUSE = 1_000

/** What a guest can be made ready from before there is a container for it: paths. */
export interface TemplateParts {
  readonly tools: string
  readonly template: SnapshotFiles
}

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
 * Boxes that are started, so that a microVM waits neither for crun nor for Node. Once a container was started from a
 * template, those that wait have a guest each that goes on from the same one. They are no containers: nobody counts
 * them, and they end with the pool, by their sockets, also when its process is killed.
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
  /** What was asked for last. */
  #wanted: TemplateParts | undefined

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

  /** Fills it now. Resolves when as many wait as are to be kept, or none could be started. */
  async filled(): Promise<void> {
    clearTimeout(this.#timer)
    this.#fill()
    await this.#filling
  }

  /**
   * One that waits, else a fresh one. @see Box.start
   * @param parts of the container's template, if it is to have one: those that wait with a guest of it come first, and
   *   others with a guest are nothing for this container
   */
  readonly take = async (
    folder: string,
    log: number,
    options?: BoxOptions,
    parts?: Promise<TemplateParts | undefined>,
  ): Promise<Box> => {
    // A fresh one starts while the template is found.
    const wanted = this.#ready.length > 0 ? await parts?.catch(() => undefined) : undefined
    const box = await this.#choose(wanted?.template.memory)
    void parts?.then(
      (found) => {
        this.#wanted = found ?? this.#wanted
        this.#fillSoon()
      },
      () => this.#fillSoon(),
    )
    if (!parts) this.#fillSoon()
    return box ?? Box.start(folder, log, options)
  }

  async #choose(template: string | undefined): Promise<Box | undefined> {
    for (const box of this.#ready.filter(({ alive }) => !alive)) await this.#drop(box)
    const fits = this.#ready.find((box) => box.template !== undefined && box.template === template)
    const box = fits ?? this.#ready.find((box) => box.template === undefined)
    // A place for one that would have been right.
    if (box) this.#ready.splice(this.#ready.indexOf(box), 1)
    else if (this.#ready[0]) await this.#drop(this.#ready[0])
    return box
  }

  async #drop(box: Box): Promise<void> {
    this.#ready.splice(this.#ready.indexOf(box), 1)
    await box.end()
  }

  #fillSoon(): void {
    if (this.#size > 0 && !this.#closed) this.#timer ??= setTimeout(() => this.#fill(), this.#pause).unref()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true
    clearTimeout(this.#timer)
    await this.#filling
    await Promise.all(this.#ready.splice(0).map((box) => box.end()))
    rmSync(this.#folder, { recursive: true, force: true })
  }

  #fill(): void {
    if (this.#closed) return
    this.#timer = undefined
    this.#filling ??= this.#start().finally(() => (this.#filling = undefined))
  }

  /** Has it make a guest ready. Nobody may take it meanwhile: it would wait for longer than for another. */
  async #prepare(box: Box): Promise<void> {
    const wanted = this.#wanted
    if (!wanted || this.#closed) return
    this.#ready.splice(this.#ready.indexOf(box), 1)
    try {
      using handover = handoverOf(wanted)
      await box.prepare(handover, wanted.template.memory)
      if (!this.#closed) this.#ready.push(box)
      else await box.end()
    } catch (error) {
      this.#log(`no guest is made ready in a microVM process: ${(error as Error).message}`)
      // The next container that has a template says which is of use.
      this.#wanted = undefined
      await box.end()
    }
  }

  /** One after the other, since nobody waits for them. */
  async #start(): Promise<void> {
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 })
    const path = join(this.#folder, 'log')
    const log = openSync(path, 'w', 0o600)
    try {
      while (!this.#closed && this.#ready.length < this.#size)
        this.#ready.push(await Box.start(join(this.#folder, String(this.#started++)), log))
      for (const box of this.#ready.filter(({ template }) => template === undefined)) await this.#prepare(box)
    } catch (error) {
      // The next run starts its own, and tells whoever asked for it.
      const said = readFileSync(path, 'utf8').trim().split('\n').at(-1)
      this.#log(`no empty microVM process is kept: ${(error as Error).message}${said ? ` (${said})` : ''}`)
    } finally {
      closeSync(log)
    }
  }
}

/** @throws SysError where a file is gone */
function handoverOf({ tools, template }: TemplateParts): Handover {
  const handover = new Handover()
  try {
    handover.add('kvm', Fd.open('/dev/kvm', O_RDWR))
    handover.add('tools', Fd.open(tools, O_RDONLY))
    handover.add('template.state', Fd.open(template.state, O_RDONLY))
    handover.add('template.memory', Fd.open(template.memory, O_RDONLY))
    return handover
  } catch (error) {
    handover[Symbol.dispose]()
    throw error
  }
}

/** Removes the folders of pools whose process was killed. */
function removeStale(folder: string): void {
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  for (const name of readdirSync(folder))
    if (/^\d+$/.test(name) && !identify(Number(name)))
      rmSync(join(folder, name), { recursive: true, force: true })
}
