import { existsSync, readlinkSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { CoracleError } from '../errors.js'
import { HostPci, type HostPciFunction, read } from './pci.js'

/** A virtual function. */
export interface VirtualFunction extends HostPciFunction {
  /** Its number, by which its physical function is told about it. */
  readonly index: number
}

/** An adapter that can be divided (PCI Express Base 5.0 §9). */
export interface PhysicalFunction extends HostPciFunction {
  /** How many virtual functions it can have. */
  readonly total: number
  /** Those that it has. */
  readonly functions: readonly VirtualFunction[]
}

/** Every adapter of the host that can be divided. */
export function physicalFunctions(pci = new HostPci()): PhysicalFunction[] {
  return pci
    .addresses()
    .filter((address) => existsSync(join(pci.folder(address), 'sriov_totalvfs')))
    .map((address) => describe(pci, address))
}

/**
 * @param name of its network interface, or its PCI address
 * @throws CoracleError NO_SUCH_DEVICE, DEVICE_UNUSABLE where it cannot be divided
 */
export function physicalFunction(name: string, pci = new HostPci()): PhysicalFunction {
  const address = pci.ofInterface(name) ?? (name.includes(':') ? pci.find(name).address : undefined)
  if (address === undefined)
    throw new CoracleError(
      'NO_SUCH_DEVICE',
      `this host has no adapter ${name.slice(0, 64)}: name its interface or its PCI address, see coracle sriov ls`,
    )
  if (!existsSync(join(pci.folder(address), 'sriov_totalvfs')))
    throw new CoracleError(
      'DEVICE_UNUSABLE',
      `adapter ${name} has no SR-IOV: see coracle sriov ls for those that do`,
    )
  return describe(pci, address)
}

/**
 * Makes virtual functions. An adapter makes all of its functions at once, so it must have none.
 * @throws CoracleError INVALID_ARGUMENT for more than it can have, CONFLICT where it has some, DEVICE_UNUSABLE
 */
export function createFunctions(target: PhysicalFunction, count: number, pci = new HostPci()): void {
  const name = target.interface ?? target.address
  if (!Number.isInteger(count) || count < 1 || count > target.total)
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `adapter ${name} can have 1 to ${target.total} virtual functions`,
    )
  if (target.functions.length === count) return
  if (target.functions.length > 0)
    throw new CoracleError(
      'CONFLICT',
      `adapter ${name} has ${target.functions.length} virtual functions: an adapter makes them all at once, so ` +
        `delete them first (coracle sriov delete ${name})`,
    )
  setCount(target, count, pci)
}

/** Takes all virtual functions away. @throws CoracleError DEVICE_UNUSABLE */
export function deleteFunctions(target: PhysicalFunction, pci = new HostPci()): void {
  if (target.functions.length > 0) setCount(target, 0, pci)
}

function setCount(target: PhysicalFunction, count: number, pci: HostPci): void {
  try {
    writeFileSync(join(pci.folder(target.address), 'sriov_numvfs'), String(count))
  } catch (error) {
    const why =
      target.driver === undefined
        ? 'no driver has it: load the module of its driver'
        : `its driver ${target.driver} refuses (${(error as NodeJS.ErrnoException).code ?? String(error)}): see the kernel's log`
    throw new CoracleError('DEVICE_UNUSABLE', `adapter ${target.address} cannot be divided: ${why}`, {
      cause: error,
    })
  }
}

function describe(pci: HostPci, address: string): PhysicalFunction {
  const folder = pci.folder(address)
  const functions: VirtualFunction[] = []
  for (let index = 0; ; index++) {
    let target: string
    try {
      target = basename(readlinkSync(join(folder, `virtfn${index}`)))
    } catch {
      break
    }
    functions.push({ ...pci.find(target), index })
  }
  return { ...pci.find(address), total: Number(read(join(folder, 'sriov_totalvfs'))), functions }
}
