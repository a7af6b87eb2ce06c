import { randomBytes } from 'node:crypto'
import { CoracleError } from '../errors.js'
import { identify, isAlive, type ProcessIdentity } from '../isolation/liveness.js'
import { log } from '../log.js'
import type { Sandbox } from '../isolation/sandbox.js'
import type { Created } from './creation.js'
import { GivenMoves } from './given-moves.js'
import { checkSavable } from './going-on.js'
import { MoveReader, digestOf, writeMove } from './move-archive.js'
import { type Pauses, moveOf, refusePaused } from './pauses.js'
import type { ContainerRecord, CreateRequest, MoveMark } from './record.js'
import type { Images } from './images.js'
import type { Snapshots } from './snapshots.js'
import type { ContainerStore } from './store.js'

/** What a {@link Moves} stands on. */
export interface MovesInit {
  /** The file that remembers what was given away. */
  readonly given: string
  readonly snapshots: Snapshots
  readonly containers: Pick<ContainerStore, 'list' | 'lock' | 'lockAll' | 'read'>
  readonly images: Images
  readonly pauses: Pauses
  /** A container's record, put right. @throws CoracleError NO_SUCH_CONTAINER */
  readonly inspect: (reference: string) => Promise<ContainerRecord>
  /** @throws CoracleError NOT_RUNNING */
  readonly running: (id: string) => Promise<Sandbox>
  readonly create: (request: CreateRequest) => Promise<Created>
  readonly start: (id: string, arrived: MoveMark) => Promise<void>
  readonly change: (
    id: string,
    change: (record: ContainerRecord) => ContainerRecord,
  ) => Promise<ContainerRecord>
  readonly remove: (id: string) => Promise<void>
}

/** What its sender knows of a move: it is under way, or the container is given away; else it never came to that. */
export type MoveState = 'leaving' | 'given' | 'unknown'

/**
 * Containers on their way from one daemon to another, with memory, processes and disk. Who moves one
 *
 *   1. has the sender {@link send} it, which makes it stand still and marks its record as leaving,
 *   2. has the receiver {@link receive} it: there it is started as far as can be, and stands still as well,
 *   3. has the sender {@link give} it away: from then on, crash or not, it is the receiver's alone,
 *   4. has the receiver unpause it.
 *
 * The word at 3 is one file replaced at the sender. A sender that fails, or loses who moves it, before that has it go
 * on; after that it removes it, if need be at the next start. A receiver cannot know, and keeps it still until somebody
 * says what became of the move. So two of it never run, and whoever dies, one is left.
 */
export class Moves {
  readonly #init: MovesInit
  readonly #given: GivenMoves

  constructor(init: MovesInit) {
    this.#init = init
    this.#given = new GivenMoves(init.given)
  }

