/**
 * KVM's ioctl numbers, capabilities and flags under their names of linux/kvm.h and asm/kvm.h (x86-64).
 * A number's size field is that of the header's structure, so that a wrong one shows as ENOTTY, not as a corrupted
 * structure.
 */
const KVMIO = 0xae
const IOC_WRITE = 1
const IOC_READ = 2

/** _IOC of asm-generic/ioctl.h: direction in bits 30-31, size 16-29, type 8-15, number 0-7. */
const ioc = (direction: number, number: number, size: number): number =>
  ((direction << 30) | (size << 16) | (KVMIO << 8) | number) >>> 0
const io = (number: number): number => ioc(0, number, 0)
const ior = (number: number, size: number): number => ioc(IOC_READ, number, size)
const iow = (number: number, size: number): number => ioc(IOC_WRITE, number, size)
const iowr = (number: number, size: number): number => ioc(IOC_READ | IOC_WRITE, number, size)

export const KVM_API_VERSION = 12

// On /dev/kvm.
export const KVM_GET_API_VERSION = io(0x00)
export const KVM_CREATE_VM = io(0x01)
export const KVM_GET_MSR_INDEX_LIST = iowr(0x02, 4)
export const KVM_CHECK_EXTENSION = io(0x03)
export const KVM_GET_VCPU_MMAP_SIZE = io(0x04)
export const KVM_GET_SUPPORTED_CPUID = iowr(0x05, 8)
export const KVM_GET_MSR_FEATURE_INDEX_LIST = iowr(0x0a, 4)

// On a VM.
export const KVM_CREATE_VCPU = io(0x41)
export const KVM_GET_DIRTY_LOG = iow(0x42, 16)
export const KVM_SET_USER_MEMORY_REGION = iow(0x46, 32)
export const KVM_SET_TSS_ADDR = io(0x47)
export const KVM_SET_IDENTITY_MAP_ADDR = iow(0x48, 8)
export const KVM_CREATE_IRQCHIP = io(0x60)
export const KVM_IRQ_LINE = iow(0x61, 8)
export const KVM_GET_IRQCHIP = iowr(0x62, 520)
export const KVM_SET_IRQCHIP = ior(0x63, 520)
export const KVM_SET_GSI_ROUTING = iow(0x6a, 8)
export const KVM_IRQFD = iow(0x76, 32)
export const KVM_CREATE_PIT2 = iow(0x77, 64)
export const KVM_IOEVENTFD = iow(0x79, 64)
export const KVM_SET_CLOCK = iow(0x7b, 48)
export const KVM_GET_CLOCK = ior(0x7c, 48)
export const KVM_GET_PIT2 = ior(0x9f, 112)
export const KVM_SET_PIT2 = iow(0xa0, 112)
export const KVM_ENABLE_CAP = iow(0xa3, 104)
export const KVM_SIGNAL_MSI = iow(0xa5, 32)
export const KVM_CREATE_DEVICE = iowr(0xe0, 12)

// On a device of KVM's.
export const KVM_SET_DEVICE_ATTR = iow(0xe1, 24)

// On a vCPU.
export const KVM_RUN = io(0x80)
export const KVM_GET_REGS = ior(0x81, 144)
export const KVM_SET_REGS = iow(0x82, 144)
export const KVM_GET_SREGS = ior(0x83, 312)
export const KVM_SET_SREGS = iow(0x84, 312)
export const KVM_INTERRUPT = iow(0x86, 4)
export const KVM_GET_MSRS = iowr(0x88, 8)
export const KVM_SET_MSRS = iow(0x89, 8)
export const KVM_SET_SIGNAL_MASK = iow(0x8b, 4)
export const KVM_GET_FPU = ior(0x8c, 416)
export const KVM_SET_FPU = iow(0x8d, 416)
export const KVM_GET_LAPIC = ior(0x8e, 1024)
export const KVM_SET_LAPIC = iow(0x8f, 1024)
export const KVM_SET_CPUID2 = iow(0x90, 8)
export const KVM_GET_MP_STATE = ior(0x98, 4)
export const KVM_SET_MP_STATE = iow(0x99, 4)
export const KVM_NMI = io(0x9a)
export const KVM_GET_VCPU_EVENTS = ior(0x9f, 64)
export const KVM_SET_VCPU_EVENTS = iow(0xa0, 64)
export const KVM_GET_DEBUGREGS = ior(0xa1, 128)
export const KVM_SET_DEBUGREGS = iow(0xa2, 128)
export const KVM_SET_TSC_KHZ = io(0xa2)
export const KVM_GET_TSC_KHZ = io(0xa3)
export const KVM_GET_XSAVE = ior(0xa4, 4096)
export const KVM_SET_XSAVE = iow(0xa5, 4096)
export const KVM_GET_XCRS = ior(0xa6, 392)
export const KVM_SET_XCRS = iow(0xa7, 392)
export const KVM_KVMCLOCK_CTRL = io(0xad)
export const KVM_GET_XSAVE2 = ior(0xcf, 4096)

