/* What the container uses: the kernel's own files about its cgroup, the interfaces and memory, one behind the other. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct text {
  char data[MAX_READ];
  size_t size;
};

/* `=NAME`, then what the file holds, as far as there is room. One that is not there is left out. */
static void add_file(struct text *out, const char *folder, const char *name) {
  char path[512];
  if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, name) >= sizeof path) return;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  size_t room = sizeof out->data - out->size;
  int heading = snprintf(out->data + out->size, room, "=%s\n", name);
  if (heading > 0 && (size_t)heading < room) {
    out->size += (size_t)heading;
    ssize_t n = read(fd, out->data + out->size, sizeof out->data - out->size);
    if (n > 0) out->size += (size_t)n;
  }
  close(fd);
}

/* Wherever crun has put it. */
bool find_cgroup(pid_t pid, char *out, size_t size) {
  char path[64], line[512];
  snprintf(path, sizeof path, "/proc/%d/cgroup", (int)pid);
  FILE *file = fopen(path, "re");
  if (file == NULL) return false;
  bool found = false;
  while (!found && fgets(line, sizeof line, file) != NULL) {
    if (strncmp(line, "0::/", 4) != 0) continue;
    line[strcspn(line, "\n")] = '\0';
    found = (size_t)snprintf(out, size, "/sys/fs/cgroup%s", line + 3) < size;
  }
  fclose(file);
  return found;
}

bool stats_read(pid_t pid, struct writer *out, struct failure *f) {
  char folder[512];
  if (pid == 0 || !find_cgroup(pid, folder, sizeof folder)) return fail(f, ESRCH, "STATE", "STATS");
  struct text text = {.size = 0};
  /* The longest come last: they are what may be cut. Of meminfo the first lines are wanted. */
  static const char *const names[] = {"cpu.stat", "memory.current", "pids.current", "pids.max", "io.stat"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) add_file(&text, folder, names[i]);
  add_file(&text, "/proc/net", "dev");
  add_file(&text, folder, "memory.stat");
  add_file(&text, "/proc", "meminfo");
  write_bytes(out, text.data, text.size);
  return true;
}
