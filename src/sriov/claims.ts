import { readFileSync, readdirSync, renameSync, rmSync, writeFileSync, existsSync } from 'node:fs'
import { join } from 'node:path'
import { run, toolCommand, withFileLock } from '../debian/index.js'
import { CoracleError } from '../errors.js'
import { paths } from '../paths.js'
import { HostPci, type HostPciFunction, VFIO_PCI, read } from './pci.js'
import { type VirtualFunction, physicalFunction } from './physical-function.js'
import { type PortSettings, getPort, renameInterface, setPort } from './port-settings.js'

/** A device of the host that a container is to have. */
export type WantedDevice =
  /** Any free virtual function of an adapter, named by its interface or its PCI address. */
  | ({ readonly kind: 'sriov'; readonly adapter: string } & PortSettings)
  | { readonly kind: 'pci'; readonly address: string }

/** What is known of a device that is somebody's: enough to give it back. One file each. */
interface Claim {
  /** The run folder of the container that has it: a claim whose folder is gone is nobody's. */
  readonly owner: string
  /** Among the owner's devices. */
  readonly order: number
  readonly address: string
  readonly driver?: string
  /** Its interface on the host, where the container has that alone, and the driver is the host's. */
  readonly interface?: string
  readonly port?: { readonly adapter: string; readonly index: number; readonly before: PortSettings }
}

/** How this host is set up; tests have their own. */
export interface ClaimPlace {
  readonly pci: HostPci
  /** Where claims are kept: on a tmpfs, since no binding outlives a reboot. */
  readonly folder: string
  setPort(interfaceIndex: number, vf: number, settings: PortSettings): void
  getPort(interfaceIndex: number, vf: number): PortSettings
  renameInterface(interfaceIndex: number, name: string): void
}

const place = (): ClaimPlace => ({
  pci: new HostPci(),
  folder: join(paths.run, 'devices'),
  setPort,
  getPort,
  renameInterface,
})

const CLASS_STORAGE = '0x01'
const CLASS_BRIDGE = '0x06'
const IFF_UP = 1

/**
 * Takes devices from the host for a container and binds them to vfio-pci: all of them or none. What has to be undone is
 * on disk before it is done, so {@link releaseDevices} can give back what a killed process took.
 * @param owner the container's run folder, which is there
 * @throws CoracleError NO_SUCH_DEVICE, DEVICE_IN_USE, DEVICE_UNUSABLE, VFIO_UNAVAILABLE, INVALID_ARGUMENT
 */
export async function claimDevices(
  owner: string,
  wanted: readonly WantedDevice[],
  at = place(),
): Promise<HostPciFunction[]> {
  if (wanted.length === 0) return []
  await loadVfio(at.pci)
  return locked(at, () => {
    takeBack(at)
    try {
      return wanted.map((one, order) => take(at, owner, one, order))
    } catch (error) {
      for (const claim of claims(at)) if (claim.owner === owner) undo(at, claim)
      throw error
    }
  })
}

/**
 * Takes a free virtual function from the host for a container that has the host's kernel: its driver stays, and begins
 * anew with what the adapter was told. As with {@link claimDevices} what has to be undone is on disk first.
 * @param order among the owner's, by which {@link releaseDevices} can give back this one alone
 * @returns the number of its interface, which is down, wherever the driver put it
 * @throws CoracleError NO_SUCH_DEVICE, DEVICE_IN_USE, DEVICE_UNUSABLE
 */
export async function claimInterface(
  owner: string,
  order: number,
  { adapter, ...settings }: { readonly adapter: string } & PortSettings,
  at = place(),
): Promise<number> {
  return locked(at, () => {
    takeBack(at)
    const device = freeFunction(at, adapter, 'interface')
    const claim = write(at, { owner, order, interface: device.interface! }, device, adapter)
    try {
      if (claim.port) at.setPort(at.pci.interfaceIndex(claim.port.adapter), claim.port.index, settings)
      at.pci.giveBack(device.address, device.driver, true)
      return at.pci.interfaceOf(device.address).index
    } catch (error) {
      undo(at, claim)
      throw error
    }
  })
}

/** What those left who are no more. */
function takeBack(at: ClaimPlace): void {
  for (const claim of claims(at)) if (!existsSync(claim.owner)) undo(at, claim)
}

