import {
  ACPI_AREA,
  ECAM,
  ECAM_SIZE,
  GENERATION_ID,
  IOAPIC_ADDRESS,
  LOCAL_APIC_ADDRESS,
  ONE_MIB,
  PCI_WINDOW,
  PCI_WINDOW64,
  PCI_WINDOW64_SIZE,
  PCI_WINDOW_SIZE,
} from '../memory/layout.js'
import type { Ram } from '../memory/ram.js'
import { POWER_PORT, RESET_PORT, RESET_VALUE, SLEEP_TYPE_OFF } from '../devices/power.js'
import { GENERATION_GSI } from '../devices/generation.js'
import { COM1, COM1_GSI } from '../devices/serial.js'
import * as aml from './aml.js'

/*
 * Firmware tables (ACPI 6.5 §5.2), laid from ACPI_AREA up. The hardware-reduced model: no SCI, no PM timer, no fixed
 * registers, so a kernel neither probes nor polls them, and power goes through the sleep control and reset registers
 * (§4.8.3.7, §4.8.3.6).
 */
const HEADER = 36
const OEM_ID = 'CORCLE'
const OEM_TABLE_ID = 'MICROVM '
const CREATOR_ID = 'CRCL'

/**
 * Where real mode begins after a reset, and where a kernel jumps that wants one and knows no better:
 * `mov dx, RESET_PORT; mov al, RESET_VALUE; out dx, al; hlt`.
 */
const RESET_VECTOR = 0xf_fff0
const RESET_CODE = [0xba, RESET_PORT & 0xff, RESET_PORT >> 8, 0xb0, RESET_VALUE, 0xee, 0xf4]

/** FADT flags (§5.2.9): no power and sleep buttons in fixed hardware, reset register, reduced hardware. */
const WBINVD = 1 << 0
const PWR_BUTTON = 1 << 4
const SLP_BUTTON = 1 << 5
const RESET_REG_SUP = 1 << 10
const HW_REDUCED_ACPI = 1 << 20
/** IA-PC boot flags (§5.2.9.3): neither VGA nor CMOS clock, and no 8042 since its bit is clear. */
const VGA_NOT_PRESENT = 1 << 2
const CMOS_RTC_NOT_PRESENT = 1 << 5

const MADT_LOCAL_APIC = 0
const MADT_IO_APIC = 1
const MADT_LOCAL_X2APIC = 9
const APIC_ENABLED = 1
/** APIC ids from here on do not fit the xAPIC's entry. */
const FIRST_X2APIC_ID = 255

/**
 * Writes the tables into the guest's memory.
 * @param cpus number of processors, whose APIC ids are 0 up
 * @returns the guest-physical address of the RSDP
 */
export function writeAcpiTables(ram: Ram, cpus: number): number {
  const area = ram.bytes(ACPI_AREA, ONE_MIB - ACPI_AREA)
  let at = 64
  const place = (table: Uint8Array): number => {
    if (at + table.length > GENERATION_ID - ACPI_AREA) throw new RangeError('the ACPI tables do not fit')
    area.set(table, at)
    const address = ACPI_AREA + at
    at = Math.ceil((at + table.length) / 16) * 16
    return address
  }
  const differentiated = place(dsdt())
  const tables = [place(fadt(differentiated)), place(madt(cpus)), place(mcfg())]
  area.set(rsdp(place(xsdt(tables))))
  area.set(RESET_CODE, RESET_VECTOR - ACPI_AREA)
  return ACPI_AREA
}

/** Root System Description Pointer (§5.2.5.3), revision 2. */
function rsdp(xsdtAddress: number): Uint8Array {
  const table = new Uint8Array(36)
  const view = new DataView(table.buffer)
  table.set(Buffer.from('RSD PTR ', 'latin1'))
  table.set(Buffer.from(OEM_ID, 'latin1'), 9)
  view.setUint8(15, 2)
  view.setUint32(20, table.length, true)
  view.setBigUint64(24, BigInt(xsdtAddress), true)
  view.setUint8(8, checksum(table.subarray(0, 20)))
  view.setUint8(32, checksum(table))
  return table
}

function xsdt(tables: readonly number[]): Uint8Array {
  return table('XSDT', 1, HEADER + tables.length * 8, (view) =>
    tables.forEach((address, i) => view.setBigUint64(HEADER + i * 8, BigInt(address), true)),
  )
}

/** Fixed ACPI Description Table (§5.2.9), revision 6.5. */
function fadt(dsdtAddress: number): Uint8Array {
  return table('FACP', 6, 276, (view) => {
    view.setUint16(109, VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT, true)
    view.setUint32(112, WBINVD | PWR_BUTTON | SLP_BUTTON | RESET_REG_SUP | HW_REDUCED_ACPI, true)
    portAddress(view, 116, RESET_PORT)
    view.setUint8(128, RESET_VALUE)
    view.setUint8(131, 5)
    view.setBigUint64(140, BigInt(dsdtAddress), true)
    // Sleep control and sleep status: one port, which reads as "not awake from anything".
    portAddress(view, 244, POWER_PORT)
    portAddress(view, 256, POWER_PORT)
  })
}

