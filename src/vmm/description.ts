import type { DeviceMetrics } from './metrics/device-metrics.js'

/*
 * A machine as `coracle inspect --machine` shows it: plain data. Addresses and feature bits are hexadecimal text,
 * since they do not fit a JSON number.
 */

/** A range of guest-physical addresses with memory behind it. */
export interface DescribedSlot {
  readonly slot: number
  readonly address: string
  /** Bytes. */
  readonly size: number
  readonly readOnly: boolean
  /** What is behind it, such as `ram`. */
  readonly name: string
}

export interface DescribedBar {
  readonly index: number
  /** Where it is decoded; undefined where it is not. */
  readonly address?: string
  readonly size: number
}

export interface DescribedVector {
  readonly vector: number
  readonly masked: boolean
  readonly pending: boolean
  /** KVM delivers it without us. */
  readonly attached: boolean
  /** The message: an address, and a datum. */
  readonly message: readonly [address: string, data: string]
}

/** A virtqueue: the driver's registers, and where the device is in the rings if it runs. */
export interface DescribedQueue {
  readonly index: number
  readonly enabled: boolean
  readonly size: number
  readonly maximum: number
  /** undefined: none */
  readonly vector?: number
  readonly descriptorTable: string
  readonly availableRing: string
  readonly usedRing: string
  /** `idx` of the available ring's next entry to take, and of the used ring's next to write. */
  readonly nextAvailable?: number
  readonly nextUsed?: number
  readonly inFlight?: number
}

export interface DescribedVirtio {
  readonly name: string
  /** The device ID of virtio 1.2 §5. */
  readonly type: number
  /** Names of the status bits that are set (§2.1). */
  readonly status: readonly string[]
  readonly offered: string
  readonly features: string
  readonly msix: { readonly enabled: boolean; readonly vectors: readonly DescribedVector[] }
  readonly queues: readonly DescribedQueue[]
  readonly metrics?: DeviceMetrics
}

export interface DescribedFunction {
  readonly slot: number
  /** As lspci writes it, such as `1af4:1042`. */
  readonly id: string
  readonly class: string
  readonly memoryDecoded: boolean
  readonly busMaster: boolean
  readonly bars: readonly DescribedBar[]
  readonly virtio?: DescribedVirtio
}

/** What the thread of the devices knows of the machine. */
export interface DeviceDescription {
  readonly memory: readonly DescribedSlot[]
  readonly pci: readonly DescribedFunction[]
}

/** A whole machine. */
export interface MachineDescription extends DeviceDescription {
  readonly state: string
  readonly cpus: number
  /** Returns to user space by KVM's reason, over all processors. */
  readonly exits: Readonly<Record<string, number>>
  /** Accesses by where they went. */
  readonly accesses: Readonly<Record<string, number>>
}

export const hex = (value: number | bigint): string => `0x${value.toString(16)}`
