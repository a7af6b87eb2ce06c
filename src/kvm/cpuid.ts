/** sizeof(struct kvm_cpuid_entry2) and the header before the entries (asm/kvm.h). */
const ENTRY = 40
const HEADER = 8
/** KVM_MAX_CPUID_ENTRIES of the kernel is 256 (80 before 5.17). */
export const MAX_CPUID_ENTRIES = 256

/** struct kvm_cpuid_entry2 (asm/kvm.h): one leaf and subleaf of CPUID. All u32. */
export interface CpuidEntry {
  function: number
  index: number
  /** KVM_CPUID_FLAG_* */
  flags: number
  eax: number
  ebx: number
  ecx: number
  edx: number
}

/** struct kvm_cpuid2 with room for `count` entries, `nent` set to it. */
export function newCpuidTable(count: number): DataView {
  const table = new DataView(new ArrayBuffer(HEADER + count * ENTRY))
  table.setUint32(0, count, true)
  return table
}

export function encodeCpuid(entries: readonly CpuidEntry[]): DataView {
  const table = newCpuidTable(entries.length)
  entries.forEach((entry, i) => {
    const at = HEADER + i * ENTRY
    const { function: leaf, index, flags, eax, ebx, ecx, edx } = entry
    const words = [leaf, index, flags, eax, ebx, ecx, edx]
    words.forEach((word, j) => table.setUint32(at + j * 4, word, true))
  })
  return table
}

export function decodeCpuid(table: DataView): CpuidEntry[] {
  const word = (at: number): number => table.getUint32(at, true)
  return Array.from({ length: word(0) }, (_, i) => {
    const at = HEADER + i * ENTRY
    return {
      function: word(at),
      index: word(at + 4),
      flags: word(at + 8),
      eax: word(at + 12),
      ebx: word(at + 16),
      ecx: word(at + 20),
      edx: word(at + 24),
    }
  })
}
