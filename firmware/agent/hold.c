/*
 * Standing still for a snapshot of the machine, and going on in another one. While held, the container's processes are
 * frozen and no stream is touched: so in a clone nothing runs before it has an identity of its own, and the reset of all
 * connections, which comes first there, costs no pipe its reader.
 */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROOT "/run/c/rootfs"
#define MACHINE_ID "etc/machine-id"
#define MACHINE_ID_SIZE 33 /* machine-id(5): 32 digits and a newline */
/* How long processes may take to stand still: one that waits for a disk does so in its own time. */
#define FREEZE_TRIES 1000
#define FREEZE_PAUSE_NS 10000000

static bool held, was_frozen;

bool is_held(void) { return held; }

/* Of the container's cgroup, whatever its processes made below. */
static bool open_cgroup(int *folder, struct failure *f) {
  char path[512];
  if (!workload_running()) return fail(f, ESRCH, "STATE", "the container does not run");
  if (!find_cgroup(workload_pid(), path, sizeof path)) return fail(f, errno, "RUNTIME", "the container's cgroup");
  char *name = path + strlen("/sys/fs/cgroup/");
  name[strcspn(name, "/")] = '\0';
  *folder = name[0] == '\0' ? -1 : open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
  return *folder >= 0 || fail(f, errno, "RUNTIME", "the cgroup %s", path);
}

static bool says(int folder, const char *file, const char *text) {
  char data[128] = "";
  int fd = openat(folder, file, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  ssize_t n = read(fd, data, sizeof data - 1);
  close(fd);
  return n > 0 && strstr(data, text) != NULL;
}

static bool freeze(int folder, const char *value) {
  int fd = openat(folder, "cgroup.freeze", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  bool good = write(fd, value, 1) == 1;
  close(fd);
  return good;
}

bool hold(struct failure *f) {
  int folder;
  if (held) return fail(f, EALREADY, "STATE", "HOLD");
  if (!open_cgroup(&folder, f)) return false;
  was_frozen = says(folder, "cgroup.freeze", "1");
  bool good = freeze(folder, "1") || fail(f, errno, "RUNTIME", "cgroup.freeze");
  for (int i = 0; good && !says(folder, "cgroup.events", "frozen 1"); i++) {
    struct timespec pause = {.tv_nsec = FREEZE_PAUSE_NS};
    nanosleep(&pause, NULL);
    if (i == FREEZE_TRIES) good = fail(f, EBUSY, "RUNTIME", "the container's processes do not stand still");
  }
  held = good;
  if (!good && !was_frozen) freeze(folder, "0");
  close(folder);
  return good;
}

bool release(struct failure *f) {
  int folder;
  if (!held) return fail(f, EINVAL, "STATE", "RELEASE");
  held = false;
  /* Its end while it was held is no failure here: that is told as any end. */
  if (was_frozen || !workload_running()) return true;
  if (!open_cgroup(&folder, f)) return false;
  bool good = freeze(folder, "0") || fail(f, errno, "RUNTIME", "cgroup.freeze");
  close(folder);
  return good;
}

/* The container's own: it has a UTS namespace. A child enters that, since we have ours. */
static bool set_hostname(const char *name, struct failure *f) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/ns/uts", workload_pid());
  pid_t pid = fork();
  if (pid == 0) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    _exit(fd >= 0 && setns(fd, CLONE_NEWUTS) == 0 && sethostname(name, strlen(name)) == 0 ? 0 : 1);
  }
  int status = 1;
  while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
  return status == 0 || fail(f, 0, "RUNTIME", "the container's host name");
}

/* Where the image keeps one; a container of most images has none, which stays so. */
static void set_machine_id(const char *id) {
  struct open_how how = {.flags = O_WRONLY | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};
  int root = open(ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC);
  int fd = root < 0 ? -1 : (int)syscall(SYS_openat2, root, MACHINE_ID, &how, sizeof how);
  char line[MACHINE_ID_SIZE + 1];
  struct stat st;
  snprintf(line, sizeof line, "%s\n", id);
  if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == MACHINE_ID_SIZE &&
      pwrite(fd, line, MACHINE_ID_SIZE, 0) < 0)
    fprintf(stderr, "coracle: " MACHINE_ID ": %s\n", strerror(errno));
  if (fd >= 0) close(fd);
  if (root >= 0) close(root);
}

/* u32 flags, 3 × token, string host name, string machine id, files: what is of this machine alone. */
bool reattach(struct reader *body, struct writer *out, struct failure *f) {
  char hostname[65], id[MACHINE_ID_SIZE];
  uint32_t connected = 0, flags = read_u32(body);
  const uint8_t *tokens = read_fixed(body, 3 * TOKEN_SIZE);
  read_string(body, hostname, sizeof hostname);
  read_string(body, id, sizeof id);
  if (body->bad) return fail(f, EINVAL, "PROTOCOL", "REATTACH");
  if (!held) return fail(f, EINVAL, "STATE", "REATTACH");
  if (!workload_files(body, f)) return false;
  if (body->left != 0) return fail(f, EINVAL, "PROTOCOL", "REATTACH");
  if (hostname[0] != '\0' && !set_hostname(hostname, f)) return false;
  if (strlen(id) == MACHINE_ID_SIZE - 1) set_machine_id(id);
  exec_forget();
  if (!workload_reattach(flags, tokens, &connected, f)) return false;
  write_bytes(out, &connected, sizeof connected);
  return true;
}
