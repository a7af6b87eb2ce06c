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
  readonly #records: () => readonly ContainerRecord[]
  constructor(records: () => readonly ContainerRecord[]) {
    this.#records = records
  }

  list(): Adapter[] {
    const holders = this.#holders()
    return physicalFunctions().map((adapter) => ({ ...adapter, holders }))
  }

  /**
   * @param name the adapter's interface or PCI address
   * @throws CoracleError NO_SUCH_DEVICE, INVALID_ARGUMENT, CONFLICT where it has some, DEVICE_UNUSABLE
   */
  create(name: string, count: number): Adapter {
    createFunctions(physicalFunction(name), count)
    return { ...physicalFunction(name), holders: this.#holders() }
  }

  /** @throws CoracleError NO_SUCH_DEVICE, DEVICE_IN_USE, DEVICE_UNUSABLE */
  delete(name: string): void {
    const adapter = physicalFunction(name)
    checkUnclaimed(adapter.functions)
    deleteFunctions(adapter)
  }

  #holders(): Map<string, string> {
    const names = new Map(this.#records().map(({ name, spec }) => [spec.runDirectory, name]))
    return new Map(
      [...claimedDevices()].map(([address, owner]) => [address, names.get(owner) ?? 'a former container']),
    )
  }
}
