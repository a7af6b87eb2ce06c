import { type EventFd, Fd, type Mapping, SysError, addressOf } from '@coracle/sys'
import { CoracleError } from '../errors.js'
import { GsiRouting, type MsiMessage, encodeMsi } from './gsi-routing.js'
import {
  KVM_CAP_SPLIT_IRQCHIP,
  KVM_CAP_XSAVE2,
  KVM_CHECK_EXTENSION,
  KVM_CREATE_DEVICE,
  KVM_CREATE_IRQCHIP,
  KVM_CREATE_PIT2,
  KVM_CREATE_VCPU,
  KVM_DEV_TYPE_VFIO,
  KVM_DEV_VFIO_GROUP,
  KVM_DEV_VFIO_GROUP_ADD,
  KVM_ENABLE_CAP,
  KVM_GET_CLOCK,
  KVM_GET_DIRTY_LOG,
  KVM_GET_IRQCHIP,
  KVM_GET_PIT2,
  KVM_IOEVENTFD,
  KVM_IOEVENTFD_FLAG_DATAMATCH,
  KVM_IOEVENTFD_FLAG_DEASSIGN,
  KVM_IOEVENTFD_FLAG_PIO,
  KVM_IRQFD,
  KVM_IRQFD_FLAG_DEASSIGN,
  KVM_IRQFD_FLAG_RESAMPLE,
  KVM_IRQ_LINE,
  KVM_PIT_SPEAKER_DUMMY,
  KVM_SET_CLOCK,
  KVM_SET_DEVICE_ATTR,
  KVM_SET_GSI_ROUTING,
  KVM_SET_IDENTITY_MAP_ADDR,
  KVM_SET_IRQCHIP,
  KVM_SET_PIT2,
  KVM_SET_TSS_ADDR,
  KVM_SET_USER_MEMORY_REGION,
  KVM_SIGNAL_MSI,
} from './ioctl.js'
import { Vcpu } from './vcpu.js'

const PAGE = 4096
/** sizeof(struct kvm_irqchip) and sizeof(struct kvm_pit_state2) (linux/kvm.h, asm/kvm.h). */
const IRQCHIP_SIZE = 520
const PIT_STATE_SIZE = 112

/** A range of guest-physical addresses and the host memory behind it; lengths and addresses in whole pages. */
export interface MemorySlot {
  readonly guestAddress: number
  readonly size: number
  readonly mapping: Mapping
  /** Where in the mapping the range starts, in bytes. */
  readonly mappingOffset: number
  /** What it is, for people. */
  readonly name?: string
}

/** A slot as it stands. Addresses and lengths are bytes. */
export interface SlotState {
  readonly slot: number
  readonly guestAddress: number
  readonly size: number
  /** KVM_MEM_* */
  readonly flags: number
  readonly name: string
}

/** Where a guest's write rings an eventfd in place of an exit (struct kvm_ioeventfd). */
export interface DoorbellAddress {
  readonly space: 'mmio' | 'pio'
  readonly address: number
  /** Bytes that the write must have: 1, 2, 4, 8; 0 for a write of any length (MMIO, KVM_CAP_IOEVENTFD_NO_LENGTH). */
  readonly length: 0 | 1 | 2 | 4 | 8
  /** Only a write of this value rings; needs a length. */
  readonly match?: bigint
}

/** Something registered with KVM that can be taken back. Closing the VM takes back all of them. */
export interface Registration extends Disposable {
  remove(): void
}

/** What another thread of this process needs to use a VM that it does not own. Structured-cloneable. */
export interface SharedVm {
  readonly fd: number
  readonly vcpuMmapSize: number
  readonly irqchip: 'none' | 'full' | 'split'
}

/**
 * A virtual machine (api.rst §4, VM ioctls). Its thread owns the descriptor; {@link share} and {@link borrow} let
 * another thread make the same calls. Interrupt routes are changed from one thread alone, since each `Vm` holds its
 * own copy of the table.
 */
