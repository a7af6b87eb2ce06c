import { type EventFd, Mapping, memfd } from '@coracle/sys'
import type { Area, HostBar, HostFunction } from '../../../src/vmm/vfio/host-function.js'

/** A virtual function as Intel's 82576 has it: two 64-bit BARs of 16 KiB, MSI-X in the second, PCI Express. */
export function virtualFunctionConfig(): Uint8Array {
  const bytes = new Uint8Array(4096)
  const view = new DataView(bytes.buffer)
  view.setUint16(0x00, 0x8086, true)
  view.setUint16(0x02, 0x10ca, true)
  view.setUint16(0x06, 0x10, true)
  view.setUint32(0x08, 0x02_00_00_01, true)
  view.setUint32(0x10, 0xc, true)
  view.setUint32(0x1c, 0xc, true)
  view.setUint16(0x2c, 0x1af4, true)
  view.setUint16(0x2e, 0x1100, true)
  view.setUint8(0x34, 0x40)
  // Power, MSI, MSI-X with three vectors, a vendor's own, PCI Express 2.
  bytes.set([0x01, 0x50, 3, 0], 0x40)
  bytes.set([0x05, 0x70, 0x80, 1], 0x50)
  bytes.set([0x11, 0x90, 2, 0], 0x70)
  view.setUint32(0x74, 0x3, true)
  view.setUint32(0x78, 0x2003, true)
  bytes.set([0x09, 0xa0, 8, 1, 2, 3, 4, 5], 0x90)
  bytes.set([0x10, 0x00, 0x02, 0x00], 0xa0)
  view.setUint32(0xa4, 0x1000_8020, true)
  view.setUint16(0xa8, 0x2810, true)
  view.setUint32(0xac, 0x0001_1411, true)
  // Error reporting, then a serial number.
  view.setUint32(0x100, 0x1401_0001, true)
  view.setUint32(0x140, 0x1601_0003, true)
  view.setBigUint64(0x144, 0x0011_2233_4455_6677n, true)
  view.setUint32(0x160, 0x0001_0010, true)
  return bytes
}

/** A device in memory, which notes what reaches it. */
export class FakeFunction implements HostFunction {
  readonly name = '0000:01:10.0'
  readonly calls: string[] = []
  readonly commands: number[] = []
  readonly written: { index: number; offset: number; size: number }[] = []
  readonly config: Uint8Array
  readonly bars: (HostBar | undefined)[]
  readonly files: (Mapping | undefined)[]
  vectors = 3
  events: readonly EventFd[] = []
  failed: EventFd | undefined
  wanted: EventFd | undefined
  open = 0

  constructor(config = virtualFunctionConfig(), sizes: readonly number[] = [16384, 0, 0, 16384, 0, 0]) {
    this.config = config
    this.files = sizes.map((size) => (size === 0 ? undefined : Mapping.create({ length: size })))
    this.bars = sizes.map((size) =>
      size === 0 ? undefined : { size, mappable: size < 4096 ? [] : [{ offset: 0, size }] },
    )
  }

  readConfig(): Uint8Array {
    return this.config.slice()
  }
  writeCommand(value: number): void {
    this.commands.push(value)
  }
  readBar(index: number, offset: number, into: Uint8Array): void {
    into.set(this.files[index]!.bytes(offset, into.length))
  }
  writeBar(index: number, offset: number, from: Uint8Array): void {
    this.written.push({ index, offset, size: from.length })
    this.files[index]!.bytes(offset, from.length).set(from)
  }
  mapBar(_index: number, { size }: Area): Mapping {
    using file = memfd('bar', size)
    return Mapping.create({ fd: file, length: size })
  }
  setVectors(events: readonly EventFd[]): void {
    this.events = events
    this.calls.push(`vectors ${events.length}`)
  }
  watch(failed: EventFd, wanted: EventFd): void {
    this.failed = failed
    this.wanted = wanted
  }
  reset(): void {
    this.calls.push('reset')
  }
  close(): void {
    this.calls.push('close')
    for (const file of this.files) file?.unmap()
  }
}
