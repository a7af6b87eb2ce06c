import { dirname, join } from 'node:path'
import { CoracleError } from '../errors.js'
import { isAlive, readOwner } from '../isolation/liveness.js'
import { claimInterface, physicalFunction, releaseDevices } from '../sriov/index.js'
import type { AttachedInterface, Attachment, NetworkRecord } from './record.js'
import { checkAdapter } from './request.js'
import { optionsOf } from './store.js'

/** Who has virtual functions to give: the host's adapters. */
export interface FunctionHost {
  readonly find: (adapter: string) => unknown
  readonly claim: typeof claimInterface
  readonly release: (owner: string, order?: number) => Promise<string[]>
}

const ADAPTERS: FunctionHost = { find: physicalFunction, claim: claimInterface, release: releaseDevices }

/** Whether an interface is a virtual function. */
export const isFunction = (each: AttachedInterface): boolean => each.function !== undefined

/** The virtual functions of an attachment. They are claimed in the name of the container's run folder. */
export class Functions {
  readonly #host: FunctionHost

  constructor(host = ADAPTERS) {
    this.#host = host
  }

  /** @throws CoracleError INVALID_ARGUMENT, NO_SUCH_DEVICE, DEVICE_UNUSABLE for an adapter that cannot be divided */
  check(adapter: string): void {
    this.#host.find(checkAdapter(adapter))
  }

  /**
   * Takes those that a process container is to have: a microVM's are taken by whoever launches it.
   * @returns the indexes of their links on the host, by the names that they are to have
   * @throws CoracleError NO_SUCH_DEVICE, DEVICE_IN_USE, DEVICE_UNUSABLE
   */
  async take(
    { namespace, control }: Attachment,
    interfaces: readonly AttachedInterface[],
    networks: ReadonlyMap<string, NetworkRecord>,
  ): Promise<Map<string, number>> {
    const taken = new Map<string, number>()
    if (namespace === undefined) return taken
    for (const { name, mac, network, function: order } of interfaces) {
      if (order === undefined) continue
      const record = networks.get(network)!
      const wanted = { adapter: record.device, mac, vlan: optionsOf(record).vlan }
      taken.set(name, await this.#host.claim(dirname(control), order, wanted))
    }
    return taken
  }

  /**
   * Gives back what a container has, also a microVM that was killed.
   * @param order of one that a process container has @default all
   */
  async giveBack({ namespace, control }: Attachment, order?: number): Promise<void> {
    const monitor = readOwner(join(dirname(control), 'lock'))
    // Its starter alone is gone, and it has the device open: whoever ends it gives that back.
    if (namespace === undefined && monitor && isAlive(monitor)) return
    for (const line of await this.#host.release(dirname(control), order)) console.error(`coracle: ${line}`)
  }
}

/** @throws CoracleError CONFLICT for a microVM, which has its devices from its start to its end */
export function refuseLive(
  { namespace }: Attachment,
  { driver, name }: NetworkRecord,
  container: string,
): void {
  if (driver !== 'sriov' || namespace !== undefined) return
  throw new CoracleError(
    'CONFLICT',
    `container ${container} is a microVM that runs, and has virtual functions as those of network ${name} from its start to its end: stop it first`,
  )
}
