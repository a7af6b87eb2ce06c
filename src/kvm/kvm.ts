import { Fd, O_RDWR, SysError } from '@coracle/sys'
import { CoracleError } from '../errors.js'
import { type CpuidEntry, MAX_CPUID_ENTRIES, decodeCpuid, newCpuidTable } from './cpuid.js'
import {
  KVM_API_VERSION,
  KVM_CHECK_EXTENSION,
  KVM_CREATE_VM,
  KVM_GET_API_VERSION,
  KVM_GET_MSR_FEATURE_INDEX_LIST,
  KVM_GET_MSR_INDEX_LIST,
  KVM_GET_SUPPORTED_CPUID,
  KVM_GET_VCPU_MMAP_SIZE,
} from './ioctl.js'
import { Vm } from './vm.js'

/** The host's hypervisor: an open /dev/kvm (Documentation/virt/kvm/api.rst §4, system ioctls). */
export class Kvm implements Disposable {
  readonly #fd: Fd
  /** Bytes of a vCPU's run area (KVM_GET_VCPU_MMAP_SIZE). */
  readonly vcpuMmapSize: number

  private constructor(fd: Fd) {
    this.#fd = fd
    this.vcpuMmapSize = fd.ioctl(KVM_GET_VCPU_MMAP_SIZE, 0, 'KVM_GET_VCPU_MMAP_SIZE')
  }

  /** @throws {@link CoracleError} KVM_UNAVAILABLE, with the cause and the way out */
  static open(path = '/dev/kvm'): Kvm {
    let fd: Fd
    try {
      fd = Fd.openOrDuplicate(path, O_RDWR)
    } catch (error) {
      throw new CoracleError('KVM_UNAVAILABLE', explain(path, error), { cause: error })
    }
    try {
      const version = fd.ioctl(KVM_GET_API_VERSION, 0, 'KVM_GET_API_VERSION')
      if (version !== KVM_API_VERSION)
        throw new CoracleError(
          'KVM_UNAVAILABLE',
          `${path} speaks KVM version ${version}, not ${KVM_API_VERSION}`,
        )
      return new Kvm(fd)
    } catch (error) {
      fd.close()
      if (error instanceof CoracleError) throw error
      throw new CoracleError('KVM_UNAVAILABLE', `${path} is not KVM (${String(error)})`, { cause: error })
    }
  }

  /** KVM_CHECK_EXTENSION. @param capability `KVM_CAP_*` @returns 0 where it is missing, else its value */
  checkExtension(capability: number): number {
    return this.#fd.ioctl(KVM_CHECK_EXTENSION, capability, 'KVM_CHECK_EXTENSION')
  }

  /** What CPUID this host and KVM can give a guest (KVM_GET_SUPPORTED_CPUID). */
  supportedCpuid(): CpuidEntry[] {
    const table = newCpuidTable(MAX_CPUID_ENTRIES)
    this.#fd.ioctl(KVM_GET_SUPPORTED_CPUID, table, 'KVM_GET_SUPPORTED_CPUID')
    return decodeCpuid(table)
  }

  /** The MSRs that a snapshot must hold (KVM_GET_MSR_INDEX_LIST). */
  msrIndices(): number[] {
    return this.#msrList(KVM_GET_MSR_INDEX_LIST, 'KVM_GET_MSR_INDEX_LIST')
  }

  /** The MSRs that describe features of host and KVM (KVM_GET_MSR_FEATURE_INDEX_LIST). */
  featureMsrIndices(): number[] {
    return this.#msrList(KVM_GET_MSR_FEATURE_INDEX_LIST, 'KVM_GET_MSR_FEATURE_INDEX_LIST')
  }

  /** A virtual machine without memory, processors or interrupt controller (KVM_CREATE_VM). */
  createVm(): Vm {
    for (;;) {
      // A signal to this thread during the call is no failure: KVM_CREATE_VM answers EINTR then.
      const number = this.#fd.ioctlAgain(KVM_CREATE_VM, 0, 'KVM_CREATE_VM')
      if (number >= 0) return Vm.own(new Fd(number), this.vcpuMmapSize)
    }
  }

  close(): void {
    this.#fd.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #msrList(request: number, name: string): number[] {
    // struct kvm_msr_list: nmsrs, then the indices. KVM writes the true count beside E2BIG.
    const list = new Uint32Array(1 + 1024)
    list[0] = list.length - 1
    this.#fd.ioctl(request, list, name)
    return Array.from(list.subarray(1, 1 + list[0]))
  }
}

function explain(path: string, error: unknown): string {
  const code = error instanceof SysError ? error.code : ''
  if (code === 'EACCES' || code === 'EPERM')
    return `no permission on ${path}: add this user to the group kvm, or use --hypervisor qemu`
  if (code === 'ENOENT' || code === 'ENODEV' || code === 'ENXIO')
    return `${path} is not there (${code}): switch on virtualization in the firmware and load kvm_intel or kvm_amd, or use --hypervisor qemu`
  return `cannot open ${path}: ${String(error)}`
}
