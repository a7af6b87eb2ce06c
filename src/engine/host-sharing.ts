import { CoracleError } from '../errors.js'
import type { IsolationName } from '../isolation/sandbox.js'
import type { CreateRequest, HostNamespace } from './record.js'

const NAMESPACE: Readonly<Record<HostNamespace, string>> = {
  pid: "the host's processes",
  ipc: "the host's shared memory",
  uts: "the host's name",
}

/* What ext4 takes with blocks of 4 KiB, and a file with holes on most file systems. */
const MINIMUM_DISK = 16 * 1024 ** 2
const MAXIMUM_DISK = 16 * 1024 ** 4 - 1024 ** 2

/**
 * Refuses what of the host a container asks to share and cannot have: a virtual machine has a kernel of its own.
 * @throws CoracleError INVALID_ARGUMENT, which names the isolation that can
 */
export function checkSharing(request: CreateRequest, isolation: IsolationName): void {
  const {
    hostNamespaces = [],
    deviceFiles = [],
    cgroupNamespace,
    diskSize,
    hostname,
    noSharedMemory,
    ipcContainer,
    ipcShareable,
  } = request
  const refuse = (what: string): never => {
    throw new CoracleError('INVALID_ARGUMENT', what)
  }
  if (hostname && hostNamespaces.includes('uts')) refuse('conflicting options: hostname and the UTS mode')
  if ((noSharedMemory === true || ipcContainer) && request.shmSize !== undefined)
    refuse('conflicting options: the size of /dev/shm and an IPC mode without one of its own')
  if (diskSize !== undefined && !(diskSize >= MINIMUM_DISK && diskSize <= MAXIMUM_DISK))
    refuse(`a writable layer of ${diskSize} bytes: it has 16 MiB to 16 TiB`)
  if (isolation === 'process') {
    if (diskSize !== undefined)
      refuse(
        'a size of the writable layer goes with --isolation microvm: with process it is in a folder of the host',
      )
    return
  }
  const own = 'a virtual machine has a kernel of its own; --isolation process shares them'
  for (const name of hostNamespaces)
    refuse(`--${name}=host: a microVM cannot have ${NAMESPACE[name]}: ${own}`)
  if (request.pidContainer)
    refuse(`--pid=container:…: a microVM cannot be among another container's processes: ${own}`)
  if (ipcContainer)
    refuse(`--ipc=container:…: a microVM cannot have another container's shared memory: ${own}`)
  if (ipcShareable === true)
    refuse(`--ipc=shareable: a microVM cannot have its shared memory used by another container: ${own}`)
  for (const rule of request.deviceRules ?? [])
    refuse(`--device-cgroup-rule ${rule.slice(0, 64)}: a microVM cannot have devices of the host: ${own}`)
  if (cgroupNamespace === 'host') refuse(`--cgroupns=host: a microVM cannot have the host's cgroups: ${own}`)
  for (const { source } of deviceFiles)
    refuse(
      `--device ${source}: a microVM cannot have device files of the host: ${own}; whole PCI devices it can have: sriov=ADAPTER or pci=ADDRESS`,
    )
}
