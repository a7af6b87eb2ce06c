/* A container of nobody's, run once before there is one: what its start has to find in memory is there from then on. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define BUNDLE "/run/r"
#define ROOT BUNDLE "/rootfs"
#define PID_FILE BUNDLE "/pid"
#define NAME "rehearsal"

/* Its program: ours, which ends at once by REHEARSED. */
static bool copy_self(const char *path) {
  struct stat st;
  int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  uint8_t *data = fd >= 0 && fstat(fd, &st) == 0 ? malloc((size_t)st.st_size) : NULL;
  bool good = data != NULL && read(fd, data, (size_t)st.st_size) == st.st_size &&
              write_file(path, data, (size_t)st.st_size, 0755);
  free(data);
  if (fd >= 0) close(fd);
  return good;
}

/* Our child since crun has ended: nothing of it is left when it is deleted. */
static void wait_for_end(void) {
  int pid = 0;
  FILE *file = fopen(PID_FILE, "re");
  if (file != NULL && fscanf(file, "%d", &pid) == 1 && pid > 1)
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) continue;
  if (file != NULL) fclose(file);
}

bool rehearse(struct reader *body, struct failure *f) {
  struct span config = read_bytes(body);
  if (body->bad || body->left != 0) return fail(f, EINVAL, "PROTOCOL", "REHEARSE");
  if (workload_state() != 0) return fail(f, EBUSY, "STATE", "REHEARSE");
  if (mkdir(BUNDLE, 0755) < 0 || mkdir(ROOT, 0755) < 0 || mkdir(ROOT "/proc", 0755) < 0 || mkdir(ROOT "/dev", 0755) < 0 ||
      !copy_self(ROOT REHEARSED) || !write_file(BUNDLE "/config.json", config.data, config.size, 0600))
    return fail(f, errno, "RUNTIME", BUNDLE);
  const char *const create[] = {"create", "--bundle=" BUNDLE, "--pid-file=" PID_FILE, NAME, NULL};
  const char *const start[] = {"start", NAME, NULL};
  const char *const delete[] = {"delete", "--force", NAME, NULL};
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  const int streams[3] = {null, null, null};
  bool good = null >= 0 && run_crun(create, streams, f) && run_crun(start, streams, f);
  if (good) wait_for_end();
  struct failure ignored;
  if (null >= 0) good = run_crun(delete, streams, good ? f : &ignored) && good;
  close(null);
  unlink(PID_FILE);
  unlink(BUNDLE "/config.json");
  unlink(ROOT REHEARSED);
  rmdir(ROOT "/proc");
  rmdir(ROOT "/dev");
  rmdir(ROOT);
  rmdir(BUNDLE);
  return good;
}
