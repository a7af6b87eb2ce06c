import { CoracleError } from '../../errors.js'
import { PCI_CAPABILITY_LIST, PCI_STATUS, PCI_STATUS_CAP_LIST } from '../pci/function.js'
import { PCI_CAP_ID_MSIX } from '../pci/msix.js'

/** linux/pci_regs.h */
export const PCI_CAP_ID_VNDR = 0x09
export const PCI_CAP_ID_EXP = 0x10
export const PCI_EXP_DEVCTL = 8
export const PCI_EXP_DEVCTL_BCR_FLR = 0x8000
const PCI_EXP_FLAGS_VERS = 0x000f
const PCI_EXP_TYPE_RC_END = 0x9
const PCI_EXP_DEVSTA = 10
const PCI_EXP_LNKCAP = 12
const PCI_EXP_DEVCAP2 = 36
/** The capability's length for a device of a root complex, by version: link, slot and root are left out. */
const EXPRESS_SIZE = [0, 12, 60] as const
const PCI_MSIX_FLAGS_QSIZE = 0x7ff
const PCI_MSIX_TABLE_BIR = 7
const PCI_EXT_CAP_ID_DSN = 3
const DSN_SIZE = 12
const STANDARD = 0x40
const EXTENDED = 0x100
const MAX_CAPABILITIES = 48
const MAX_EXTENDED = 256

/** A capability that the guest gets to see, at the offset that it has on the host. */
export interface ShownCapability {
  readonly id: number
  readonly at: number
  /** What follows id and link. */
  readonly body: Uint8Array
}

/** Where MSI-X has its things (PCI Local Bus 3.0 §6.8.2). */
export interface MsixPlace {
  readonly at: number
  readonly count: number
  readonly bar: number
  readonly table: number
  readonly pendingBar: number
  readonly pending: number
}

export interface Capabilities {
  readonly shown: readonly ShownCapability[]
  readonly msix: MsixPlace | undefined
  /** Extended capabilities as the guest reads them, from 0x100 on. */
  readonly extended: Uint8Array
}

/**
 * What of a device's configuration space the guest may know. It is a list of what is let through: MSI-X, PCI Express
 * (as of a device inside the root complex, since the guest has no root port), vendor-specific ones, and the serial
 * number. All others stay the host's, among them power, MSI, SR-IOV, error reporting, address translation (ATS, PRI,
 * PASID), resizing of BARs, and vital product data.
 *
 * @param config the device's configuration space: it may say anything
 */
export function readCapabilities(config: Uint8Array): Capabilities {
  const view = new DataView(config.buffer, config.byteOffset, config.byteLength)
  const found: { at: number; id: number }[] = []
  let at =
    (view.getUint16(PCI_STATUS, true) & PCI_STATUS_CAP_LIST) !== 0 ? view.getUint8(PCI_CAPABILITY_LIST) : 0
  while ((at &= 0xfc) >= STANDARD && found.length < MAX_CAPABILITIES && !found.some((one) => one.at === at)) {
    found.push({ at, id: view.getUint8(at) })
    at = view.getUint8(at + 1)
  }
  const shown: ShownCapability[] = []
  let msix: MsixPlace | undefined
  for (const { at, id } of found) {
    // No capability reaches into the next one, whatever it says of itself.
    const end = Math.min(EXTENDED, ...found.map((one) => one.at).filter((other) => other > at))
    if (id === PCI_CAP_ID_MSIX && !msix && at + 12 <= end) msix = msixPlace(view, at)
    else if (id === PCI_CAP_ID_EXP && !shown.some((one) => one.id === id)) {
      const body = express(config.subarray(at, end))
      if (body) shown.push({ id, at, body })
    } else if (id === PCI_CAP_ID_VNDR) {
      const length = Math.min(view.getUint8(at + 2), end - at)
      if (length > 2) shown.push({ id, at, body: config.slice(at + 2, at + length) })
    }
  }
  return { shown, msix, extended: extended(view) }
}

function msixPlace(view: DataView, at: number): MsixPlace {
  const table = view.getUint32(at + 4, true)
  const pending = view.getUint32(at + 8, true)
  return {
    at,
    count: (view.getUint16(at + 2, true) & PCI_MSIX_FLAGS_QSIZE) + 1,
    bar: table & PCI_MSIX_TABLE_BIR,
    table: (table & ~PCI_MSIX_TABLE_BIR) >>> 0,
    pendingBar: pending & PCI_MSIX_TABLE_BIR,
    pending: (pending & ~PCI_MSIX_TABLE_BIR) >>> 0,
  }
}

/** PCI Express Base 5.0 §7.5.3, as of an endpoint that is integrated into the root complex. */
function express(capability: Uint8Array): Uint8Array | undefined {
  const version = capability[2]! & PCI_EXP_FLAGS_VERS
  const size = EXPRESS_SIZE[Math.min(version, 2)]!
  if (size === 0 || capability.length < size) return undefined
  const body = capability.slice(2, size)
  const view = new DataView(body.buffer)
  view.setUint16(0, (view.getUint16(0, true) & PCI_EXP_FLAGS_VERS) | (PCI_EXP_TYPE_RC_END << 4), true)
  view.setUint16(PCI_EXP_DEVCTL - 2, view.getUint16(PCI_EXP_DEVCTL - 2, true) & ~PCI_EXP_DEVCTL_BCR_FLR, true)
  view.setUint16(PCI_EXP_DEVSTA - 2, 0, true)
  body.fill(0, PCI_EXP_LNKCAP - 2, PCI_EXP_DEVCAP2 - 2)
  body.fill(0, PCI_EXP_DEVCAP2 - 2)
  return body
}

/** The serial number alone, moved to the front. */
function extended(view: DataView): Uint8Array {
  const seen = new Set<number>()
  let at = EXTENDED
  while (at >= EXTENDED && at + DSN_SIZE <= view.byteLength && !seen.has(at) && seen.size < MAX_EXTENDED) {
    seen.add(at)
    const header = view.getUint32(at, true)
    if ((header & 0xffff) === PCI_EXT_CAP_ID_DSN) {
      const bytes = new Uint8Array(view.buffer, view.byteOffset + at, DSN_SIZE).slice()
      new DataView(bytes.buffer).setUint32(0, header & 0xf_ffff, true)
      return bytes
    }
    at = (header >>> 20) & 0xffc
  }
  return new Uint8Array(0)
}

/** @throws CoracleError DEVICE_UNUSABLE where the device cannot interrupt the guest, or says where it never could */
export function checkMsix(
  name: string,
  msix: MsixPlace | undefined,
  bars: readonly ({ readonly size: number } | undefined)[],
): MsixPlace {
  if (!msix)
    throw new CoracleError(
      'DEVICE_UNUSABLE',
      `host device ${name} has no MSI-X: a guest takes interrupts of no other kind`,
    )
  const fits = (bar: number, end: number): boolean => end <= (bars[bar]?.size ?? 0)
  const table = fits(msix.bar, msix.table + msix.count * 16)
  if (table && fits(msix.pendingBar, msix.pending + Math.ceil(msix.count / 64) * 8)) return msix
  throw new CoracleError('DEVICE_UNUSABLE', `host device ${name} has its MSI-X table outside its BARs`)
}
