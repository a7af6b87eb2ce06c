import { readFileSync, readdirSync, readlinkSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { CoracleError } from '../errors.js'

/** A function's place on the host's PCI buses: domain, bus, device, function. */
const ADDRESS = /^([0-9a-f]{4}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$/i
export const VFIO_PCI = 'vfio-pci'
/**
 * What takes devices for guests, and what maps a guest's memory for them. The first asks for the second by a soft
 * dependency, which small modprobes do not know, and whoever has VFIO's driver alone cannot open a device.
 */
export const VFIO_MODULES = { pci: VFIO_PCI, iommu: 'vfio_iommu_type1' } as const

/** A PCI function of the host, as sysfs tells of it now. */
export interface HostPciFunction {
  /** `0000:01:10.0` */
  readonly address: string
  /** The driver that has it. */
  readonly driver: string | undefined
  /** The number of its IOMMU group; undefined on a host without an IOMMU. */
  readonly group: number | undefined
  /** Such as `pci:v00008086d000010CA…`: what a driver's table of devices is matched with. */
  readonly modalias: string
  /** `8086:10ca` */
  readonly id: string
  /** The first network interface that its driver made. */
  readonly interface: string | undefined
  /** The address of the physical function that a virtual one belongs to. */
  readonly physicalFunction: string | undefined
}

/** The host's PCI functions and their drivers, by sysfs (Linux, Documentation/ABI/testing/sysfs-bus-pci). */
export class HostPci {
  readonly #sysfs: string
  /** @param sysfs where it is mounted */
  constructor(sysfs = '/sys') {
    this.#sysfs = sysfs
  }

  /**
   * @param address as lspci prints it, with or without its domain
   * @throws CoracleError INVALID_ARGUMENT, NO_SUCH_DEVICE
   */
  find(address: string): HostPciFunction {
    if (!ADDRESS.test(address))
      throw new CoracleError(
        'INVALID_ARGUMENT',
        `'${address.slice(0, 64)}' is no PCI address: it is written like 0000:01:10.0`,
      )
    const whole = (address.length === 7 ? `0000:${address}` : address).toLowerCase()
    const folder = this.folder(whole)
    const id = (name: string): string => (read(join(folder, name)) ?? '').replace('0x', '')
    if (!this.has(whole)) throw new CoracleError('NO_SUCH_DEVICE', `this host has no PCI device ${whole}`)
    const group = link(join(folder, 'iommu_group'))
    return {
      address: whole,
      driver: link(join(folder, 'driver')),
      group: group === undefined ? undefined : Number(group),
      modalias: read(join(folder, 'modalias')) ?? '',
      id: `${id('vendor')}:${id('device')}`,
      interface: list(join(folder, 'net'))[0],
      physicalFunction: link(join(folder, 'physfn')),
    }
  }

  /** The addresses of all functions. */
  addresses(): string[] {
    return list(join(this.#sysfs, 'bus/pci/devices'))
  }

  folder(address: string): string {
    return join(this.#sysfs, 'bus/pci/devices', address)
  }

  /** The address of the PCI function behind a network interface. */
  ofInterface(name: string): string | undefined {
    return /^[^/]{1,15}$/.test(name) && !name.startsWith('.')
      ? link(join(this.#sysfs, 'class/net', name, 'device'))
      : undefined
  }

  /** The number of an interface. */
  interfaceIndex(name: string): number {
    return Number(read(join(this.#sysfs, 'class/net', name, 'ifindex')))
  }

  /** Which of the {@link VFIO_MODULES} the host's kernel does not have, as modules or built in. */
  missingModules(): string[] {
    const { pci, iommu } = VFIO_MODULES
    return [
      // Built in, it has a folder too, since it has parameters.
      ...(list(join(this.#sysfs, 'module', iommu)).length > 0 ? [] : [iommu]),
      ...(list(join(this.#sysfs, 'bus/pci/drivers', VFIO_PCI)).length > 0 ? [] : [pci]),
    ]
  }

  /** The functions that share an IOMMU group with this one, itself left out. */
  groupOf(target: HostPciFunction): HostPciFunction[] {
    if (target.group === undefined) return []
    return list(join(this.#sysfs, 'kernel/iommu_groups', String(target.group), 'devices'))
      .filter((address) => address !== target.address)
      .map((address) => this.find(address))
  }

  /**
   * Takes a function from its driver and gives it to vfio-pci.
   * @throws CoracleError VFIO_UNAVAILABLE, DEVICE_UNUSABLE
   */
  bindToVfio(address: string): void {
    const missing = this.missingModules()
    if (missing.length > 0)
      throw new CoracleError(
        'VFIO_UNAVAILABLE',
        `this host's kernel lacks ${missing.join(' and ')}: load what is missing with modprobe`,
      )
    const folder = this.folder(address)
    const { driver } = this.find(address)
    writeFileSync(join(folder, 'driver_override'), VFIO_PCI)
    if (driver === VFIO_PCI) return
    if (driver !== undefined) writeFileSync(join(folder, 'driver/unbind'), address)
    writeFileSync(join(this.#sysfs, 'bus/pci/drivers_probe'), address)
    if (this.find(address).driver !== VFIO_PCI)
      throw new CoracleError(
        'DEVICE_UNUSABLE',
        `vfio-pci does not take device ${address}: see the kernel's log`,
      )
  }

  /** Whether the function is there. */
  has(address: string): boolean {
    return read(join(this.folder(address), 'vendor')) !== undefined
  }

  /**
   * A function's interface on the host, to which udev may be giving another name just now.
   * @throws CoracleError DEVICE_UNUSABLE where its driver made none
   */
  interfaceOf(address: string): { readonly name: string; readonly index: number } {
    const folder = join(this.folder(address), 'net')
    for (let tries = 0; tries < 10; tries++) {
      const [name] = list(folder)
      const index = name === undefined ? undefined : read(join(folder, name, 'ifindex'))
      if (name !== undefined && index !== undefined) return { name, index: Number(index) }
    }
    throw new CoracleError('DEVICE_UNUSABLE', `the driver of device ${address} makes no interface of it`)
  }

  /**
   * Takes a function from vfio-pci and gives it back to a driver, or to none; one that vfio-pci had stays. One that is
   * gone is no error.
   * @param anew begin with it anew also where that driver has it
   * @throws CoracleError DEVICE_UNUSABLE where that driver does not take it
   */
  giveBack(address: string, driver: string | undefined, anew = false): void {
    const folder = this.folder(address)
    if (!this.has(address) || driver === VFIO_PCI) return
    writeFileSync(join(folder, 'driver_override'), '\n')
    const now = link(join(folder, 'driver'))
    if (now === driver && !anew) return
    if (now !== undefined) writeFileSync(join(folder, 'driver/unbind'), address)
    if (driver === undefined) return
    try {
      writeFileSync(join(this.#sysfs, 'bus/pci/drivers', driver, 'bind'), address)
    } catch (error) {
      throw new CoracleError(
        'DEVICE_UNUSABLE',
        `driver ${driver} does not take device ${address} back: ${(error as Error).message}`,
        { cause: error },
      )
    }
  }
}

/** A file's text without its newline; undefined where there is none. */
export function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'latin1').trim()
  } catch {
    return undefined
  }
}

/** The last part of what a link points at. */
function link(path: string): string | undefined {
  try {
    return basename(readlinkSync(path))
  } catch {
    return undefined
  }
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder).sort()
  } catch {
    return []
  }
}
