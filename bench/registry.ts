import type { Bench } from './bench.js'
import { kvmExits } from './kvm-exits.js'

/** Every bench, in the order in which they run. */
export const benches: readonly Bench[] = [kvmExits]
