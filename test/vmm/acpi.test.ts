import t from 'tap'
import * as aml from '../../src/vmm/acpi/aml.js'
import { writeAcpiTables } from '../../src/vmm/acpi/tables.js'
import { ECAM, GENERATION_ID, MIB } from '../../src/vmm/memory/layout.js'
import { Ram } from '../../src/vmm/memory/ram.js'

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex')

t.test('terms are encoded as ACPI 6.5 §20 has them', async (t) => {
  t.equal(hex(aml.integer(0)), '00')
  t.equal(hex(aml.integer(1)), '01')
  t.equal(hex(aml.integer(0xff)), '0aff')
  t.equal(hex(aml.integer(0x100)), '0b0001')
  t.equal(hex(aml.integer(0x1_0000)), '0c00000100')
  t.equal(hex(aml.integer(1n << 32n)), '0e0000000001000000')
  t.equal(hex(aml.eisaId('PNP0A08')), '0c41d00a08')
  t.equal(hex(aml.name('_S5', aml.pack(aml.integer(5)))), '085f53355f' + '1204' + '01' + '0a05')
  t.equal(hex(aml.string('ab')), '0d616200')
  t.equal(
    hex(aml.method('_EVT', 1, aml.notify('_SB', 'VGEN', 0x80))),
    '1413' + '5f455654' + '01' + '86' + '5c2e' + '5f53425f' + '5647454e' + '0a80',
  )
  t.equal(hex(aml.resources()), '11050a027900')
  t.throws(() => aml.integer(-1), RangeError)
  t.throws(() => aml.name('lower', aml.integer(0)), RangeError)
  t.throws(() => aml.eisaId('QEMU0001'), RangeError)
  // PkgLength: one byte to 63, two to 4095, three beyond.
  const length = (size: number): string => hex(aml.device('X', new Uint8Array(size))).slice(4, 10)
  t.equal(length(58).slice(0, 2), '3f')
  t.equal(length(59).slice(0, 4), '4104')
  t.equal(length(5000), '8f3801')
})

t.test('every table is found from the RSDP, with its checksum right', async (t) => {
  using ram = Ram.create(32 * MIB)
  for (const cpus of [1, 2, 300]) {
    const rsdp = writeAcpiTables(ram, cpus)
    const at = (address: number, size: number): DataView => {
      const bytes = ram.bytes(address, size)
      return new DataView(bytes.buffer, bytes.byteOffset, size)
    }
    const sum = (address: number, size: number): number =>
      ram.bytes(address, size).reduce((total, byte) => (total + byte) & 0xff, 0)
    const signature = (address: number): string => Buffer.from(ram.bytes(address, 4)).toString('latin1')
    const table = (address: number): DataView => {
      const size = at(address, 8).getUint32(4, true)
      t.equal(sum(address, size), 0, `checksum of ${signature(address)}`)
      return at(address, size)
    }
    t.equal(sum(rsdp, 20), 0)
    t.equal(sum(rsdp, 36), 0)
    const xsdt = table(Number(at(rsdp, 36).getBigUint64(24, true)))
    const tables = new Map<string, DataView>()
    for (let offset = 36; offset < xsdt.byteLength; offset += 8) {
      const address = Number(xsdt.getBigUint64(offset, true))
      tables.set(signature(address), table(address))
    }
    t.same([...tables.keys()], ['FACP', 'APIC', 'MCFG'])
    const fadt = tables.get('FACP')!
    const dsdt = Number(fadt.getBigUint64(140, true))
    t.equal(signature(dsdt), 'DSDT')
    table(dsdt)
    t.ok(fadt.getUint32(112, true) & (1 << 20), 'reduced hardware')
    t.equal(tables.get('MCFG')!.getBigUint64(44, true), BigInt(ECAM))
    const madt = tables.get('APIC')!
    const kinds: number[] = []
    for (let offset = 44; offset < madt.byteLength; offset += madt.getUint8(offset + 1))
      kinds.push(madt.getUint8(offset))
    const wanted = [
      ...Array<number>(Math.min(cpus, 255)).fill(0),
      ...Array<number>(Math.max(0, cpus - 255)).fill(9),
      1,
    ]
    t.same(kinds, wanted)
  }
})

t.test('the reset vector asks for a reset', async (t) => {
  using ram = Ram.create(32 * MIB)
  writeAcpiTables(ram, 1)
  t.equal(hex(ram.bytes(0xf_fff0, 7)), 'ba0106b001eef4')
})

t.test('the generation identifier is found by its compatible id', async (t) => {
  using ram = Ram.create(32 * MIB)
  const start = writeAcpiTables(ram, 300)
  const area = Buffer.from(ram.bytes(start, GENERATION_ID - start))
  const at = area.indexOf('VGEN')
  const wanted: [string, aml.Aml][] = [
    ['_CID', aml.pack(aml.string('VM_Gen_Counter'), aml.string('VMGENCTR'))],
    ['ADDR', aml.pack(aml.integer(GENERATION_ID), aml.integer(0))],
  ]
  for (const [name, value] of wanted) t.ok(area.indexOf(aml.name(name, value)) > at, name)
  t.ok(area.indexOf(aml.method('_EVT', 1, aml.notify('_SB', 'VGEN', 0x80))) > area.indexOf('ACPI0013'))
  t.same(ram.bytes(GENERATION_ID, 16), new Uint8Array(16), 'and nothing else is there')
})
