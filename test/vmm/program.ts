import { assemble } from '../kvm/guest.js'
import { POWER_PORT } from '../../src/vmm/devices/power.js'
import { ECAM, PAGE } from '../../src/vmm/memory/layout.js'
import * as reg from '../../src/vmm/virtio-pci/common.js'
import { kernelImage } from './kernels.js'

export type Width = 1 | 2 | 4 | 8

/** ACPI's soft off: SLP_EN and SLP_TYPx 5. */
const OFF = 0x34
/** Pages of a device's BAR (src/vmm/virtio-pci/transport.ts). */
export const TABLE_PAGE = 2
export const NOTIFY_PAGE = 5
const WAIT_LOOKS = 200_000

/** Accesses for firmware/test-guests/operations.S, in order; the guest makes each of them when it runs. */
export class Program {
  readonly #operations: { kind: number; address: number; value: number | bigint; count: number }[] = []

  write(size: Width, address: number, value: number | bigint, count = 1): this {
    return this.#add(1 + Math.log2(size), address, value, count)
  }

  read(size: Width, address: number, count = 1): this {
    return this.#add(5 + Math.log2(size), address, 0, count)
  }

  out(size: 1 | 2 | 4, port: number, value: number, count = 1): this {
    return this.#add(9 + Math.log2(size), port, value, count)
  }

  in(size: 1 | 2 | 4, port: number, count = 1): this {
    return this.#add(12 + Math.log2(size), port, 0, count)
  }

  /** `rep outsb` of `count` bytes. */
  outString(port: number, value: number, count: number): this {
    return this.#add(15, port, value, count)
  }

  /** `rep movsb` of `count` bytes. */
  move(from: number, to: number, count: number): this {
    return this.#add(16, from, to, count)
  }

  exchange(address: number, value: number): this {
    return this.#add(17, address, value, 1)
  }

  /** Waits for the 16 bits at `address` to be `value`, for a while. */
  wait(address: number, value: number): this {
    return this.#add(18, address, value, WAIT_LOOKS)
  }

  /** Sends the 32 bits at `address` to the serial port. */
  say(address: number): this {
    return this.#add(19, address, 0, 1)
  }

  config(slot: number, offset: number): number {
    return ECAM + slot * 8 * PAGE + offset
  }

  /** As a driver does it (virtio 1.2 §3.1.1): queue `queue` of 8 entries in three pages from `ring` on. */
  drive(bar: number, ring: number, queue = 0): this {
    for (const status of [0, 1, 3]) this.write(1, bar + reg.DEVICE_STATUS, status)
    this.write(4, bar + reg.DRIVER_FEATURE_SELECT, 1).write(4, bar + reg.DRIVER_FEATURE, 1)
    this.write(1, bar + reg.DEVICE_STATUS, 11).write(2, bar + reg.QUEUE_SELECT, queue)
    this.write(2, bar + reg.QUEUE_SIZE, 8)
    for (const [i, register] of [reg.QUEUE_DESC, reg.QUEUE_DRIVER, reg.QUEUE_DEVICE].entries())
      this.write(4, bar + register, ring + i * PAGE).write(4, bar + register + 4, 0)
    return this.write(2, bar + reg.QUEUE_ENABLE, 1).write(1, bar + reg.DEVICE_STATUS, 15)
  }

  /** Writes one descriptor. */
  describe(ring: number, i: number, address: number, length: number, flags: number, next = 0): this {
    this.write(8, ring + i * 16, address).write(4, ring + i * 16 + 8, length)
    return this.write(4, ring + i * 16 + 12, flags + next * 0x1_0000)
  }

  /** Makes the chain at descriptor 0 available as the `count`th, and rings. */
  offer(bar: number, ring: number, count: number, queue = 0): this {
    this.write(2, ring + PAGE + 4 + ((count - 1) % 8) * 2, 0).write(2, ring + PAGE + 2, count)
    return this.write(2, bar + NOTIFY_PAGE * PAGE + queue * 4, queue)
  }

  /** Waits for the `count`th answer, and says where the used ring stands: `count` in the upper half. */
  answered(ring: number, count: number): this {
    return this.wait(ring + 2 * PAGE + 2, count).say(ring + 2 * PAGE)
  }

  /** The kernel that does all this and switches itself off. */
  image(): Buffer {
    const table = new DataView(new ArrayBuffer((this.#operations.length + 1) * 24))
    const entries = [...this.#operations, { kind: 0, address: POWER_PORT, value: OFF, count: 1 }]
    entries.forEach(({ kind, address, value, count }, i) => {
      table.setUint32(i * 24, kind, true)
      table.setUint32(i * 24 + 4, count, true)
      table.setBigUint64(i * 24 + 8, BigInt(address), true)
      table.setBigUint64(i * 24 + 16, BigInt(value), true)
    })
    return kernelImage(Buffer.concat([assemble('operations'), new Uint8Array(table.buffer)]))
  }

  #add(kind: number, address: number, value: number | bigint, count: number): this {
    this.#operations.push({ kind, address, value, count })
    return this
  }
}