/** Multiple APIC Description Table (§5.2.12). */
function madt(cpus: number): Uint8Array {
  const sizes = Array.from({ length: cpus }, (_, id) => (id < FIRST_X2APIC_ID ? 8 : 16))
  const length = HEADER + 8 + sizes.reduce((sum, size) => sum + size, 0) + 12
  return table('APIC', 5, length, (view) => {
    view.setUint32(HEADER, LOCAL_APIC_ADDRESS, true)
    let at = HEADER + 8
    sizes.forEach((size, id) => {
      view.setUint8(at + 1, size)
      if (id < FIRST_X2APIC_ID) {
        view.setUint8(at, MADT_LOCAL_APIC)
        view.setUint8(at + 2, id)
        view.setUint8(at + 3, id)
        view.setUint32(at + 4, APIC_ENABLED, true)
      } else {
        view.setUint8(at, MADT_LOCAL_X2APIC)
        view.setUint32(at + 4, id, true)
        view.setUint32(at + 8, APIC_ENABLED, true)
        view.setUint32(at + 12, id, true)
      }
      at += size
    })
    view.setUint8(at, MADT_IO_APIC)
    view.setUint8(at + 1, 12)
    view.setUint32(at + 4, IOAPIC_ADDRESS, true)
  })
}

/** Memory-mapped configuration space (PCI Firmware Specification 3.3 §4.1.2): bus 0 of segment 0. */
function mcfg(): Uint8Array {
  return table('MCFG', 1, HEADER + 8 + 16, (view) => view.setBigUint64(HEADER + 8, BigInt(ECAM), true))
}

/** Differentiated System Description Table: what cannot be probed. */
function dsdt(): Uint8Array {
  const code = Buffer.concat([
    aml.name('_S5', aml.pack(aml.integer(SLEEP_TYPE_OFF), aml.integer(0), aml.integer(0), aml.integer(0))),
    aml.scope(
      '_SB',
      aml.device(
        'PCI0',
        aml.name('_HID', aml.eisaId('PNP0A08')),
        aml.name('_CID', aml.eisaId('PNP0A03')),
        aml.name('_UID', aml.integer(0)),
        aml.name('_SEG', aml.integer(0)),
        aml.name('_BBN', aml.integer(0)),
        aml.name(
          '_CRS',
          aml.resources(
            aml.busNumbers(0, 0),
            aml.memoryWindow32(PCI_WINDOW, PCI_WINDOW_SIZE),
            aml.memoryWindow64(PCI_WINDOW64, PCI_WINDOW64_SIZE),
          ),
        ),
      ),
      // Reserves the ECAM: without it Linux does not trust MCFG.
      aml.device(
        'MBRD',
        aml.name('_HID', aml.eisaId('PNP0C02')),
        aml.name('_UID', aml.integer(0)),
        aml.name('_CRS', aml.resources(aml.memory32Fixed(ECAM, ECAM_SIZE))),
      ),
      aml.device(
        'COM1',
        aml.name('_HID', aml.eisaId('PNP0501')),
        aml.name('_UID', aml.integer(0)),
        aml.name('_CRS', aml.resources(aml.io(COM1, 8), aml.interrupt(COM1_GSI))),
      ),
      // The generation identifier, known by its compatible ids, and where it lies: the address's low and high half.
      aml.device(
        'VGEN',
        aml.name('_HID', aml.string('CRCL0001')),
        aml.name('_CID', aml.pack(aml.string('VM_Gen_Counter'), aml.string('VMGENCTR'))),
        aml.name('_DDN', aml.string('VM_Gen_Counter')),
        aml.name('ADDR', aml.pack(aml.integer(GENERATION_ID), aml.integer(0))),
      ),
      aml.device(
        'GED',
        aml.name('_HID', aml.string('ACPI0013')),
        aml.name('_UID', aml.integer(0)),
        aml.name('_CRS', aml.resources(aml.interrupt(GENERATION_GSI))),
        aml.method('_EVT', 1, aml.notify('_SB', 'VGEN', 0x80)),
      ),
    ),
  ])
  return table('DSDT', 6, HEADER + code.length, (_, bytes) => bytes.set(code, HEADER))
}

/** A system description table: its header (§5.2.6), what `fill` puts behind it, and the checksum over all. */
function table(
  signature: string,
  revision: number,
  length: number,
  fill: (view: DataView, bytes: Uint8Array) => void,
): Uint8Array {
  const bytes = new Uint8Array(length)
  const view = new DataView(bytes.buffer)
  bytes.set(Buffer.from(signature, 'latin1'))
  view.setUint32(4, length, true)
  view.setUint8(8, revision)
  bytes.set(Buffer.from(OEM_ID + OEM_TABLE_ID, 'latin1'), 10)
  view.setUint32(24, 1, true)
  bytes.set(Buffer.from(CREATOR_ID, 'latin1'), 28)
  view.setUint32(32, 1, true)
  fill(view, bytes)
  view.setUint8(9, checksum(bytes))
  return bytes
}

/** Generic Address Structure (§5.2.3.2) of one byte-wide port. */
function portAddress(view: DataView, at: number, port: number): void {
  view.setUint8(at, 1)
  view.setUint8(at + 1, 8)
  view.setUint8(at + 3, 1)
  view.setBigUint64(at + 4, BigInt(port), true)
}

/** What makes the sum of all bytes zero. */
function checksum(bytes: Uint8Array): number {
  return -bytes.reduce((sum, byte) => sum + byte, 0) & 0xff
}
