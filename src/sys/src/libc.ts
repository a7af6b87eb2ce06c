import koffi from 'koffi'

/**
 * The C library's functions, as declared in their man pages. Pointer arguments take a BigInt address,
 * a typed array (whose memory is used in place, without a copy) or null.
 * Nothing outside this package sees these: each has a checked wrapper beside it.
 */
const lib = koffi.load('libc.so.6')

export type Pointer = bigint | ArrayBufferView | null

export const libc = {
  open: lib.func('int open(const char *path, int flags, unsigned int mode)'),
  close: lib.func('int close(int fd)'),
  dup: lib.func('int fcntl(int fd, int cmd, long arg)'),
  dup2: lib.func('int dup2(int fd, int number)'),
  read: lib.func('int64_t read(int fd, void *buf, size_t count)'),
  write: lib.func('int64_t write(int fd, void *buf, size_t count)'),
  pread: lib.func('int64_t pread64(int fd, void *buf, size_t count, int64_t offset)'),
  pwrite: lib.func('int64_t pwrite64(int fd, void *buf, size_t count, int64_t offset)'),
  readv: lib.func('int64_t readv(int fd, void *iov, int count)'),
  writev: lib.func('int64_t writev(int fd, void *iov, int count)'),
  preadv: lib.func('int64_t preadv64(int fd, void *iov, int count, int64_t offset)'),
  pwritev: lib.func('int64_t pwritev64(int fd, void *iov, int count, int64_t offset)'),
  lseek: lib.func('int64_t lseek64(int fd, int64_t offset, int whence)'),
  ftruncate: lib.func('int ftruncate64(int fd, int64_t length)'),
  fdatasync: lib.func('int fdatasync(int fd)'),
  fsync: lib.func('int fsync(int fd)'),
  fallocate: lib.func('int fallocate64(int fd, int mode, int64_t offset, int64_t length)'),
  flock: lib.func('int flock(int fd, int operation)'),
  ioctl: lib.func('int ioctl(int fd, unsigned long request, void *arg)'),
  ioctlValue: lib.func('int ioctl(int fd, unsigned long request, unsigned long arg)'),
  mmap: lib.func('void *mmap64(void *addr, size_t length, int prot, int flags, int fd, int64_t offset)'),
  munmap: lib.func('int munmap(void *addr, size_t length)'),
  madvise: lib.func('int madvise(void *addr, size_t length, int advice)'),
  memfdCreate: lib.func('int memfd_create(const char *name, unsigned int flags)'),
  eventfd: lib.func('int eventfd(unsigned int initial, int flags)'),
  epollCreate: lib.func('int epoll_create1(int flags)'),
  epollCtl: lib.func('int epoll_ctl(int epfd, int op, int fd, void *event)'),
  epollWait: lib.func('int epoll_wait(int epfd, void *events, int max, int timeout)'),
  timerfdCreate: lib.func('int timerfd_create(int clock, int flags)'),
  timerfdSettime: lib.func('int timerfd_settime(int fd, int flags, void *value, void *old)'),
  socket: lib.func('int socket(int domain, int type, int protocol)'),
  socketpair: lib.func('int socketpair(int domain, int type, int protocol, void *pair)'),
  bind: lib.func('int bind(int fd, void *addr, unsigned int length)'),
  listen: lib.func('int listen(int fd, int backlog)'),
  accept: lib.func('int accept4(int fd, void *addr, void *length, int flags)'),
  connect: lib.func('int connect(int fd, void *addr, unsigned int length)'),
  shutdown: lib.func('int shutdown(int fd, int how)'),
  setsockopt: lib.func('int setsockopt(int fd, int level, int name, void *value, unsigned int length)'),
  sendmsg: lib.func('int64_t sendmsg(int fd, void *msg, int flags)'),
  recvmsg: lib.func('int64_t recvmsg(int fd, void *msg, int flags)'),
  interfaceIndex: lib.func('unsigned int if_nametoindex(const char *name)'),
  sigmask: lib.func('int pthread_sigmask(int how, void *set, void *old)'),
  sigtimedwait: lib.func('int sigtimedwait(void *set, void *info, void *timeout)'),
  pipe: lib.func('int pipe2(void *pair, int flags)'),
  waitpid: lib.func('int waitpid(int pid, void *status, int options)'),
  gettid: lib.func('int gettid()'),
  tgkill: lib.func('int tgkill(int tgid, int tid, int sig)'),
  renameat2: lib.func(
    'int renameat2(int oldFolder, const char *old, int newFolder, const char *new, unsigned int flags)',
  ),
  mount: lib.func(
    'int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)',
  ),
  umount: lib.func('int umount2(const char *target, int flags)'),
  /** Has no wrapper in older C libraries. */
  moveMount: lib.func(
    'int64_t syscall(int64_t number, int from, const char *fromPath, int to, const char *toPath, unsigned int flags)',
  ),
  openTree: lib.func('int64_t syscall(int64_t number, int fd, const char *path, unsigned int flags)'),
  seccomp: lib.func(
    'int64_t syscall(int64_t number, unsigned int operation, unsigned int flags, void *args)',
  ),
  unshare: lib.func('int unshare(int flags)'),
  prlimit: lib.func('int prlimit(int pid, int resource, void *set, void *old)'),
  setns: lib.func('int setns(int fd, int type)'),
  send: lib.func('int64_t send(int fd, void *data, size_t length, int flags)'),
  recv: lib.func('int64_t recv(int fd, void *into, size_t length, int flags)'),
  prctl: lib.func(
    'int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)',
  ),
  mknod: lib.func('int mknod(const char *path, unsigned int mode, unsigned long dev)'),
}

/** The value of `errno` that the last call of this thread left. */
export const errno = (): number => koffi.errno()

/** The address of a typed array's first byte, for structures that hold pointers. It must outlive their use. */
export const addressOf = (data: ArrayBufferView): bigint => koffi.address(data)

/** `length` bytes at `address` as an ArrayBuffer, without a copy. Dangles once they are unmapped. */
export const viewAt = (address: bigint, length: number): ArrayBuffer => koffi.view(address, length)