async function loadVfio(pci: HostPci): Promise<void> {
  for (const module of pci.missingModules()) {
    const { argv, env } = await toolCommand('modprobe')
    // What it could not load is missed in a moment, by name.
    await run([...argv, module], { env: { ...process.env, ...env } })
  }
}

/**
 * Gives a container's devices back to the drivers that had them. Its processes must be gone, but for those that have an
 * interface alone. Idempotent.
 * @param order of the one to give back @default all
 * @returns what could not be put right, one line each
 */
export async function releaseDevices(owner: string, order?: number, at = place()): Promise<string[]> {
  const isMeant = (claim: Claim): boolean =>
    claim.owner === owner && (order === undefined || claim.order === order)
  if (!claims(at).some(isMeant)) return []
  return locked(at, () => claims(at).flatMap((claim) => (isMeant(claim) ? undo(at, claim) : [])))
}

/** The devices that a container has now, in the order in which it asked for them. */
export function devicesOf(owner: string, at = place()): HostPciFunction[] {
  return claims(at)
    .filter((claim) => claim.owner === owner)
    .sort((a, b) => a.order - b.order)
    .map(({ address }) => at.pci.find(address))
}

/** Addresses of the devices that containers have, and whose they are. */
export function claimedDevices(at = place()): Map<string, string> {
  return new Map(claims(at).map(({ address, owner }) => [address, owner]))
}

/** @throws CoracleError DEVICE_IN_USE where a container has one of these */
export function checkUnclaimed(functions: readonly HostPciFunction[], at = place()): void {
  const taken = claimedDevices(at)
  const one = functions.find(({ address }) => taken.has(address))
  if (one) throw new CoracleError('DEVICE_IN_USE', `a container has device ${one.address}: stop it first`)
}

function locked<T>(at: ClaimPlace, work: () => T): Promise<T> {
  return withFileLock(join(at.folder, 'lock'), () => Promise.resolve(work()))
}

function claims({ folder }: ClaimPlace): Claim[] {
  let names: string[]
  try {
    names = readdirSync(folder)
  } catch {
    return []
  }
  return names
    .filter((name) => name.endsWith('.json'))
    .map((name) => JSON.parse(readFileSync(join(folder, name), 'utf8')) as Claim)
}

function take(at: ClaimPlace, owner: string, wanted: WantedDevice, order: number): HostPciFunction {
  const { pci } = at
  const device =
    wanted.kind === 'sriov' ? freeFunction(at, wanted.adapter) : free(at, pci.find(wanted.address))
  checkGroup(pci, device)
  const { port } = write(at, { owner, order }, device, wanted.kind === 'sriov' ? wanted.adapter : undefined)
  if (wanted.kind === 'sriov' && port)
    at.setPort(pci.interfaceIndex(port.adapter), port.index, { mac: wanted.mac, vlan: wanted.vlan })
  pci.bindToVfio(device.address)
  return device
}

/** Has the claim on disk. @param adapter that the device is a virtual function of */
function write(
  at: ClaimPlace,
  whose: Pick<Claim, 'owner' | 'order' | 'interface'>,
  device: HostPciFunction,
  adapter: string | undefined,
): Claim {
  const { address, driver } = device
  const port = adapter === undefined ? undefined : portOf(at, adapter, device as VirtualFunction)
  const claim: Claim = {
    ...whose,
    address,
    ...(driver === undefined ? {} : { driver }),
    ...(port ? { port } : {}),
  }
  const path = join(at.folder, `${address}.json`)
  writeFileSync(`${path}.new`, JSON.stringify(claim))
  renameSync(`${path}.new`, path)
  return claim
}

function portOf(at: ClaimPlace, adapter: string, device: VirtualFunction): Claim['port'] {
  const name = physicalFunction(adapter, at.pci).interface
  // No network adapter: nothing to set.
  if (name === undefined) return undefined
  return { adapter: name, index: device.index, before: at.getPort(at.pci.interfaceIndex(name), device.index) }
}

