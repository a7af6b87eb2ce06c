#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define DEVICE_TIMEOUT_MS 10000
#define ROOT "/run/c/rootfs"

static long long now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* The kernel makes the nodes of /dev when a driver is done with a device, which may be after its module has loaded. */
bool wait_for_device(const char *device, struct failure *f) {
  if (strncmp(device, "/dev/", 5) != 0) return fail(f, EINVAL, "MOUNT", "%s", device);
  if (access(device, F_OK) == 0) return true;
  int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  if (fd < 0 || inotify_add_watch(fd, "/dev", IN_CREATE) < 0) {
    int error = errno;
    if (fd >= 0) close(fd);
    return fail(f, error, "MOUNT", "watch of /dev");
  }
  long long end = now_ms() + DEVICE_TIMEOUT_MS;
  bool found;
  while (!(found = access(device, F_OK) == 0)) {
    long long left = end - now_ms();
    if (left <= 0) break;
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    if (poll(&wait, 1, (int)left) <= 0) continue;
    char events[4096];
    while (read(fd, events, sizeof events) > 0) continue;
  }
  close(fd);
  return found || fail(f, ENODEV, "MOUNT", "%s", device);
}

bool mount_device(const char *device, const char *target, const char *type, unsigned long flags, const char *options,
                  struct failure *f) {
  if (!wait_for_device(device, f)) return false;
  if (mount(device, target, type, flags, options) < 0)
    return fail(f, errno, "MOUNT", "%s (%s) on %s", device, type, target);
  return true;
}

static bool make_directory(const char *path, struct failure *f) {
  if (mkdir(path, 0755) < 0 && errno != EEXIST) return fail(f, errno, "MOUNT", "%s", path);
  return true;
}

/*
 * /run/l/N   the read-only layers, 0 the lowest
 * /run/u     the writable layer: upper/ and work/
 * /run/c     the bundle; /run/c/rootfs the overlay of them all
 */
bool mount_root(const struct root *root, struct failure *f) {
  if (!make_directory("/run/l", f) || !make_directory("/run/u", f) || !make_directory("/run/c", f) ||
      !make_directory(ROOT, f))
    return false;
  /* mount(2) takes at most a page of options: 128 layers of up to 11 bytes fit with room to spare. */
  char options[4096] = "lowerdir=";
  size_t size = strlen(options);
  for (uint32_t i = root->count; i-- > 0;) {
    char path[24];
    snprintf(path, sizeof path, "/run/l/%u", i);
    const struct layer *layer = &root->layers[i];
    if (!make_directory(path, f) ||
        !mount_device(layer->device, path, layer->type, MS_RDONLY | MS_NOATIME, layer->options, f))
      return false;
    size += (size_t)snprintf(options + size, sizeof options - size, "%s%s", path, i > 0 ? ":" : "");
  }
  const struct layer *upper = &root->upper;
  if (upper->device[0] == '\0') {
    if (mount("upper", "/run/u", "tmpfs", MS_NOATIME, upper->options) < 0)
      return fail(f, errno, "MOUNT", "tmpfs for the writable layer");
  } else if (!mount_device(upper->device, "/run/u", upper->type, MS_NOATIME, upper->options, f)) {
    return false;
  }
  if (!make_directory("/run/u/upper", f) || !make_directory("/run/u/work", f)) return false;
  int more = snprintf(options + size, sizeof options - size, ",upperdir=/run/u/upper,workdir=/run/u/work%s%s",
                      root->overlay[0] != '\0' ? "," : "", root->overlay);
  if (more < 0 || (size_t)more >= sizeof options - size)
    return fail(f, E2BIG, "MOUNT", "options of the overlay");
  if (mount("overlay", ROOT, "overlay", MS_NOATIME, options) < 0)
    return fail(f, errno, "MOUNT", "overlay of %u layers", root->count);
  return true;
}

bool mount_share(struct reader *body, struct failure *f) {
  char tag[37], path[64];
  read_string(body, tag, sizeof tag);
  if (body->bad || body->left != 0 || tag[0] == '\0' || tag[0] == '.' || strchr(tag, '/') != NULL)
    return fail(f, EINVAL, "PROTOCOL", "SHARE");
  snprintf(path, sizeof path, "/run/v/%s", tag);
  if (!make_directory("/run/v", f) || !make_directory(path, f)) return false;
  if (mount(tag, path, "virtiofs", 0, NULL) < 0) return fail(f, errno, "MOUNT", "the host's share %s", tag);
  return true;
}

ssize_t read_root(const char *path, uint64_t offset, void *out, size_t size, struct failure *f) {
  int root = open(ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC);
  struct open_how how = {.flags = O_RDONLY | O_NONBLOCK | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
  int fd = root < 0 ? -1 : (int)syscall(SYS_openat2, root, path, &how, sizeof how);
  struct stat stat;
  bool regular = fd >= 0 && fstat(fd, &stat) == 0 && S_ISREG(stat.st_mode);
  ssize_t n = regular ? pread(fd, out, size, (off_t)offset) : -1;
  int error = fd >= 0 && !regular ? EINVAL : errno;
  if (fd >= 0) close(fd);
  if (root >= 0) close(root);
  if (n < 0) fail(f, error, "FILE", "%s", path);
  return n;
}

/* After the workload: what was written reaches the disk. Without a writable layer there is nothing to do. */
void unmount_root(void) {
  umount2(ROOT, 0);
  /* Busy or not, the data is safe after the sync; a clean unmount only spares the next mount its journal. */
  if (umount2("/run/u", 0) < 0) sync();
}
