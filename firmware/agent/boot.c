/* From the kernel's first instruction in user space to a root file system that holds the tools. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FOR_HELLO "/modules/hello"
#define FOR_WORKLOAD "/modules/workload"

/* PID 1 that ends makes the kernel panic, which the host notices; the console says why. */
void die(const char *what) {
  char line[256];
  int size = snprintf(line, sizeof line, "<0>coracle: %s: %s\n", what, strerror(errno));
  int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
  if (fd >= 0 && size > 0 && write(fd, line, (size_t)size) < 0) _exit(2);
  _exit(1);
}

bool write_file(const char *path, const void *data, size_t size, mode_t mode) {
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
  if (fd < 0) return false;
  const uint8_t *at = data;
  while (size > 0) {
    ssize_t n = write(fd, at, size);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      close(fd);
      return false;
    }
    at += n;
    size -= (size_t)n;
  }
  return close(fd) == 0;
}

static void must_mount(const char *source, const char *target, const char *type, unsigned long flags,
                       const char *options) {
  if (mkdir(target, 0755) < 0 && errno != EEXIST) die(target);
  if (mount(source, target, type, flags, options) < 0) die(target);
}

/* Parameters of the modules are kept as the kernel's defaults: the list names files, in the order of their needs. */
static void load_module(const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) die(path);
  if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST) die(path);
  close(fd);
}

/*
 * One module a line: its path, and after a space a path that must be there for the module to be wanted, such as
 * that of a bus which only some machines have.
 */
void load_modules(const char *list) {
  FILE *file = fopen(list, "re");
  if (file == NULL) die(list);
  char line[256];
  while (fgets(line, sizeof line, file) != NULL) {
    line[strcspn(line, "\n")] = '\0';
    char *condition = strchr(line, ' ');
    if (condition != NULL) *condition++ = '\0';
    if (line[0] != '\0' && (condition == NULL || access(condition, F_OK) == 0)) load_module(line);
  }
  fclose(file);
}

void boot_early(void) {
  umask(022);
  must_mount("dev", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
  must_mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
  must_mount("sys", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
  load_modules(FOR_HELLO);
}

static void enable_controllers(void) {
  static const char *const names[] = {"cpuset", "cpu", "io", "memory", "pids", "hugetlb"};
  /* One write each: a controller that this kernel lacks must not cost the others. */
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char text[16];
    int size = snprintf(text, sizeof text, "+%s", names[i]);
    int fd = open("/sys/fs/cgroup/cgroup.subtree_control", O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    if (write(fd, text, (size_t)size) < 0 && errno == EIO) die("cgroup.subtree_control");
    close(fd);
  }
}

static void remove_initramfs(void) {
  /* A list of what the host packed; rmdir and unlink of what is a mount point fail, as they should. */
  FILE *list = fopen("/modules/files", "re");
  if (list == NULL) return;
  char line[256];
  while (fgets(line, sizeof line, list) != NULL) {
    line[strcspn(line, "\n")] = '\0';
    unlink(line);
  }
  fclose(list);
}

bool mount_tools(const char *device, const char *type, const char *options, struct failure *f) {
  static bool done;
  if (done) return fail(f, EALREADY, "STATE", "the tools");
  load_modules(FOR_WORKLOAD);
  if (mkdir("/tools", 0755) < 0 && errno != EEXIST) return fail(f, errno, "MOUNT", "/tools");
  if (!mount_device(device, "/tools", type, MS_RDONLY | MS_NODEV | MS_NOSUID, options, f)) return false;
  must_mount("run", "/tools/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
  must_mount("tmp", "/tools/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
  if (mkdir("/dev/pts", 0755) < 0 && errno != EEXIST) die("/dev/pts");
  must_mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
  must_mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
  must_mount("cgroup", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
  enable_controllers();
  static const char *const moved[] = {"/dev", "/proc", "/sys"};
  for (size_t i = 0; i < sizeof moved / sizeof *moved; i++) {
    char target[32];
    snprintf(target, sizeof target, "/tools%s", moved[i]);
    if (mount(moved[i], target, NULL, MS_MOVE, NULL) < 0) die(target);
  }
  remove_initramfs();
  /* pivot_root(2) refuses the initial root, so the tools are moved over it: crun pivots within theirs. */
  if (chdir("/tools") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
    die("switch to the tools");
  loopback_up();
  done = true;
  return true;
}