export class Vm implements Disposable {
  readonly #fd: Fd
  readonly #owned: boolean
  readonly #vcpuMmapSize: number
  #irqchip: SharedVm['irqchip']
  /** Changes here reach KVM with {@link commitRouting}. */
  readonly routing = new GsiRouting()
  readonly #slots = new Map<number, SlotState>()

  private constructor(fd: Fd, owned: boolean, vcpuMmapSize: number, irqchip: SharedVm['irqchip']) {
    this.#fd = fd
    this.#owned = owned
    this.#vcpuMmapSize = vcpuMmapSize
    this.#irqchip = irqchip
    if (irqchip === 'full') this.#defaultRoutes()
  }

  /** @see Kvm.createVm */
  static own(fd: Fd, vcpuMmapSize: number): Vm {
    return new Vm(fd, true, vcpuMmapSize, 'none')
  }

  /** The use of a VM of another thread: closing the result leaves the VM open. Its owner must outlive this. */
  static borrow(shared: SharedVm): Vm {
    return new Vm(new Fd(shared.fd), false, shared.vcpuMmapSize, shared.irqchip)
  }

  share(): SharedVm {
    return { fd: this.#fd.number, vcpuMmapSize: this.#vcpuMmapSize, irqchip: this.#irqchip }
  }

  /** The descriptor's number, for KVM devices such as VFIO's. */
  get number(): number {
    return this.#fd.number
  }

  /** KVM_CHECK_EXTENSION on the VM: the answer may differ from that of /dev/kvm. */
  checkExtension(capability: number): number {
    return this.#fd.ioctl(KVM_CHECK_EXTENSION, capability, 'KVM_CHECK_EXTENSION')
  }

  /** Where Intel's real-mode emulation puts three pages; below 4 GiB, outside every slot. Before the first vCPU. */
  setTssAddress(address: number): void {
    this.#fd.ioctl(KVM_SET_TSS_ADDR, address, 'KVM_SET_TSS_ADDR')
  }

  /** Where Intel's real-mode emulation puts its page table; one page, as {@link setTssAddress}. */
  setIdentityMapAddress(address: number): void {
    this.#fd.ioctl(
      KVM_SET_IDENTITY_MAP_ADDR,
      new BigUint64Array([BigInt(address)]),
      'KVM_SET_IDENTITY_MAP_ADDR',
    )
  }

  /** PIC, IOAPIC and a local APIC in each vCPU, all in the kernel. Before the first vCPU. */
  createIrqchip(): void {
    this.#fd.ioctl(KVM_CREATE_IRQCHIP, 0, 'KVM_CREATE_IRQCHIP')
    this.#irqchip = 'full'
    this.#defaultRoutes()
  }

  /**
   * Local APICs alone in the kernel; PIC and IOAPIC, if any, are ours.
   * @param pins of our IOAPIC, for whose routes KVM reports an end of interrupt
   */
  createSplitIrqchip(pins: number): void {
    this.enableCapability(KVM_CAP_SPLIT_IRQCHIP, [BigInt(pins)])
    this.#irqchip = 'split'
  }

  /** The i8254 timer in the kernel; needs the full irqchip. */
  createPit(): void {
    // struct kvm_pit_config: flags. The speaker's port 0x61 answers too, which some kernels' TSC calibration reads.
    const config = new Uint32Array(16)
    config[0] = KVM_PIT_SPEAKER_DUMMY
    this.#fd.ioctl(KVM_CREATE_PIT2, config, 'KVM_CREATE_PIT2')
  }

  /** KVM_ENABLE_CAP. @param args at most four u64 */
  enableCapability(capability: number, args: readonly bigint[] = []): void {
    const enable = new DataView(new ArrayBuffer(104))
    enable.setUint32(0, capability, true)
    args.forEach((value, i) => enable.setBigUint64(8 + i * 8, value, true))
    this.#fd.ioctl(KVM_ENABLE_CAP, enable, 'KVM_ENABLE_CAP')
  }

