import { basename } from 'node:path'
import { sysroot } from '../debian/index.js'
import { firmware } from '../firmware/index.js'
import { busyboxImage } from '../image/busybox.js'
import { ImageStore } from '../image/store.js'
import { guestKernel } from '../kernel/index.js'

/** One thing that set-up makes. */
export interface Step {
  /** What it is, for the user. */
  readonly title: string
  /** Makes it where it is not there yet. @returns a few words about what is there now */
  readonly make: () => Promise<string>
  /** Only with `--lab`: what `npm run lab` would otherwise fetch when it first runs. */
  readonly lab?: boolean
}

const packages = async (name: Parameters<typeof sysroot>[0], of: string): Promise<string> => {
  const found = (await sysroot(name)).packages.find((one) => one.name === of)
  return found ? `${of} ${found.version}` : of
}

/** What set-up makes, in this order: each may need what stands before it. */
export const STEPS: readonly Step[] = [
  { title: 'OCI runtime and tools', make: () => packages('tools', 'crun') },
  { title: 'packet filter', make: () => packages('network', 'nftables') },
  { title: 'guest kernel', make: async () => (await guestKernel('cloud')).release },
  { title: 'guest agent and its tools', make: async () => basename((await firmware()).initramfs) },
  { title: 'shared folders', make: () => packages('virtiofsd', 'virtiofsd') },
  { title: 'QEMU', make: () => packages('qemu', 'qemu-system-x86') },
  {
    title: 'busybox image',
    make: async () => (await busyboxImage(await ImageStore.open())).id.slice(0, 'sha256:'.length + 12),
  },
  { title: "the lab's kernel", make: async () => (await guestKernel('generic')).release, lab: true },
  { title: "the lab's QEMU", make: () => packages('qemu11', 'qemu-system-x86'), lab: true },
]
