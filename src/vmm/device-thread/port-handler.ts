import { CONTINUE, type ExitHandler, MMIO, PIO, POWER_OFF, RESET } from '../../kvm/exit-handler.js'
import { COM1, COM1_PORTS } from '../devices/serial.js'
import { I8042_COMMAND, powerRequest } from '../devices/power.js'
import { ECAM, ECAM_SIZE, PCI_WINDOW, PCI_WINDOW64, PCI_WINDOW64_SIZE } from '../memory/layout.js'

/** What accesses are counted as, by index in the shared counts. */
export const ACCESS_KINDS = [
  'serial',
  'power',
  'ignored-port',
  'pci-config',
  'pci-bar',
  'ignored-memory',
] as const
const SERIAL = 0
const POWER = 1
const IGNORED_PORT = 2
const PCI_CONFIG = 3
const PCI_BAR = 4
const IGNORED_MEMORY = 5

/** Shared by all vCPUs of a machine; a lost count under a race is accepted. */
export function newAccessCounts(): SharedArrayBuffer {
  return new SharedArrayBuffer(ACCESS_KINDS.length * 8)
}

/**
 * The part of the machine that each vCPU's thread answers itself, at the cost of no other thread: the ports that end
 * the guest, and all the places where nothing is (which read as ones). The rest goes on to the devices.
 *
 * Configuration mechanism 1 (0xcf8) is among what is not there: a guest that finds none uses the ECAM alone, which it
 * reads without exits.
 */
export function createHandler(data: unknown, next: ExitHandler | undefined): ExitHandler {
  const counts = new Float64Array(data as SharedArrayBuffer)
  if (!next) throw new TypeError('the devices are on another thread')
  return {
    access(space, address, size, isWrite, view, offset) {
      if (space === MMIO) {
        const wide = address >= PCI_WINDOW64 && address < PCI_WINDOW64 + PCI_WINDOW64_SIZE
        if (wide || (address >= PCI_WINDOW && address < ECAM + ECAM_SIZE)) {
          counts[address >= ECAM && !wide ? PCI_CONFIG : PCI_BAR]!++
          return next.access(space, address, size, isWrite, view, offset)
        }
        counts[IGNORED_MEMORY]!++
      } else if (address >= COM1 && address < COM1 + COM1_PORTS) {
        counts[SERIAL]!++
        return next.access(space, address, size, isWrite, view, offset)
      } else if (isWrite) {
        const request = powerRequest(address, view.getUint8(offset))
        counts[request ? POWER : IGNORED_PORT]!++
        if (request) return request === 'reset' ? RESET : POWER_OFF
      } else counts[IGNORED_PORT]!++
      // The 8042's status reads as "ready for a command", since a kernel waits for that before it pulses reset.
      const empty = space === PIO && address === I8042_COMMAND ? 0 : 0xff
      if (!isWrite) for (let i = 0; i < size; i++) view.setUint8(offset + i, empty)
      return CONTINUE
    },
  }
}
