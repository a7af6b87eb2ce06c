import { Fd, Mapping } from '@coracle/sys'
import { CoracleError } from '../errors.js'
import { type CpuidEntry, encodeCpuid } from './cpuid.js'
import {
  KVM_GET_DEBUGREGS,
  KVM_GET_FPU,
  KVM_GET_LAPIC,
  KVM_GET_MP_STATE,
  KVM_GET_MSRS,
  KVM_GET_REGS,
  KVM_GET_SREGS,
  KVM_GET_TSC_KHZ,
  KVM_GET_VCPU_EVENTS,
  KVM_GET_XCRS,
  KVM_GET_XSAVE,
  KVM_GET_XSAVE2,
  KVM_INTERRUPT,
  KVM_KVMCLOCK_CTRL,
  KVM_MP_STATE_HALTED,
  KVM_NMI,
  KVM_RUN,
  KVM_SET_CPUID2,
  KVM_SET_DEBUGREGS,
  KVM_SET_FPU,
  KVM_SET_LAPIC,
  KVM_SET_MP_STATE,
  KVM_SET_MSRS,
  KVM_SET_REGS,
  KVM_SET_SIGNAL_MASK,
  KVM_SET_SREGS,
  KVM_SET_TSC_KHZ,
  KVM_SET_VCPU_EVENTS,
  KVM_SET_XCRS,
  KVM_SET_XSAVE,
} from './ioctl.js'
import { KVM_EXIT_INTR, KvmRun } from './kvm-run.js'
import { FpuState, RFLAGS_IF, Registers, SpecialRegisters } from './registers.js'

/** Bytes of the states that are kept whole, for snapshots (asm/kvm.h, linux/kvm.h). */
const STATE_SIZE = { lapic: 1024, events: 64, debug: 128, xcrs: 392 } as const

/** What another thread of this process needs to run a vCPU that it does not own. Structured-cloneable. */
export interface SharedVcpu {
  readonly fd: number
  readonly id: number
  readonly mmapSize: number
  readonly xsaveSize: number
}

/** One model-specific register: index and 64-bit value. */
export interface Msr {
  readonly index: number
  readonly value: bigint
}

/**
 * A virtual processor (api.rst §4, vcpu ioctls). Its state may be read and written from any thread while none runs
 * it: KVM makes such a call wait for the end of KVM_RUN.
 */
export class Vcpu implements Disposable {
  readonly #fd: Fd
  readonly #owned: boolean
  readonly #mapping: Mapping
  readonly #xsaveSize: number
  /** The number the guest knows it by: its local APIC's id. */
  readonly id: number
  /** Why the last {@link run} came back. Dangles once this is closed. */
  readonly exit: KvmRun

