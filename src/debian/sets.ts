/** A named set of Debian packages that are unpacked into one folder. */
export interface PackageSet {
  /** Debian's suite, such as `bookworm`; `-security` is added where the suite has one. */
  readonly suite: string
  /** The suite is a stable release with a security suite of its own. */
  readonly security: boolean
  /** Packages by name. */
  readonly packages: readonly string[]
  /** Also what they depend on. Without: the packages alone, and of a metapackage what it stands for. */
  readonly dependencies: boolean
  /** Packages of the closure that our use of the set never loads: left out to spare the newcomer the download. */
  readonly except?: readonly string[]
  /** Programs of the set that others ask for by name ({@link toolCommand}). */
  readonly tools: readonly string[]
}

/** Maintainer scripts are never run, so what only they need is not needed. */
const SCRIPTS_ONLY = ['adduser', 'passwd', 'debconf', 'init-system-helpers', 'ucf', 'sensible-utils']

/** What PAM, user management and libc's own extras bring along; no program of ours loads them. */
const UNUSED = [
  ...SCRIPTS_ONLY,
  'gcc-12-base',
  'gcc-14-base',
  'iso-codes',
  'libaudit-common',
  'libpam-modules',
  'libpam-modules-bin',
  'libpam0g',
  'libsemanage-common',
  'libsemanage2',
  'libdb5.3',
  'login',
  'login.defs',
  'mount',
  'logsave',
]

const QEMU = {
  packages: ['qemu-system-x86'],
  dependencies: true,
  except: [...UNUSED, 'openssl'],
} as const

export const SETS = {
  /** QEMU: emulates the lab's host, and runs microVMs where there is no hardware KVM. */
  qemu: { ...QEMU, suite: 'bookworm', security: true, tools: ['qemu-system-x86_64'] },
  /** What the host and the guest share: the OCI runtime, and the small programs around images and kernels. */
  tools: {
    suite: 'bookworm',
    security: true,
    packages: ['crun', 'e2fsprogs', 'busybox-static', 'kmod', 'lz4', 'zstd', 'xz-utils'],
    dependencies: true,
    except: UNUSED,
    tools: [
      'crun',
      'mkfs.ext4',
      'e2fsck',
      'resize2fs',
      'debugfs',
      'tune2fs',
      'dumpe2fs',
      'busybox',
      'kmod',
    ].concat(['modprobe', 'insmod', 'depmod', 'lz4', 'zstd', 'xz']),
  },
  /** EROFS images. Bookworm's erofs-utils 1.5 lacks what we use. */
  erofs: {
    suite: 'trixie',
    security: true,
    packages: ['erofs-utils'],
    dependencies: true,
    except: UNUSED,
    tools: ['mkfs.erofs', 'fsck.erofs', 'dump.erofs'],
  },
  /** Shares folders with guests over vhost-user. */
  virtiofsd: {
    suite: 'trixie',
    security: true,
    packages: ['virtiofsd'],
    dependencies: true,
    except: UNUSED,
    tools: ['virtiofsd'],
  },
  /** A guest's network without any right of the host: what our vhost-user frontend is tried with in the tests. */
  passt: {
    suite: 'trixie',
    security: true,
    packages: ['passt'],
    dependencies: true,
    except: UNUSED,
    tools: ['passt'],
  },
  /** The packet filter's program, for networks. */
  network: {
    suite: 'bookworm',
    security: true,
    packages: ['nftables'],
    dependencies: true,
    except: UNUSED,
    tools: ['nft'],
  },
  /** The microVM's kernel. */
  'kernel-cloud': {
    suite: 'bookworm',
    security: true,
    packages: ['linux-image-cloud-amd64'],
    dependencies: false,
    tools: [],
  },
  /** The lab's kernel: it has kvm-amd, VFIO and the network adapters. */
  'kernel-generic': {
    suite: 'bookworm',
    security: true,
    packages: ['linux-image-amd64'],
    dependencies: false,
    tools: [],
  },
  /** The registry that the tests of pulls and pushes talk to. */
  registry: {
    suite: 'bookworm',
    security: true,
    // Its package depends on much that only scripts need.
    packages: ['docker-registry', 'libc6'],
    dependencies: false,
    tools: ['docker-registry'],
  },
  /** Docker compose, which the tests of our API drive. It is a static program and a plugin of Docker's client. */
  compose: {
    suite: 'trixie',
    security: true,
    packages: ['docker-compose', 'libc6'],
    dependencies: false,
    tools: ['docker-compose'],
  },
  /** What the benches of the engine are measured against, with the runtime that we use too. */
  podman: {
    suite: 'bookworm',
    security: true,
    packages: ['podman', 'buildah', 'crun', 'netavark', 'iptables', 'golang-github-containers-common'],
    dependencies: true,
    except: UNUSED,
    tools: ['podman', 'buildah'],
  },
  /** QEMU 11, the lab's: its igb adapter has SR-IOV, and its nested virtualization is years younger. */
  qemu11: { ...QEMU, suite: 'trixie-backports', security: false, tools: [] },
} satisfies Record<string, PackageSet>

export type SetName = keyof typeof SETS