  /**
   * Puts host memory at guest-physical addresses, or changes the slot's flags. The mapping must outlive the slot.
   * @param slot its number, below KVM_CAP_NR_MEMSLOTS
   * @param flags KVM_MEM_READONLY (a guest's write exits as MMIO), KVM_MEM_LOG_DIRTY_PAGES
   * @throws {@link CoracleError} KVM_REFUSED: overlap with another slot, too large, moved host memory
   */
  setMemory(slot: number, region: MemorySlot, flags = 0): void {
    const { guestAddress, size, mapping, mappingOffset, name = '' } = region
    const whole = [guestAddress, size, mappingOffset].every(
      (n) => Number.isSafeInteger(n) && n >= 0 && n % PAGE === 0,
    )
    if (!whole || size === 0) throw new RangeError('a memory slot has whole pages')
    if (mapping.address === 0n || mappingOffset + size > mapping.length)
      throw new RangeError('a memory slot lies within its mapping')
    try {
      this.#setSlot(slot, flags, guestAddress, size, mapping.address + BigInt(mappingOffset))
      this.#slots.set(slot, { slot, guestAddress, size, flags, name })
    } catch (error) {
      throw refused(`memory slot ${slot} (${hex(size)} bytes at ${hex(guestAddress)})`, error, {
        EEXIST: 'overlaps another slot',
        EINVAL:
          'KVM takes no such slot: too large, too high a number or address, or other host memory than before',
        ENOMEM: 'the host has no memory for its page tables',
      })
    }
  }

  removeMemory(slot: number): void {
    this.#setSlot(slot, 0, 0, 0, 0n)
    this.#slots.delete(slot)
  }

