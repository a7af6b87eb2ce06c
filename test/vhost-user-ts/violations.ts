import {
  VIRTIO_F_VERSION_1,
  VRING_DESC_F_INDIRECT as INDIRECT,
  VRING_DESC_F_NEXT as NEXT,
  VRING_DESC_F_WRITE as WRITE,
  type VirtioError,
} from 'vhost-user-ts'
import { BASE, type DriverQueue } from './driver.js'

/** A rule of virtio 1.2 §2.7 that a driver breaks on a running queue. */
export interface Violation {
  readonly name: string
  /** What it earns. */
  readonly code: VirtioError['code']
  /** What was agreed on, where it matters. */
  readonly features?: bigint
  /** Does it, on a queue that is empty. */
  act(driver: DriverQueue): void
}

/** Offers a chain of the given descriptors: address, length, flags, next. */
function offer(driver: DriverQueue, ...chain: [number, number, number, number?][]): void {
  chain.forEach(([address, length, flags, next], i) =>
    driver.describe(driver.descriptorTable, i, address, length, flags, next),
  )
  driver.offer(0)
}

/** An indirect table of so many bytes with the given descriptors. */
function indirect(driver: DriverQueue, length: number, ...chain: [number, number, number, number?][]): void {
  const table = driver.guest.allocate(Math.max(length, chain.length * 16))
  chain.forEach(([address, size, flags, next], i) => driver.describe(table, i, address, size, flags, next))
  offer(driver, [table, length, INDIRECT])
}

const end = ({ guest }: DriverQueue): number => BASE + guest.size

export const VIOLATIONS: readonly Violation[] = [
  { name: 'a head beyond the queue', code: 'DESCRIPTOR_INDEX', act: (d) => d.offer(d.size) },
  {
    name: 'a next beyond the queue',
    code: 'DESCRIPTOR_INDEX',
    act: (d) => offer(d, [BASE, 1, NEXT, d.size]),
  },
  {
    name: 'an available index too far ahead',
    code: 'AVAILABLE_INDEX',
    act: (d) => d.guest.memory.writeU16(d.availableRing + 2, d.size + 1),
  },
  {
    name: 'an available index that goes back',
    code: 'AVAILABLE_INDEX',
    act: (d) => d.guest.memory.writeU16(d.availableRing + 2, 0xffff),
  },
  {
    name: 'a loop',
    code: 'DESCRIPTOR_LOOP',
    act: (d) => offer(d, [BASE, 1, NEXT, 1], [BASE, 1, NEXT, 0]),
  },
  { name: 'a chain that is its own next', code: 'DESCRIPTOR_LOOP', act: (d) => offer(d, [BASE, 1, NEXT, 0]) },
  {
    name: 'a buffer that leaves guest memory',
    code: 'DESCRIPTOR_ADDRESS',
    act: (d) => offer(d, [end(d) - 1, 2, 0]),
  },
  {
    name: 'a buffer before guest memory',
    code: 'DESCRIPTOR_ADDRESS',
    act: (d) => offer(d, [BASE - 1, 2, 0]),
  },
  {
    name: 'an address that wraps',
    code: 'DESCRIPTOR_ADDRESS',
    act: (d) => {
      d.describe(d.descriptorTable, 0, 0, 0xffff_ffff, WRITE)
      d.guest.memory.writeU64(d.descriptorTable, 2n ** 64n - 1n)
      d.offer(0)
    },
  },
  {
    name: 'readable after writable',
    code: 'DESCRIPTOR_ORDER',
    act: (d) => offer(d, [BASE, 1, NEXT | WRITE, 1], [BASE, 1, 0]),
  },
  {
    name: 'indirect that was not negotiated',
    code: 'INDIRECT_NOT_NEGOTIATED',
    features: VIRTIO_F_VERSION_1,
    act: (d) => offer(d, [BASE, 16, INDIRECT]),
  },
  ...[0, 8, 17, 0xffff_fff0].map((length): Violation => ({
    name: `an indirect table of ${length} bytes`,
    code: 'INDIRECT_LENGTH',
    act: (d) => offer(d, [BASE, length, INDIRECT]),
  })),
  {
    name: 'an indirect table longer than the queue',
    code: 'INDIRECT_LENGTH',
    act: (d) => offer(d, [BASE, (d.size + 1) * 16, INDIRECT]),
  },
  {
    name: 'an indirect table that leaves guest memory',
    code: 'INDIRECT_ADDRESS',
    act: (d) => offer(d, [end(d) - 16, 32, INDIRECT]),
  },
  {
    name: 'an indirect descriptor with a next',
    code: 'INDIRECT_NESTED',
    act: (d) => offer(d, [BASE, 16, INDIRECT | NEXT, 1]),
  },
  {
    name: 'indirect inside indirect',
    code: 'INDIRECT_NESTED',
    act: (d) => indirect(d, 16, [BASE, 16, INDIRECT]),
  },
  {
    name: 'an indirect next beyond its table',
    code: 'DESCRIPTOR_INDEX',
    act: (d) => indirect(d, 32, [BASE, 1, NEXT, 2]),
  },
  { name: 'an indirect loop', code: 'DESCRIPTOR_LOOP', act: (d) => indirect(d, 16, [BASE, 1, NEXT, 0]) },
]
