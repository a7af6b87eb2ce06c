import { createHash } from 'node:crypto'
import { cpus, release } from 'node:os'
import { KVM_CAP_TSC_DEADLINE_TIMER, type Kvm } from '../../kvm/index.js'
import { guestCpuid } from '../cpu/cpuid.js'

/** What of a host must be the same for a guest to go on there. */
export interface HostIdentity {
  /** For people. */
  readonly cpu: string
  readonly kernel: string
  /** Of all that CPUID tells a guest: a hash. */
  readonly features: string
}

export function hostIdentity(kvm: Kvm): HostIdentity {
  const tscDeadline = kvm.checkExtension(KVM_CAP_TSC_DEADLINE_TIMER) > 0
  const leaves = guestCpuid(kvm.supportedCpuid(), 0, 1, tscDeadline).map(Object.values)
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    kernel: release(),
    features: createHash('sha256').update(JSON.stringify(leaves)).digest('hex').slice(0, 32),
  }
}