// Capabilities, for KVM_CHECK_EXTENSION and KVM_ENABLE_CAP.
export const KVM_CAP_IRQCHIP = 0
export const KVM_CAP_HLT = 1
export const KVM_CAP_USER_MEMORY = 3
export const KVM_CAP_SET_TSS_ADDR = 4
export const KVM_CAP_EXT_CPUID = 7
export const KVM_CAP_NR_VCPUS = 9
export const KVM_CAP_NR_MEMSLOTS = 10
export const KVM_CAP_MP_STATE = 14
export const KVM_CAP_SYNC_MMU = 16
export const KVM_CAP_IRQ_ROUTING = 25
export const KVM_CAP_IRQFD = 32
export const KVM_CAP_PIT2 = 33
export const KVM_CAP_IOEVENTFD = 36
export const KVM_CAP_SET_IDENTITY_MAP_ADDR = 37
export const KVM_CAP_ADJUST_CLOCK = 39
export const KVM_CAP_VCPU_EVENTS = 41
export const KVM_CAP_XSAVE = 55
export const KVM_CAP_XCRS = 56
export const KVM_CAP_TSC_CONTROL = 60
export const KVM_CAP_GET_TSC_KHZ = 61
export const KVM_CAP_MAX_VCPUS = 66
export const KVM_CAP_TSC_DEADLINE_TIMER = 72
export const KVM_CAP_KVMCLOCK_CTRL = 76
export const KVM_CAP_SIGNAL_MSI = 77
export const KVM_CAP_READONLY_MEM = 81
export const KVM_CAP_IOEVENTFD_NO_LENGTH = 100
export const KVM_CAP_SPLIT_IRQCHIP = 121
export const KVM_CAP_X2APIC_API = 129
export const KVM_CAP_IMMEDIATE_EXIT = 136
export const KVM_CAP_X86_DISABLE_EXITS = 143
export const KVM_CAP_XSAVE2 = 208

// Flags.
export const KVM_MEM_LOG_DIRTY_PAGES = 1
export const KVM_MEM_READONLY = 2
export const KVM_IRQFD_FLAG_DEASSIGN = 1
export const KVM_IRQFD_FLAG_RESAMPLE = 2
export const KVM_IOEVENTFD_FLAG_DATAMATCH = 1
export const KVM_IOEVENTFD_FLAG_PIO = 2
export const KVM_IOEVENTFD_FLAG_DEASSIGN = 4
export const KVM_PIT_SPEAKER_DUMMY = 1
export const KVM_DEV_TYPE_VFIO = 4
export const KVM_DEV_VFIO_GROUP = 1
export const KVM_DEV_VFIO_GROUP_ADD = 1
export const KVM_IRQCHIP_PIC_MASTER = 0
export const KVM_IRQCHIP_PIC_SLAVE = 1
export const KVM_IRQCHIP_IOAPIC = 2
export const KVM_IRQ_ROUTING_IRQCHIP = 1
export const KVM_IRQ_ROUTING_MSI = 2
export const KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1
export const KVM_MP_STATE_RUNNABLE = 0
export const KVM_MP_STATE_UNINITIALIZED = 1
export const KVM_MP_STATE_INIT_RECEIVED = 2
export const KVM_MP_STATE_HALTED = 3
export const KVM_MP_STATE_SIPI_RECEIVED = 4