  /**
   * Saves a running container, which stands still from then on, and sends it; until `signal`, at which it goes on
   * where it was not given away.
   * @param write takes the archive (move-archive.ts) piece by piece, and the move's id
   * @throws CoracleError NO_SUCH_CONTAINER, NOT_RUNNING, INVALID_ARGUMENT where it is no microVM on kvm,
   *   SNAPSHOT_UNSUPPORTED, what `write` throws: it goes on then
   */
  async send(
    reference: string,
    write: (bytes: Buffer, move: string) => Promise<void>,
    signal: AbortSignal,
  ): Promise<void> {
    const { snapshots, images, pauses, inspect, running } = this.#init
    const record = await inspect(reference)
    checkSavable(record)
    refusePaused(record, 'moving it')
    const { id } = record
    const sandbox = await running(id)
    const move: MoveMark = {
      id: randomBytes(16).toString('hex'),
      side: 'leaving',
      container: id,
      sender: self(),
    }
    const save = (folder: string): Promise<void> =>
      pauses.pause(id, { move, how: (it) => it.snapshot(folder, signal, true) })
    const left = new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()))
    try {
      await snapshots.passing(record, save, async (name) => {
        const { layers } = images.get(record.imageId)
        for await (const bytes of writeMove(move.id, record, snapshots.folder(name), layers)) {
          signal.throwIfAborted()
          await write(bytes, move.id)
        }
        await left
      })
    } finally {
      // It may be gone by now, as it should.
      await this.#goOn(id, sandbox, move.id).catch(() => undefined)
    }
  }

  /** Has a container that was on this move go on here, unless it was given away. */
  async #goOn(id: string, sandbox: Sandbox, move: string): Promise<void> {
    await this.#init.pauses.wake(
      id,
      sandbox,
      (record) => moveOf(record)?.id === move && !this.#given.has(move),
    )
  }

  /**
   * Gives away a container that its receiver has: it is nobody's here from then on, and is removed.
   * @throws CoracleError CONFLICT where it does not stand still here for this move any more: it is not given then
   */
  async give(move: string): Promise<void> {
    const { containers } = this.#init
    const leaving = (): ContainerRecord | undefined =>
      containers.list().find((record) => moveOf(record)?.side === 'leaving' && moveOf(record)?.id === move)
    const refusal = new CoracleError(
      'CONFLICT',
      `no container stands still here for the move ${move.slice(0, 32)}`,
    )
    const id = leaving()?.id
    if (id === undefined) throw refusal
    {
      using _all = await containers.lockAll()
      using _lock = await containers.lock(id)
      // It may have gone on since.
      if (!leaving()) throw refusal
      this.#given.add({ move, container: id })
    }
    await this.#removeGiven(id)
  }

  /** What cannot be removed now is removed at the next start: it stays still until then. */
  async #removeGiven(id: string): Promise<void> {
    try {
      await this.#init.remove(id)
    } catch (error) {
      if (error instanceof CoracleError && error.code === 'NO_SUCH_CONTAINER') return
      log.warn('moved-container-stays', { container: id, message: (error as Error).message })
    }
  }

  /** What became of a move from here. */
  state(move: string): MoveState {
    if (this.#given.has(move)) return 'given'
    const records = this.#init.containers.list()
    return records.some((record) => moveOf(record)?.side === 'leaving' && moveOf(record)?.id === move)
      ? 'leaving'
      : 'unknown'
  }

  /** The containers that came here and stand still, because nobody has said yet that they are given away there. */
  arrived(): { readonly record: ContainerRecord; readonly move: MoveMark }[] {
    return this.#init.containers.list().flatMap((record) => {
      const move = moveOf(record)
      return move?.side === 'arrived' ? [{ record, move }] : []
    })
  }

  /** Ends what a sender that was killed left: its containers go on, or go. */
  async settle(): Promise<void> {
    const { containers, running } = this.#init
    const given = this.#given.containers()
    for (const record of containers.list()) {
      const { id } = record
      const move = moveOf(record)
      if (given.has(id)) await this.#removeGiven(id)
      else if (move?.side === 'leaving' && !isAlive(move.sender!))
        // It may have ended; and another may be at it too.
        await running(id)
          .then((sandbox) => this.#goOn(id, sandbox, move.id))
          .catch(() => undefined)
    }
  }

  /**
   * Takes a container from another daemon, and has it ready to go on here, under its name, with its ports and its
   * policies, on networks of the same names: all that is left is to unpause it. Its id and its addresses are new.
   * @param signal whoever brings it is gone, and does not know that it arrived
   * @throws CoracleError SNAPSHOT_INVALID, NO_SUCH_IMAGE, SNAPSHOT_MISMATCH, those of a creation and a start: nothing
   *   stays then
   */
  async receive(source: AsyncIterable<Buffer>, signal: AbortSignal): Promise<Created> {
    const { snapshots, create, start, change, remove } = this.#init
    const reader = new MoveReader(source)
    const header = await reader.header()
    const container = await this.#here(header.container, header.layers)
    const arrived: MoveMark = { id: header.move, side: 'arrived', container: container.id }
    return snapshots.passing(
      container,
      (folder) => reader.files(folder, header),
      async (from) => {
        const request = { ...lasting(container.request), name: container.name, image: '', from }
        // Until it has arrived, it goes with this process.
        const created = await create({ ...request, owner: self() })
        try {
          await start(created.id, arrived)
          signal.throwIfAborted()
          await change(created.id, ({ request: { owner: _, ...kept }, ...record }) => ({
            ...record,
            request: kept,
          }))
        } catch (error) {
          await remove(created.id).catch(() => undefined)
          throw error
        }
        return created
      },
    )
  }

  /** The record as it is of use here: nothing in it names a place of the other host. */
  async #here(
    container: ContainerRecord,
    sent: readonly { readonly diffId: string; readonly digest: string }[],
  ): Promise<ContainerRecord> {
    checkSavable(container)
    const { layers } = this.#init.images.get(container.imageId)
    const digests = await Promise.all(layers.map(({ path }) => digestOf(path)))
    if (layers.length !== sent.length || sent.some(({ digest }, i) => digest !== digests[i]))
      throw new CoracleError(
        'SNAPSHOT_MISMATCH',
        `the image ${container.imageId} is here, but its layers are not byte by byte those that the container has mapped: it was taken in by another build`,
      )
    const { devices: _, mounts: _mounts, network: _network, from: _from, ...spec } = container.spec
    return { ...container, spec: { ...spec, layers } }
  }
}

const self = (): ProcessIdentity => identify('self')!

/** What of a request a container keeps that goes on elsewhere, beside what its snapshot has. */
function lasting(request: CreateRequest): Partial<CreateRequest> {
  const { hostname, autoRemove, restart, ports, stopSignal, stopTimeout } = request
  const all = { hostname, autoRemove, restart, ports, stopSignal, stopTimeout }
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined))
}
