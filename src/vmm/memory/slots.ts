import { KVM_MEM_READONLY, type Vm } from '../../kvm/index.js'
import { type DescribedSlot, hex } from '../description.js'

/** The memory slots that were set through `vm`. */
export function describeSlots(vm: Vm): DescribedSlot[] {
  return vm.slots.map(({ slot, guestAddress, size, flags, name }) => ({
    slot,
    address: hex(guestAddress),
    size,
    readOnly: (flags & KVM_MEM_READONLY) !== 0,
    name,
  }))
}
