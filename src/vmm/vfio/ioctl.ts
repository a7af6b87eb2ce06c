/**
 * VFIO's ioctl numbers, flags and offsets under their names of linux/vfio.h. All numbers are `_IO(VFIO_TYPE,
 * VFIO_BASE + n)`: the structures say their own size.
 */
const VFIO_TYPE = 0x3b
const VFIO_BASE = 100
const io = (number: number): number => (VFIO_TYPE << 8) | (VFIO_BASE + number)

export const VFIO_API_VERSION = 0
export const VFIO_TYPE1v2_IOMMU = 3

// On /dev/vfio/vfio, the container.
export const VFIO_GET_API_VERSION = io(0)
export const VFIO_CHECK_EXTENSION = io(1)
export const VFIO_SET_IOMMU = io(2)
export const VFIO_IOMMU_MAP_DMA = io(13)
export const VFIO_IOMMU_UNMAP_DMA = io(14)

// On /dev/vfio/N, a group.
export const VFIO_GROUP_GET_STATUS = io(3)
export const VFIO_GROUP_SET_CONTAINER = io(4)
export const VFIO_GROUP_GET_DEVICE_FD = io(6)

// On a device.
export const VFIO_DEVICE_GET_INFO = io(7)
export const VFIO_DEVICE_GET_REGION_INFO = io(8)
export const VFIO_DEVICE_GET_IRQ_INFO = io(9)
export const VFIO_DEVICE_SET_IRQS = io(10)
export const VFIO_DEVICE_RESET = io(11)

export const VFIO_GROUP_FLAGS_VIABLE = 1
export const VFIO_DEVICE_FLAGS_RESET = 1
export const VFIO_DEVICE_FLAGS_PCI = 2
export const VFIO_REGION_INFO_FLAG_MMAP = 4
export const VFIO_REGION_INFO_FLAG_CAPS = 8
export const VFIO_REGION_INFO_CAP_SPARSE_MMAP = 1
export const VFIO_DMA_MAP_FLAG_READ = 1
export const VFIO_DMA_MAP_FLAG_WRITE = 2
export const VFIO_IRQ_SET_DATA_NONE = 1
export const VFIO_IRQ_SET_DATA_EVENTFD = 4
export const VFIO_IRQ_SET_ACTION_TRIGGER = 32

/** Regions of a PCI device: the BARs are 0 to 5. */
export const VFIO_PCI_CONFIG_REGION_INDEX = 7
export const VFIO_PCI_MSIX_IRQ_INDEX = 2
export const VFIO_PCI_ERR_IRQ_INDEX = 3
export const VFIO_PCI_REQ_IRQ_INDEX = 4