  /** The slots that were set through this object, by number. */
  get slots(): readonly SlotState[] {
    return [...this.#slots.values()].sort((a, b) => a.slot - b.slot)
  }

  /**
   * Reads and clears the slot's log of written pages (KVM_MEM_LOG_DIRTY_PAGES).
   * @param bitmap one bit a page, padded to 8 bytes
   */
  getDirtyLog(slot: number, bitmap: Uint8Array): void {
    // struct kvm_dirty_log: slot, padding, the bitmap's address.
    const log = new DataView(new ArrayBuffer(16))
    log.setUint32(0, slot, true)
    log.setBigUint64(8, addressOf(bitmap), true)
    this.#fd.ioctl(KVM_GET_DIRTY_LOG, log, 'KVM_GET_DIRTY_LOG')
  }

  /** Adds a processor. Its owner is the caller; see {@link Vcpu.share} for the thread that runs it. */
  createVcpu(id: number): Vcpu {
    const fd = new Fd(this.#fd.ioctl(KVM_CREATE_VCPU, id, 'KVM_CREATE_VCPU'))
    const xsaveSize = Math.max(this.checkExtension(KVM_CAP_XSAVE2), 4096)
    return Vcpu.own(fd, id, this.#vcpuMmapSize, xsaveSize)
  }

  /** Hands {@link routing} to KVM as a whole: before the irqfds that use it. Costs an RCU period, so batch changes. */
  commitRouting(): void {
    try {
      this.#fd.ioctl(KVM_SET_GSI_ROUTING, this.routing.encode(), 'KVM_SET_GSI_ROUTING')
    } catch (error) {
      throw refused('the interrupt routes', error, {
        EINVAL: 'a route names a pin or a chip that is not there',
      })
    }
    this.routing.markCommitted()
  }

  /**
   * Makes `event` raise `gsi` without an exit. KVM keeps its own reference to the eventfd.
   * @param resample for a level-triggered line: KVM signals it when the guest ends the interrupt
   * @throws {@link CoracleError} KVM_REFUSED where no committed route has that GSI, or the eventfd is in use
   */
  irqfd(event: EventFd, gsi: number, resample?: EventFd): Registration {
    if (!this.routing.isCommitted(gsi))
      throw new CoracleError(
        'KVM_REFUSED',
        `interrupt ${gsi} has no route: commit its route before its irqfd`,
      )
    // struct kvm_irqfd: fd, gsi, flags, resamplefd.
    const irqfd = new Uint32Array(8)
    irqfd[0] = event.number
    irqfd[1] = gsi
    irqfd[2] = resample ? KVM_IRQFD_FLAG_RESAMPLE : 0
    irqfd[3] = resample ? resample.number : 0
    try {
      this.#fd.ioctl(KVM_IRQFD, irqfd, 'KVM_IRQFD')
    } catch (error) {
      throw refused(`the irqfd of interrupt ${gsi}`, error, { EBUSY: 'its eventfd has one already' })
    }
    return this.#registration(() => {
      irqfd[2] = KVM_IRQFD_FLAG_DEASSIGN
      this.#fd.ioctl(KVM_IRQFD, irqfd, 'KVM_IRQFD')
    })
  }

  /**
   * Makes the guest's writes at an address signal `event` without an exit.
   * Take it back before the eventfd closes: KVM names it by the descriptor's number.
   * @throws {@link CoracleError} KVM_REFUSED where the same address has a doorbell, or the length is none
   */
  ioeventfd(event: EventFd, at: DoorbellAddress): Registration {
    const { space, address, length, match } = at
    if (match !== undefined && length === 0)
      throw new RangeError('a doorbell that matches a value needs a length')
    // struct kvm_ioeventfd: datamatch, addr, len, fd, flags.
    const bell = new DataView(new ArrayBuffer(64))
    const flags =
      (space === 'pio' ? KVM_IOEVENTFD_FLAG_PIO : 0) |
      (match === undefined ? 0 : KVM_IOEVENTFD_FLAG_DATAMATCH)
    bell.setBigUint64(0, match ?? 0n, true)
    bell.setBigUint64(8, BigInt(address), true)
    bell.setUint32(16, length, true)
    bell.setInt32(20, event.number, true)
    bell.setUint32(24, flags, true)
    try {
      this.#fd.ioctl(KVM_IOEVENTFD, bell, 'KVM_IOEVENTFD')
    } catch (error) {
      throw refused(`the doorbell at ${space} ${hex(address)}`, error, {
        EEXIST: 'there is one already',
        EINVAL: 'KVM takes no doorbell of that length or address',
        ENOSPC: 'the VM has as many as KVM allows',
      })
    }
    return this.#registration(() => {
      bell.setUint32(24, flags | KVM_IOEVENTFD_FLAG_DEASSIGN, true)
      this.#fd.ioctl(KVM_IOEVENTFD, bell, 'KVM_IOEVENTFD')
    })
  }

  /** Injects a message at once. @returns whether a processor took it: false where the guest masks it */
  signalMsi(message: MsiMessage): boolean {
    const msi = new DataView(new ArrayBuffer(32))
    encodeMsi(msi, 0, message)
    return this.#fd.ioctl(KVM_SIGNAL_MSI, msi, 'KVM_SIGNAL_MSI') > 0
  }

  /** Sets the level of an interrupt line of the in-kernel irqchip. */
  irqLine(gsi: number, high: boolean): void {
    this.#fd.ioctl(KVM_IRQ_LINE, new Uint32Array([gsi, high ? 1 : 0]), 'KVM_IRQ_LINE')
  }

  /**
   * KVM's own knowledge of the VFIO groups that the guest has (Documentation/virt/kvm/devices/vfio.rst): with it
   * KVM honours the guest's cache attributes where a device does not snoop. One a VM; close it after its devices.
   */
  createVfioBridge(): Fd {
    // struct kvm_create_device: type, fd, flags.
    const device = new Uint32Array([KVM_DEV_TYPE_VFIO, 0, 0])
    this.#fd.ioctl(KVM_CREATE_DEVICE, device, 'KVM_CREATE_DEVICE')
    return new Fd(device[1]!)
  }

  /** @param bridge of {@link createVfioBridge} @param group its descriptor's number */
  addVfioGroup(bridge: Fd, group: number): void {
    const number = new Int32Array([group])
    // struct kvm_device_attr: flags, group, attr, addr.
    const attribute = new DataView(new ArrayBuffer(24))
    attribute.setUint32(4, KVM_DEV_VFIO_GROUP, true)
    attribute.setBigUint64(8, BigInt(KVM_DEV_VFIO_GROUP_ADD), true)
    attribute.setBigUint64(16, addressOf(number), true)
    bridge.ioctl(KVM_SET_DEVICE_ATTR, attribute, 'KVM_SET_DEVICE_ATTR')
  }

  /** The guest's kvmclock in nanoseconds (struct kvm_clock_data). */
  getClock(): bigint {
    const clock = new BigUint64Array(6)
    this.#fd.ioctl(KVM_GET_CLOCK, clock, 'KVM_GET_CLOCK')
    return clock[0]!
  }

  setClock(nanoseconds: bigint): void {
    const clock = new BigUint64Array(6)
    clock[0] = nanoseconds
    this.#fd.ioctl(KVM_SET_CLOCK, clock, 'KVM_SET_CLOCK')
  }

  /** struct kvm_irqchip of KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC, for snapshots. */
  getIrqchip(chip: number): Uint8Array {
    const state = new Uint8Array(IRQCHIP_SIZE)
    new DataView(state.buffer).setUint32(0, chip, true)
    this.#fd.ioctl(KVM_GET_IRQCHIP, state, 'KVM_GET_IRQCHIP')
    return state
  }

  setIrqchip(state: Uint8Array): void {
    this.#fd.ioctl(KVM_SET_IRQCHIP, sized(state, IRQCHIP_SIZE), 'KVM_SET_IRQCHIP')
  }

  /** struct kvm_pit_state2, for snapshots. */
  getPit(): Uint8Array {
    const state = new Uint8Array(PIT_STATE_SIZE)
    this.#fd.ioctl(KVM_GET_PIT2, state, 'KVM_GET_PIT2')
    return state
  }

  setPit(state: Uint8Array): void {
    this.#fd.ioctl(KVM_SET_PIT2, sized(state, PIT_STATE_SIZE), 'KVM_SET_PIT2')
  }

  close(): void {
    if (this.#owned) this.#fd.close()
    else this.#fd.release()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #setSlot(slot: number, flags: number, guestAddress: number, size: number, hostAddress: bigint): void {
    // struct kvm_userspace_memory_region: slot, flags, guest_phys_addr, memory_size, userspace_addr.
    const region = new DataView(new ArrayBuffer(32))
    region.setUint32(0, slot, true)
    region.setUint32(4, flags, true)
    region.setBigUint64(8, BigInt(guestAddress), true)
    region.setBigUint64(16, BigInt(size), true)
    region.setBigUint64(24, hostAddress, true)
    this.#fd.ioctl(KVM_SET_USER_MEMORY_REGION, region, 'KVM_SET_USER_MEMORY_REGION')
  }

  #defaultRoutes(): void {
    this.routing.setDefaultPins().markCommitted()
  }

  #registration(undo: () => void): Registration {
    let done = false
    const remove = (): void => {
      if (done || this.#fd.closed) return
      done = true
      undo()
    }
    return { remove, [Symbol.dispose]: remove }
  }
}

function sized(state: Uint8Array, size: number): Uint8Array {
  if (state.byteLength !== size)
    throw new RangeError(`a state of ${state.byteLength} bytes in place of ${size}`)
  return state
}

const hex = (value: number): string => `0x${value.toString(16)}`

/** An ioctl's refusal, with the reason that its errno has in this place. */
function refused(what: string, error: unknown, reasons: Record<string, string>): unknown {
  if (!(error instanceof SysError)) return error
  const reason = reasons[error.code]
  if (reason === undefined) return error
  return new CoracleError('KVM_REFUSED', `${what}: ${reason} (${error.code})`, { cause: error })
}