/** A virtual function that nobody has. @param part of it that is wanted: an interface needs a driver of the host's */
function freeFunction(
  at: ClaimPlace,
  adapter: string,
  part: 'device' | 'interface' = 'device',
): VirtualFunction {
  const { functions, total, interface: name = adapter } = physicalFunction(adapter, at.pci)
  const taken = claimedDevices(at)
  const free = functions.filter(
    (each) => !taken.has(each.address) && each.driver !== VFIO_PCI && !isUp(at.pci, each),
  )
  const one = free.find((each) => part === 'device' || each.interface !== undefined)
  if (one) return one
  throw new CoracleError(
    'DEVICE_IN_USE',
    functions.length === 0
      ? `adapter ${name} has no virtual functions: make some with coracle sriov create ${name} N (up to ${total})`
      : free.length > 0
        ? `the free virtual functions of ${name} have no interface on this host: load the module of their driver, or ` +
          'take one back from whoever has it in a network namespace'
        : `all ${functions.length} virtual functions of ${name} are in use: stop a container that has one, or make more`,
  )
}

function free(at: ClaimPlace, device: HostPciFunction): HostPciFunction {
  const { address, driver } = device
  checkUnclaimed([device], at)
  const refuse = (why: string): never => {
    throw new CoracleError('DEVICE_IN_USE', `the host uses device ${address}: ${why}`)
  }
  if (isUp(at.pci, device))
    refuse(`its interface ${device.interface} is up; take it down first (ip link set down)`)
  const kind = read(join(at.pci.folder(address), 'class')) ?? ''
  // What is mounted from a disk is not seen here, so its controller is given away by hand or not at all.
  if (kind.startsWith(CLASS_STORAGE) && driver !== undefined && driver !== VFIO_PCI)
    refuse(
      `driver ${driver} has its disks; unbind it first (echo ${address} > /sys/bus/pci/drivers/${driver}/unbind)`,
    )
  if (kind.startsWith(CLASS_BRIDGE))
    throw new CoracleError('DEVICE_UNUSABLE', `device ${address} is a bridge`)
  return device
}

/** Whether the host uses its network interface. */
function isUp(pci: HostPci, device: HostPciFunction): boolean {
  if (device.interface === undefined) return false
  return (Number(read(join(pci.folder(device.address), 'net', device.interface, 'flags'))) & IFF_UP) !== 0
}

/** All of an IOMMU group goes to one guest or stays: its devices can reach each other past the IOMMU. */
function checkGroup(pci: HostPci, device: HostPciFunction): void {
  if (device.group === undefined)
    throw new CoracleError(
      'VFIO_UNAVAILABLE',
      `device ${device.address} is behind no IOMMU: switch VT-d or AMD-Vi on in the firmware, and boot this host with ` +
        'intel_iommu=on or amd_iommu=on',
    )
  const others = pci
    .groupOf(device)
    .filter(({ driver }) => driver !== undefined && driver !== VFIO_PCI)
    .filter(({ address }) => read(join(pci.folder(address), 'class'))?.startsWith(CLASS_BRIDGE) !== true)
  if (others.length === 0) return
  const names = others.map(({ address, driver }) => `${address} (${driver})`).join(', ')
  throw new CoracleError(
    'DEVICE_UNUSABLE',
    `device ${device.address} shares its IOMMU group with ${names}: give those to vfio-pci too, or put the adapter ` +
      'into another slot',
  )
}

/** @returns what went wrong; the claim is gone either way */
function undo(at: ClaimPlace, { address, driver, interface: name, port }: Claim): string[] {
  const wrong: string[] = []
  const attempt = (action: () => void): void => {
    try {
      action()
    } catch (error) {
      wrong.push(`device ${address}: ${(error as Error).message}`)
    }
  }
  // The driver reads its address when it gets the device.
  if (port) attempt(() => at.setPort(at.pci.interfaceIndex(port.adapter), port.index, port.before))
  // Begun anew, its interface is the host's, whatever network namespace it was in, and whether that is there or not.
  attempt(() => at.pci.giveBack(address, driver, name !== undefined))
  attempt(() => {
    if (name === undefined || !at.pci.has(address)) return
    const now = at.pci.interfaceOf(address)
    if (now.name !== name) at.renameInterface(now.index, name)
  })
  rmSync(join(at.folder, `${address}.json`), { force: true })
  return wrong
}
