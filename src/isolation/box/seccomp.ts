/*
 * What the process of a microVM may ask of the kernel: what Node and our devices need, and no more. Everything else
 * is EPERM. There is no fork, no exec (from the hand-over on: {@link forbidStart}), no new socket, no other process,
 * no mount, no namespace, no right to gain.
 */

/* OCI runtime-spec, linux.seccomp. */
interface Argument {
  readonly index: number
  readonly value: number
  readonly valueTwo?: number
  readonly op: 'SCMP_CMP_EQ' | 'SCMP_CMP_MASKED_EQ'
}

interface Rule {
  readonly names: readonly string[]
  readonly action: 'SCMP_ACT_ALLOW' | 'SCMP_ACT_ERRNO'
  readonly errnoRet?: number
  readonly args?: readonly Argument[]
}

export interface SeccompProfile {
  readonly defaultAction: string
  readonly defaultErrnoRet?: number
  readonly architectures?: readonly string[]
  readonly syscalls: readonly Rule[]
}

const EPERM = 1
const ENOSYS = 38
const AF_UNIX = 1
const CLONE_THREAD = 0x10000
/** sys/prctl.h */
const PR_SET_NAME = 15
const PR_SET_VMA = 0x53564d41

const words = (text: string): string[] => text.trim().split(/\s+/)

const FREE = words(`
  read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close fsync fdatasync ftruncate
  fallocate copy_file_range sendfile fadvise64
  open openat newfstatat stat fstat lstat statx fstatfs statfs access faccessat faccessat2 readlink readlinkat
  getdents64 getcwd mkdir mkdirat rename renameat renameat2 unlink unlinkat rmdir umask
  dup dup2 dup3 fcntl flock pipe2 eventfd2 memfd_create
  poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait timerfd_create timerfd_settime
  listen accept4 shutdown sendto recvfrom sendmsg recvmsg getsockopt setsockopt getsockname getpeername
  mmap munmap mremap mprotect madvise brk mincore membarrier mlock munlock pkey_alloc pkey_free pkey_mprotect
  rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait sigaltstack restart_syscall tgkill
  futex set_robust_list rseq set_tid_address sched_yield sched_getaffinity gettid getpid getppid exit exit_group
  getuid geteuid getgid getegid uname sysinfo getrusage times getrandom arch_prctl capget
  clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time getcpu
`)

/** The ioctls of whole subsystems whose descriptors are handed over, by their letter (_IOC_TYPE). */
const KVM_LETTER = 0xae
const VHOST_LETTER = 0xaf
const VFIO_LETTER = 0x3b
/** Of a terminal, a socket, a tap and a file: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIOCLEX; TUN*; FICLONE*. */
const IOCTLS = [
  ...[0x5401, 0x5413, 0x541b, 0x5421, 0x5451],
  ...[0x400454d0, 0x400454d8, 0x400454dc, 0x800454d2],
  ...[0x40049409, 0x4020940d],
]

const equal = (index: number, value: number): Argument => ({ index, value, op: 'SCMP_CMP_EQ' })
const masked = (index: number, mask: number, value: number): Argument => ({
  index,
  value: mask,
  valueTwo: value,
  op: 'SCMP_CMP_MASKED_EQ',
})
const allow = (names: string | readonly string[], ...args: Argument[]): Rule => ({
  names: typeof names === 'string' ? [names] : names,
  action: 'SCMP_ACT_ALLOW',
  ...(args.length > 0 && { args }),
})

/** The filter of crun, which begins with the exec of our program. */
export const BOX_SECCOMP: SeccompProfile = {
  defaultAction: 'SCMP_ACT_ERRNO',
  defaultErrnoRet: EPERM,
  architectures: ['SCMP_ARCH_X86_64'],
  syscalls: [
    allow(FREE),
    // Once, by crun; and our own narrower filter.
    allow(['execve', 'seccomp']),
    // Threads, but no processes. The C library takes the older call where the newer, whose flags cannot be seen, is
    // not there.
    allow('clone', masked(0, CLONE_THREAD, CLONE_THREAD)),
    { names: ['clone3'], action: 'SCMP_ACT_ERRNO', errnoRet: ENOSYS },
    allow('socketpair', equal(0, AF_UNIX)),
    allow('prctl', equal(0, PR_SET_NAME)),
    allow('prctl', equal(0, PR_SET_VMA)),
    // Limits may be read, not set.
    allow('prlimit64', equal(2, 0)),
    allow('getrlimit'),
    ...[KVM_LETTER, VHOST_LETTER, VFIO_LETTER].map((letter) =>
      allow('ioctl', masked(1, 0xff00, letter << 8)),
    ),
    ...IOCTLS.map((request) => allow('ioctl', equal(1, request))),
  ],
}
