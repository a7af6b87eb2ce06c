/* The container's processes, for whoever asks what runs: as the kernel tells of them, and how many there may be. */
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

/* Of so many at most, so much of a command line each, and so many bytes in all: the host takes no more. */
#define MAX_PROCESSES 1024
#define MAX_COMMAND 4096
#define MAX_TOTAL (256u << 10)

static size_t read_of(const char *pid, const char *name, char *out, size_t size) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%.16s/%s", pid, name);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  ssize_t n = read(fd, out, size - 1);
  close(fd);
  out[n > 0 ? n : 0] = '\0';
  return n > 0 ? (size_t)n : 0;
}

/* `/NAME` of the container's cgroup: what its processes made below is its own too. */
static bool top_cgroup(pid_t pid, char *out, size_t size) {
  char path[512];
  if (!find_cgroup(pid, path, sizeof path)) return false;
  const char *name = path + strlen("/sys/fs/cgroup/");
  int length = (int)strcspn(name, "/");
  return length > 0 && (size_t)snprintf(out, size, "/%.*s", length, name) < size;
}

static bool is_in(const char *pid, const char *cgroup) {
  char text[1024];
  if (read_of(pid, "cgroup", text, sizeof text) == 0 || strncmp(text, "0::", 3) != 0) return false;
  size_t length = strlen(cgroup);
  return strncmp(text + 3, cgroup, length) == 0 && (text[3 + length] == '/' || text[3 + length] == '\n');
}

static bool send_all(int fd, const void *data, size_t size) {
  for (size_t sent = 0; sent < size;) {
    ssize_t n = send(fd, (const char *)data + sent, size - sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    sent += (size_t)n;
  }
  return true;
}

/* One process: its number in the container, its user, /proc/PID/stat, /proc/PID/cmdline. Nothing where it has gone. */
static void describe(const char *pid, struct writer *out) {
  char status[4096], stat[1024], command[MAX_COMMAND + 1];
  *out = (struct writer){.size = 0};
  if (read_of(pid, "status", status, sizeof status) == 0) return;
  const char *user = strstr(status, "\nUid:\t"), *inside = strstr(status, "\nNSpid:\t");
  unsigned real, effective;
  if (user == NULL || inside == NULL || sscanf(user, "\nUid:\t%u\t%u", &real, &effective) != 2) return;
  size_t size = read_of(pid, "stat", stat, sizeof stat);
  if (size == 0) return;
  inside += strlen("\nNSpid:\t");
  const char *end = inside + strcspn(inside, "\n"), *last = inside;
  for (const char *at = inside; at < end; at++)
    if (*at == '\t') last = at + 1;
  size_t length = read_of(pid, "cmdline", command, sizeof command);
  write_u32(out, (uint32_t)strtoul(last, NULL, 10));
  write_u32(out, effective);
  write_bytes(out, stat, size);
  /* What a writer holds is the bound of a record. */
  size_t room = sizeof out->data - out->size - sizeof(uint32_t);
  write_bytes(out, command, length < room ? length : room);
}

/* u64 ns since the boot, u64 bytes of memory, records, and a zero where all have come that are to come. */
static bool list(int out, const char *cgroup) {
  struct writer head = {0}, record;
  struct timespec since;
  struct sysinfo info;
  clock_gettime(CLOCK_BOOTTIME, &since);
  sysinfo(&info);
  write_u64(&head, (uint64_t)since.tv_sec * 1000000000u + (uint64_t)since.tv_nsec);
  write_u64(&head, (uint64_t)info.totalram * info.mem_unit);
  if (!send_all(out, head.data, head.size)) return false;
  DIR *folder = opendir("/proc");
  if (folder == NULL) return false;
  size_t count = 0, total = 0;
  bool good = true;
  for (struct dirent *entry; good && count < MAX_PROCESSES && (entry = readdir(folder)) != NULL;) {
    if (entry->d_name[0] < '0' || entry->d_name[0] > '9' || !is_in(entry->d_name, cgroup)) continue;
    describe(entry->d_name, &record);
    if (record.size == 0) continue;
    if (total + record.size > MAX_TOTAL) break;
    good = send_all(out, record.data, record.size);
    total += record.size;
    count++;
  }
  closedir(folder);
  const uint32_t zero = 0;
  return good && send_all(out, &zero, sizeof zero);
}

bool processes_read(struct reader *body, struct failure *f) {
  char cgroup[512];
  const uint8_t *token = read_fixed(body, TOKEN_SIZE);
  if (body->bad || body->left != 0) return fail(f, EINVAL, "PROTOCOL", "PROCESSES");
  if (!workload_running() || !top_cgroup(workload_pid(), cgroup, sizeof cgroup))
    return fail(f, ESRCH, "STATE", "PROCESSES");
  int stream = open_stream(token, f);
  if (stream < 0) return false;
  /* A child's: the agent answers meanwhile, however slowly the host reads. */
  pid_t pid = fork();
  if (pid == 0) {
    bool good = list(stream, cgroup);
    shutdown(stream, SHUT_WR);
    _exit(good ? 0 : 1);
  }
  int error = errno;
  close(stream);
  return pid > 0 || fail(f, error, "RUNTIME", "fork");
}

bool processes_limit(struct reader *body, struct failure *f) {
  char cgroup[512], path[600], value[16];
  uint32_t most = read_u32(body);
  if (body->bad || body->left != 0) return fail(f, EINVAL, "PROTOCOL", "LIMIT_PROCESSES");
  if (!workload_running() || !top_cgroup(workload_pid(), cgroup, sizeof cgroup))
    return fail(f, ESRCH, "STATE", "LIMIT_PROCESSES");
  snprintf(path, sizeof path, "/sys/fs/cgroup%s/pids.max", cgroup);
  if (most == 0) snprintf(value, sizeof value, "max");
  else snprintf(value, sizeof value, "%u", most);
  return write_file(path, value, strlen(value), 0200) || fail(f, errno, "RUNTIME", "pids.max");
}
