import { CoracleError } from '../../errors.js'
import { type Msr, Registers, SpecialRegisters, type Vcpu } from '../../kvm/index.js'
import { type Saved, saveBytes } from './saved.js'

const MSR_IA32_TSC = 0x10
const MSR_IA32_TSC_DEADLINE = 0x6e0
/** KVM lists a few hundred. */
const MAX_MSRS = 1024
const MAX_XSAVE = 64 << 10

/** A processor in a snapshot: KVM's structures as they are, in base64. */
export interface SavedProcessor {
  readonly mpState: number
  readonly registers: string
  readonly special: string
  readonly xsave: string
  readonly xcrs: string
  readonly debug: string
  readonly lapic: string
  readonly events: string
  readonly tscKhz: number
  readonly msrs: readonly (readonly [index: number, value: string])[]
}

/**
 * The whole state of a processor that stands still.
 * @param msrs those that KVM says a snapshot must hold (KVM_GET_MSR_INDEX_LIST)
 */
export function saveProcessor(vcpu: Vcpu, msrs: readonly number[]): SavedProcessor {
  // First: reading it makes KVM take in a pending INIT or SIPI, which changes the registers.
  const mpState = vcpu.getMpState()
  return {
    mpState,
    registers: saveBytes(bytesOf(vcpu.getRegisters().view)),
    special: saveBytes(bytesOf(vcpu.getSpecialRegisters().view)),
    xsave: saveBytes(vcpu.getXsave()),
    xcrs: saveBytes(vcpu.getXcrs()),
    debug: saveBytes(vcpu.getDebugRegisters()),
    lapic: saveBytes(vcpu.getLapic()),
    tscKhz: vcpu.getTscKhz(),
    msrs: vcpu.getMsrs(msrs).map(({ index, value }) => [index, String(value)] as const),
    events: saveBytes(vcpu.getEvents()),
  }
}

/**
 * Puts a processor into the state that {@link saveProcessor} gave; its CPUID is set, and it has not run. The order is
 * KVM's to ask for: the local APIC after the special registers (its base is among them), the MSRs after it (the
 * deadline timer needs its mode, and the TSC before itself), what is under way last.
 * @throws CoracleError SNAPSHOT_INVALID, SNAPSHOT_MISMATCH where this host cannot hold the state
 */
export function restoreProcessor(vcpu: Vcpu, state: Saved): void {
  const parts = {
    mpState: state.get('mpState').number(0xff),
    registers: view(state.get('registers'), Registers.size),
    special: view(state.get('special'), SpecialRegisters.size),
    xsave: state.get('xsave').bytes({ max: MAX_XSAVE }),
    xcrs: state.get('xcrs').bytes(vcpu.getXcrs().length),
    debug: state.get('debug').bytes(vcpu.getDebugRegisters().length),
    lapic: state.get('lapic').bytes(vcpu.getLapic().length),
    events: state.get('events').bytes(vcpu.getEvents().length),
    tscKhz: state.get('tscKhz').number(2 ** 31),
    msrs: state
      .get('msrs')
      .list(MAX_MSRS, true)
      .map((each): Msr => {
        const [index, value] = each.list(2)
        return { index: index!.number(0xffff_ffff), value: value!.u64() }
      }),
  }
  try {
    // A clock of another rate than the guest has measured would be wrong for it for ever.
    if (vcpu.getTscKhz() !== parts.tscKhz) vcpu.setTscKhz(parts.tscKhz)
    vcpu.setMpState(parts.mpState)
    vcpu.setRegisters(new Registers(parts.registers))
    vcpu.setSpecialRegisters(new SpecialRegisters(parts.special))
    vcpu.setXcrs(parts.xcrs)
    vcpu.setXsave(parts.xsave)
    vcpu.setDebugRegisters(parts.debug)
    vcpu.setLapic(parts.lapic)
    setMsrs(vcpu, parts.msrs)
    vcpu.setEvents(parts.events)
  } catch (error) {
    if (error instanceof CoracleError) throw error
    throw new CoracleError(
      'SNAPSHOT_MISMATCH',
      `this host does not take the state of processor ${vcpu.id}: ${String(error)}`,
      { cause: error },
    )
  }
}

/** KVM stops at one that it does not take; where that has its value already, nothing is lost. */
function setMsrs(vcpu: Vcpu, msrs: readonly Msr[]): void {
  const rank = ({ index }: Msr): number =>
    index === MSR_IA32_TSC ? 0 : index === MSR_IA32_TSC_DEADLINE ? 2 : 1
  const sorted = [...msrs].sort((a, b) => rank(a) - rank(b))
  for (let next = 0; next < sorted.length;) {
    next += vcpu.trySetMsrs(sorted.slice(next))
    const refused = sorted[next++]
    if (!refused) return
    const [present] = vcpu.getMsrs([refused.index])
    if (present?.value !== refused.value)
      throw new CoracleError(
        'SNAPSHOT_MISMATCH',
        `this host does not take 0x${refused.value.toString(16)} for the MSR 0x${refused.index.toString(16)}`,
      )
  }
}

const bytesOf = ({ buffer, byteOffset, byteLength }: DataView): Uint8Array =>
  new Uint8Array(buffer, byteOffset, byteLength)

function view(state: Saved, size: number): DataView {
  return new DataView(state.bytes(size).buffer)
}
