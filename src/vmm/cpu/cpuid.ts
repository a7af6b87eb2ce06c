import type { CpuidEntry } from '../../kvm/index.js'
import { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } from '../../kvm/index.js'

/** Leaf 1, ECX and EDX (Intel SDM 2A, CPUID). */
const TSC_DEADLINE = 1 << 24
const HYPERVISOR = 1 << 31
const HTT = 1 << 28
/** Level types of leaves 0xb and 0x1f, in ECX 15:8. */
const LEVEL_SMT = 1
const LEVEL_CORE = 2

/**
 * What CPUID tells processor `id` of a guest with `cpus` processors: what KVM can give, and one package whose cores
 * have one thread each.
 * @param supported of KVM_GET_SUPPORTED_CPUID
 * @param tscDeadline whether KVM's local APIC has the TSC-deadline timer, which that call does not tell
 */
export function guestCpuid(
  supported: readonly CpuidEntry[],
  id: number,
  cpus: number,
  tscDeadline: boolean,
): CpuidEntry[] {
  // How many bits of an APIC id number the cores.
  const shift = Math.ceil(Math.log2(cpus))
  const entries = supported
    .filter(({ function: leaf }) => leaf !== 0xb && leaf !== 0x1f)
    .map((entry) => adapt({ ...entry }, id, cpus, shift, tscDeadline))
  const highest = entries.find(({ function: leaf }) => leaf === 0)
  for (const leaf of [0xb, 0x1f])
    if (highest && (leaf === 0xb || highest.eax >= leaf)) entries.push(...topology(leaf, id, cpus, shift))
  if (highest && highest.eax < 0xb) highest.eax = 0xb
  return entries
}

function adapt(entry: CpuidEntry, id: number, cpus: number, shift: number, tscDeadline: boolean): CpuidEntry {
  const apicId = id & 0xff
  switch (entry.function) {
    case 0x1:
      entry.ebx = ((entry.ebx & 0xffff) | (Math.min(cpus, 255) << 16) | (apicId << 24)) >>> 0
      entry.ecx = (entry.ecx | HYPERVISOR | (tscDeadline ? TSC_DEADLINE : 0)) >>> 0
      entry.edx = ((entry.edx & ~HTT) | (cpus > 1 ? HTT : 0)) >>> 0
      break
    case 0x4:
    case 0x8000_001d: {
      // A cache of the first two levels belongs to one core, the third to all; cores in the package (Intel only).
      const shared = ((entry.eax >>> 5) & 7) < 3 ? 1 : cpus
      const cores = entry.function === 0x4 ? (1 << shift) - 1 : 0
      if ((entry.eax & 0x1f) !== 0)
        entry.eax = ((entry.eax & 0x3fff) | ((shared - 1) << 14) | (Math.min(cores, 63) << 26)) >>> 0
      break
    }
    case 0xa:
      // No performance counters: nothing in the guest waits for them, and probing them costs time.
      Object.assign(entry, { eax: 0, ebx: 0, ecx: 0, edx: 0 })
      break
    case 0x8000_0008:
      entry.ecx = (((cpus - 1) & 0xff) | (shift << 12)) >>> 0
      break
    case 0x8000_001e:
      // Extended APIC id; core id, one thread a core; node 0.
      Object.assign(entry, { eax: id, ebx: apicId, ecx: 0 })
      break
  }
  return entry
}

/** Extended topology enumeration: a level of threads (one a core), one of cores, and the end. */
function topology(leaf: number, id: number, cpus: number, shift: number): CpuidEntry[] {
  const level = (index: number, eax: number, ebx: number, type: number): CpuidEntry => ({
    function: leaf,
    index,
    flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
    eax,
    ebx,
    ecx: (type << 8) | index,
    edx: id,
  })
  return [level(0, 0, 1, LEVEL_SMT), level(1, shift, cpus, LEVEL_CORE), level(2, 0, 0, 0)]
}