  private constructor(fd: Fd, owned: boolean, { id, mmapSize, xsaveSize }: Omit<SharedVcpu, 'fd'>) {
    this.#fd = fd
    this.#owned = owned
    this.#xsaveSize = xsaveSize
    this.id = id
    this.#mapping = Mapping.create({ fd, length: mmapSize })
    this.exit = new KvmRun(new DataView(this.#mapping.view()))
  }

  /** @see Vm.createVcpu */
  static own(fd: Fd, id: number, mmapSize: number, xsaveSize: number): Vcpu {
    try {
      return new Vcpu(fd, true, { id, mmapSize, xsaveSize })
    } catch (error) {
      fd.close()
      throw error
    }
  }

  /** The use of a vCPU of another thread, with its own mapping of the run area. Its owner must outlive this. */
  static borrow(shared: SharedVcpu): Vcpu {
    return new Vcpu(new Fd(shared.fd), false, shared)
  }

  share(): SharedVcpu {
    return {
      fd: this.#fd.number,
      id: this.id,
      mmapSize: this.#mapping.length,
      xsaveSize: this.#xsaveSize,
    }
  }

  /**
   * Runs the guest until something is ours to do (KVM_RUN); {@link exit} then has the details.
   * @returns `KVM_EXIT_*`; KVM_EXIT_INTR for a kick, and for {@link KvmRun.immediateExit}
   * @throws SysError such as EFAULT, where guest memory's host mapping is gone
   */
  run(): number {
    return this.#fd.ioctlAgain(KVM_RUN, 0, 'KVM_RUN') < 0 ? KVM_EXIT_INTR : this.exit.exitReason
  }

  /**
   * Lets `signal` alone interrupt {@link run}. The thread that runs must keep the signal blocked otherwise: it then
   * stays pending and ends the next KVM_RUN at once, so that no kick is lost.
   */
  setKickSignal(signal: number): void {
    // struct kvm_signal_mask: the length of the kernel's sigset_t, then the signals blocked during KVM_RUN.
    const mask = new DataView(new ArrayBuffer(12))
    mask.setUint32(0, 8, true)
    mask.setBigUint64(4, ~(1n << BigInt(signal - 1)), true)
    this.#fd.ioctl(KVM_SET_SIGNAL_MASK, mask, 'KVM_SET_SIGNAL_MASK')
  }

  /** What CPUID tells the guest (KVM_SET_CPUID2). Before the first {@link run}. */
  setCpuid(entries: readonly CpuidEntry[]): void {
    this.#fd.ioctl(KVM_SET_CPUID2, encodeCpuid(entries), 'KVM_SET_CPUID2')
  }

  getRegisters(into = new Registers()): Registers {
    this.#fd.ioctl(KVM_GET_REGS, into.view, 'KVM_GET_REGS')
    return into
  }

  setRegisters(registers: Registers): void {
    this.#fd.ioctl(KVM_SET_REGS, registers.view, 'KVM_SET_REGS')
  }

  getSpecialRegisters(): SpecialRegisters {
    const registers = new SpecialRegisters()
    this.#fd.ioctl(KVM_GET_SREGS, registers.view, 'KVM_GET_SREGS')
    return registers
  }

  setSpecialRegisters(registers: SpecialRegisters): void {
    this.#fd.ioctl(KVM_SET_SREGS, registers.view, 'KVM_SET_SREGS')
  }

  getFpu(): FpuState {
    const state = new FpuState()
    this.#fd.ioctl(KVM_GET_FPU, state.view, 'KVM_GET_FPU')
    return state
  }

  setFpu(state: FpuState): void {
    this.#fd.ioctl(KVM_SET_FPU, state.view, 'KVM_SET_FPU')
  }

  /** @returns the registers' values; those that this host lacks are left out */
  getMsrs(indices: readonly number[]): Msr[] {
    const found: Msr[] = []
    // KVM stops at the first that it does not know and says how many it read: go on behind that one.
    for (let first = 0; first < indices.length;) {
      const wanted = indices.slice(first)
      const table = encodeMsrs(wanted.map((index) => ({ index, value: 0n })))
      const count = this.#fd.ioctl(KVM_GET_MSRS, table, 'KVM_GET_MSRS')
      for (let i = 0; i < count; i++)
        found.push({ index: wanted[i]!, value: table.getBigUint64(8 + i * 16 + 8, true) })
      first += count + 1
    }
    return found
  }

  /** @throws {@link CoracleError} KVM_REFUSED that names the first register KVM did not take */
  setMsrs(msrs: readonly Msr[]): void {
    const failed = msrs[this.trySetMsrs(msrs)]
    if (failed)
      throw new CoracleError(
        'KVM_REFUSED',
        `KVM does not take 0x${failed.value.toString(16)} for the MSR 0x${failed.index.toString(16)}`,
      )
  }

  /** Sets them in their order. @returns how many KVM took before one that it does not take */
  trySetMsrs(msrs: readonly Msr[]): number {
    return msrs.length === 0 ? 0 : this.#fd.ioctl(KVM_SET_MSRS, encodeMsrs(msrs), 'KVM_SET_MSRS')
  }

  /** struct kvm_lapic_state: the local APIC's registers, each at its offset of SDM 3A §10.4.1. */
  getLapic(): Uint8Array {
    return this.#getState(KVM_GET_LAPIC, 'KVM_GET_LAPIC', STATE_SIZE.lapic)
  }

  setLapic(state: Uint8Array): void {
    this.#setState(KVM_SET_LAPIC, 'KVM_SET_LAPIC', state, STATE_SIZE.lapic)
  }

  /** @returns `KVM_MP_STATE_*` */
  getMpState(): number {
    const state = new Uint32Array(1)
    this.#fd.ioctl(KVM_GET_MP_STATE, state, 'KVM_GET_MP_STATE')
    return state[0]!
  }

  setMpState(state: number): void {
    this.#fd.ioctl(KVM_SET_MP_STATE, new Uint32Array([state]), 'KVM_SET_MP_STATE')
  }

  /** struct kvm_vcpu_events: exceptions, interrupts and NMIs under way. */
  getEvents(): Uint8Array {
    return this.#getState(KVM_GET_VCPU_EVENTS, 'KVM_GET_VCPU_EVENTS', STATE_SIZE.events)
  }

  setEvents(state: Uint8Array): void {
    this.#setState(KVM_SET_VCPU_EVENTS, 'KVM_SET_VCPU_EVENTS', state, STATE_SIZE.events)
  }

  /** struct kvm_xcrs. */
  getXcrs(): Uint8Array {
    return this.#getState(KVM_GET_XCRS, 'KVM_GET_XCRS', STATE_SIZE.xcrs)
  }

  setXcrs(state: Uint8Array): void {
    this.#setState(KVM_SET_XCRS, 'KVM_SET_XCRS', state, STATE_SIZE.xcrs)
  }

  /** struct kvm_xsave, as long as the VM's features make it (KVM_CAP_XSAVE2). */
  getXsave(): Uint8Array {
    return this.#xsaveSize > 4096
      ? this.#getState(KVM_GET_XSAVE2, 'KVM_GET_XSAVE2', this.#xsaveSize)
      : this.#getState(KVM_GET_XSAVE, 'KVM_GET_XSAVE', 4096)
  }

  setXsave(state: Uint8Array): void {
    this.#setState(KVM_SET_XSAVE, 'KVM_SET_XSAVE', state, this.#xsaveSize)
  }

  /** struct kvm_debugregs. */
  getDebugRegisters(): Uint8Array {
    return this.#getState(KVM_GET_DEBUGREGS, 'KVM_GET_DEBUGREGS', STATE_SIZE.debug)
  }

  setDebugRegisters(state: Uint8Array): void {
    this.#setState(KVM_SET_DEBUGREGS, 'KVM_SET_DEBUGREGS', state, STATE_SIZE.debug)
  }

  getTscKhz(): number {
    return this.#fd.ioctl(KVM_GET_TSC_KHZ, 0, 'KVM_GET_TSC_KHZ')
  }

  setTscKhz(khz: number): void {
    this.#fd.ioctl(KVM_SET_TSC_KHZ, khz, 'KVM_SET_TSC_KHZ')
  }

  /** Tells the guest's watchdog that it stood still, before the run after a pause (KVM_KVMCLOCK_CTRL). */
  notePause(): void {
    try {
      this.#fd.ioctl(KVM_KVMCLOCK_CTRL, 0, 'KVM_KVMCLOCK_CTRL')
    } catch (error) {
      // The guest has not set up its kvmclock: then it has no watchdog on it either.
      if ((error as { code?: string }).code !== 'EINVAL') throw error
    }
  }

  /** Queues an external interrupt; only for a VM without an in-kernel irqchip (KVM_INTERRUPT). */
  interrupt(vector: number): void {
    this.#fd.ioctl(KVM_INTERRUPT, new Uint32Array([vector]), 'KVM_INTERRUPT')
  }

  nmi(): void {
    this.#fd.ioctl(KVM_NMI, 0, 'KVM_NMI')
  }

  /** Whether it halts with interrupts off, which nothing but an NMI or a reset ends. Not while it runs. */
  isHaltedForGood(): boolean {
    return this.getMpState() === KVM_MP_STATE_HALTED && (this.getRegisters().rflags & RFLAGS_IF) === 0n
  }

  close(): void {
    this.#mapping.unmap()
    if (this.#owned) this.#fd.close()
    else this.#fd.release()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #getState(request: number, name: string, size: number): Uint8Array {
    const state = new Uint8Array(size)
    this.#fd.ioctl(request, state, name)
    return state
  }

  #setState(request: number, name: string, state: Uint8Array, size: number): void {
    if (state.byteLength !== size)
      throw new RangeError(`${name}: ${state.byteLength} bytes in place of ${size}`)
    this.#fd.ioctl(request, state, name)
  }
}

/** struct kvm_msrs (asm/kvm.h): nmsrs, padding, then index, reserved, data. */
function encodeMsrs(msrs: readonly Msr[]): DataView {
  const table = new DataView(new ArrayBuffer(8 + msrs.length * 16))
  table.setUint32(0, msrs.length, true)
  msrs.forEach(({ index, value }, i) => {
    table.setUint32(8 + i * 16, index, true)
    table.setBigUint64(8 + i * 16 + 8, value, true)
  })
  return table
}
