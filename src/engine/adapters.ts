import {
  type PhysicalFunction,
  checkUnclaimed,
  claimedDevices,
  createFunctions,
  deleteFunctions,
  physicalFunction,
  physicalFunctions,
} from '../sriov/index.js'
import type { ContainerRecord } from './record.js'

/** An adapter of the host with SR-IOV, and who has its virtual functions. */
export interface Adapter extends PhysicalFunction {
  /** The names of containers, by the address of the function that they have. */
  readonly holders: ReadonlyMap<string, string>
}

/** The host's adapters whose virtual functions containers can have. */
export class Adapters {
  readonly #records: () => Promise<readonly ContainerRecord[]>
  /** @param records of all containers, once those that were killed have given their devices back */
  constructor(records: () => Promise<readonly ContainerRecord[]>) {
    this.#records = records
  }

  async list(): Promise<Adapter[]> {
    const holders = await this.#holders()
    return physicalFunctions().map((adapter) => ({ ...adapter, holders }))
  }

  /**
   * @param name the adapter's interface or PCI address
   * @throws CoracleError NO_SUCH_DEVICE, INVALID_ARGUMENT, CONFLICT where it has some, DEVICE_UNUSABLE
   */
  async create(name: string, count: number): Promise<Adapter> {
    createFunctions(physicalFunction(name), count)
    return { ...physicalFunction(name), holders: await this.#holders() }
  }

  /** @throws CoracleError NO_SUCH_DEVICE, DEVICE_IN_USE, DEVICE_UNUSABLE */
  async delete(name: string): Promise<void> {
    await this.#records()
    const adapter = physicalFunction(name)
    checkUnclaimed(adapter.functions)
    deleteFunctions(adapter)
  }

  async #holders(): Promise<Map<string, string>> {
    const records = await this.#records()
    const names = new Map(records.map(({ name, spec }) => [spec.runDirectory, name]))
    return new Map(
      [...claimedDevices()].map(([address, owner]) => [address, names.get(owner) ?? 'a former container']),
    )
  }
}
