import { CoracleError } from '../errors.js'
import type { Sandbox } from '../isolation/sandbox.js'
import type { Created } from './engine.js'
import { checkSavable } from './going-on.js'
import { MoveReader, digestOf, writeMove } from './move-archive.js'
import { type Pauses, refusePaused } from './pauses.js'
import type { ContainerRecord, CreateRequest } from './record.js'
import type { Images } from './images.js'
import type { Snapshots } from './snapshots.js'

/** What a {@link Moves} stands on. */
export interface MovesInit {
  readonly snapshots: Snapshots
  readonly images: Images
  readonly pauses: Pauses
  /** A container's record, put right. @throws CoracleError NO_SUCH_CONTAINER */
  readonly inspect: (reference: string) => Promise<ContainerRecord>
  /** @throws CoracleError NOT_RUNNING */
  readonly running: (id: string) => Promise<Sandbox>
  readonly create: (request: CreateRequest) => Promise<Created>
  readonly start: (id: string) => Promise<void>
  readonly remove: (id: string) => Promise<void>
}

/**
 * Containers on their way from one daemon to another, with memory, processes and disk. Who moves one has the sender
 * {@link send} it and the receiver {@link receive} it, removes it at the sender once the receiver has said that it runs,
 * and only then lets go of the sender. Whatever fails before: here it goes on, and there nothing is.
 */
export class Moves {
  readonly #init: MovesInit

  constructor(init: MovesInit) {
    this.#init = init
  }

  /**
   * Saves a running container, which stands still from then on, and sends it; until `signal`, at which it goes on
   * where it is still there.
   * @param write takes the archive (move-archive.ts) piece by piece
   * @throws CoracleError NO_SUCH_CONTAINER, NOT_RUNNING, INVALID_ARGUMENT where it is no microVM on kvm,
   *   SNAPSHOT_UNSUPPORTED, what `write` throws: it goes on then
   */
  async send(reference: string, write: (bytes: Buffer) => Promise<void>, signal: AbortSignal): Promise<void> {
    const { snapshots, images, pauses, inspect, running } = this.#init
    const record = await inspect(reference)
    checkSavable(record)
    refusePaused(record, 'moving it')
    const { id } = record
    const sandbox = await running(id)
    const save = (folder: string): Promise<void> =>
      pauses.pause(id, (still) => still.snapshot(folder, signal, true))
    const left = new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()))
    try {
      await snapshots.passing(record, save, async (name) => {
        const { layers } = images.get(record.imageId)
        for await (const bytes of writeMove(record, snapshots.folder(name), layers)) {
          signal.throwIfAborted()
          await write(bytes)
        }
        await left
      })
    } finally {
      // It may be gone by now, as it should.
      await pauses.wake(id, sandbox).catch(() => undefined)
    }
  }

  /**
   * Takes a container from another daemon, and has it go on here, under its name, with its ports and its policies, on
   * networks of the same names. Its id and its addresses are new.
   * @throws CoracleError SNAPSHOT_INVALID, NO_SUCH_IMAGE, SNAPSHOT_MISMATCH, those of a creation and a start: nothing
   *   stays then
   */
  async receive(source: AsyncIterable<Buffer>): Promise<Created> {
    const { snapshots, create, start, remove } = this.#init
    const reader = new MoveReader(source)
    const header = await reader.header()
    const container = await this.#here(header.container, header.layers)
    return snapshots.passing(
      container,
      (folder) => reader.files(folder, header),
      async (from) => {
        const created = await create({ ...lasting(container.request), name: container.name, image: '', from })
        try {
          await start(created.id)
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

/** What of a request a container keeps that goes on elsewhere, beside what its snapshot has. */
function lasting(request: CreateRequest): Partial<CreateRequest> {
  const { hostname, autoRemove, restart, ports, stopSignal, stopTimeout } = request
  const all = { hostname, autoRemove, restart, ports, stopSignal, stopTimeout }
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined))
}
