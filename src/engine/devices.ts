import { randomBytes } from 'node:crypto'
import { isIP } from 'node:net'
import { posix } from 'node:path'
import { CoracleError } from '../errors.js'
import type {
  GuestKernelName,
  IsolationName,
  SandboxDevice,
  SandboxDeviceFile,
} from '../isolation/sandbox.js'
import type { HypervisorChoice } from './host.js'
import type { CreateRequest } from './record.js'

const MAC = /^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/
const NAME = /^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63}$/
const INTERFACE = /^[A-Za-z][A-Za-z0-9_.-]{0,14}$/
const MAX_DEVICES = 8
const ALL_DEVICES: SandboxDeviceFile = { source: '/dev', destination: '/dev', access: 'rwm' }
const MAX_ADDRESSES = 8

const KEYS = 'mac, vlan, name, ip and gateway'

/**
 * A device as a user writes it: `sriov=ADAPTER[,mac=…][,vlan=…][,name=…][,ip=ADDRESS/BITS]…[,gateway=ADDRESS]…` or
 * `pci=ADDRESS`. Where it names no MAC address, the function gets one of its own for the container's life.
 * @throws CoracleError INVALID_ARGUMENT
 */
export function parseDevice(text: string): SandboxDevice {
  const [first = '', ...options] = text.split(',')
  const [kind, target] = pair(first)
  if ((kind !== 'sriov' && kind !== 'pci') || !NAME.test(target))
    throw invalid(
      text,
      'it is sriov=ADAPTER or pci=ADDRESS, or the path of a device file (with --isolation process)',
    )
  if (kind === 'pci') {
    if (options.length > 0) throw invalid(text, 'a device by its address takes no options')
    return { kind, address: target }
  }
  const addresses: string[] = []
  const gateways: string[] = []
  let mac: string | undefined
  let vlan = 0
  let name: string | undefined
  for (const option of options) {
    const [key, value] = pair(option)
    if (key === 'mac') mac = macOf(text, value)
    else if (key === 'vlan') vlan = vlanOf(text, value)
    else if (key === 'name' && INTERFACE.test(value)) name = value
    else if (key === 'ip') addresses.push(addressOf(text, value))
    else if (key === 'gateway' && isIP(value) !== 0) gateways.push(value)
    else throw invalid(text, `'${option.slice(0, 64)}' is none of its options: ${KEYS}`)
  }
  if (addresses.length > MAX_ADDRESSES) throw invalid(text, `it has at most ${MAX_ADDRESSES} addresses`)
  for (const family of [4, 6])
    if (gateways.filter((each) => isIP(each) === family).length > 1)
      throw invalid(text, 'it has one gateway of each family')
  return { kind, adapter: target, mac: mac ?? ownMac(), vlan, addresses, gateways, ...(name ? { name } : {}) }
}

/**
 * What a request says of devices and the guest's kernel, as the sandbox has it.
 * @param choice of the hypervisor; undefined where there is none
 * @throws CoracleError INVALID_ARGUMENT where the isolation has no such thing
 */
export function devicesOf(
  { devices = [], kernel }: Pick<CreateRequest, 'devices' | 'kernel'>,
  isolation: IsolationName,
  choice: HypervisorChoice | undefined,
): { readonly devices?: readonly SandboxDevice[]; readonly kernel?: GuestKernelName } {
  if (kernel !== undefined && isolation !== 'microvm')
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `a kernel goes with isolation microvm: with ${isolation} a container has the host's`,
    )
  if (devices.length > 0 && choice?.hypervisor !== 'kvm') {
    const here = choice ? `--hypervisor qemu (${choice.reason})` : `--isolation ${isolation}`
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `devices of the host go with --isolation microvm --hypervisor kvm, not with ${here}`,
    )
  }
  if (devices.length > MAX_DEVICES)
    throw new CoracleError('INVALID_ARGUMENT', `a container has at most ${MAX_DEVICES} devices of the host`)
  return { ...(devices.length > 0 ? { devices } : {}), ...(kernel === undefined ? {} : { kernel }) }
}

/**
 * Docker's form of a device file, its parts as the API has them.
 * @throws CoracleError INVALID_ARGUMENT
 */
export function deviceFile(source: string, destination: string, access: string): SandboxDeviceFile {
  const place = posix.normalize(destination || source)
  if (!source.startsWith('/') || source.includes('\0') || !place.startsWith('/') || place.includes('\0'))
    throw invalid(`${source}:${destination}`, 'both paths are absolute')
  if (!/^[rwm]{0,3}$/.test(access)) throw invalid(source, `its access is of r, w and m, not '${access}'`)
  return { source: posix.normalize(source), destination: place, access: access || 'rwm' }
}

/** The device files of a container: where it is privileged, all that the host has. */
export function deviceFilesOf(
  { deviceFiles = [], privileged = false }: Pick<CreateRequest, 'deviceFiles' | 'privileged'>,
  isolation: IsolationName,
): { readonly deviceFiles?: readonly SandboxDeviceFile[] } {
  if (isolation !== 'process') return {}
  const all = privileged ? [...deviceFiles, ALL_DEVICES] : deviceFiles
  return all.length > 0 ? { deviceFiles: all } : {}
}

function pair(text: string): [string, string] {
  const at = text.indexOf('=')
  return at < 0 ? [text, ''] : [text.slice(0, at), text.slice(at + 1)]
}

const invalid = (text: string, why: string): CoracleError =>
  new CoracleError('INVALID_ARGUMENT', `invalid device '${text.slice(0, 128)}': ${why}`)

function macOf(text: string, value: string): string {
  const mac = value.toLowerCase()
  // The lowest bit of the first octet is that of groups.
  if (MAC.test(mac) && mac !== '00:00:00:00:00:00' && (parseInt(mac.slice(0, 2), 16) & 1) === 0) return mac
  throw invalid(text, `'${value.slice(0, 32)}' is no MAC address of one interface, such as 02:00:00:00:00:01`)
}

function vlanOf(text: string, value: string): number {
  const vlan = /^\d{1,4}$/.test(value) ? Number(value) : 0
  if (vlan >= 1 && vlan <= 4094) return vlan
  throw invalid(text, 'a VLAN is 1 to 4094')
}

function addressOf(text: string, value: string): string {
  const [address = '', bits = '', ...more] = value.split('/')
  const family = isIP(address)
  if (
    family !== 0 &&
    more.length === 0 &&
    /^\d{1,3}$/.test(bits) &&
    Number(bits) <= (family === 4 ? 32 : 128)
  )
    return value
  throw invalid(text, `'${value.slice(0, 64)}' is no address with its prefix, such as 10.0.0.2/24`)
}

/** One of those that anybody may give (the second bit of the first octet). */
function ownMac(): string {
  return ['02', ...[...randomBytes(5)].map((octet) => octet.toString(16).padStart(2, '0'))].join(':')
}
