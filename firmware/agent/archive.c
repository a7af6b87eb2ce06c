/*
 * The container's files for the host: what one is, a tree of them as a tar, a tar into a folder. The work is done by a
 * child whose root directory is the container's, so that the agent answers meanwhile and paths mean what they mean there.
 */
#include "tar.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ROOT "/run/c/rootfs"
#define UPPER "/run/u/upper"
#define LAYERS "/run/l"
#define PATH_SIZE 4096

/* The tree that a path is in: with a process there, as it sees it, with all of its mounts. */
static const char *root_of(uint32_t flags) {
  static char path[32];
  if ((flags & TAR_CHANGES) != 0) return UPPER;
  if (workload_pid() == 0) return ROOT;
  snprintf(path, sizeof path, "/proc/%d/root", workload_pid());
  return path;
}

/* u32 mode, u64 size, u64 seconds, u32 nanoseconds, string target of a link */
static bool stat_in(const char *root, const char *path, struct writer *out, struct failure *f) {
  struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};
  int folder = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
  int fd = folder < 0 ? -1 : (int)syscall(SYS_openat2, folder, path, &how, sizeof how);
  struct stat st;
  char target[PATH_SIZE / 2] = "";
  bool good = fd >= 0 && fstat(fd, &st) == 0;
  int error = errno;
  if (good && S_ISLNK(st.st_mode) && readlinkat(fd, "", target, sizeof target - 1) < 0) target[0] = '\0';
  if (fd >= 0) close(fd);
  if (folder >= 0) close(folder);
  if (!good) return fail(f, error, "FILE", "%s", path);
  struct writer stat = {0};
  write_u32(&stat, st.st_mode);
  write_u64(&stat, (uint64_t)st.st_size);
  write_u64(&stat, (uint64_t)st.st_mtim.tv_sec);
  write_u32(&stat, (uint32_t)st.st_mtim.tv_nsec);
  write_string(&stat, target);
  write_bytes(out, stat.data, stat.size);
  return true;
}

static bool enter(const char *root, struct failure *f) {
  if (chroot(root) < 0 || chdir("/") < 0) return fail(f, errno, "FILE", "%s", root);
  return true;
}

/* The layers below the upper one, topmost first. */
static size_t open_layers(const char *folder, int *layers) {
  size_t count = 0;
  for (int i = MAX_LAYERS - 1; i >= 0; i--) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/%d", folder, i);
    int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) layers[count++] = fd;
  }
  return count;
}

/* A tree, or what has changed, into `out`. The end of the archive is there only if all of it is. */
static bool send_tree(const char *root, const char *layers_in, int out, uint32_t flags, const char *path,
                      struct failure *f) {
  int layers[MAX_LAYERS];
  bool list = (flags & TAR_LIST) != 0;
  size_t count = list ? open_layers(layers_in, layers) : 0;
  if (!enter(root, f)) return false;
  return list ? list_changes(out, layers, count, f) : tar_create(out, path, flags, f);
}

/* An archive from `in` into a folder, then a line to `out`: empty, or what went wrong. */
static bool take_tree(const char *root, int in, int out, uint32_t flags, const char *path, bool flush) {
  struct failure f = {.code = ""};
  bool good = enter(root, &f) && tar_extract(in, path, flags, &f);
  int folder = flush ? open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
  if (folder >= 0 && syncfs(folder) < 0 && good) good = fail(&f, errno, "FILE", "%s", path);
  /* Who writes hears of the failure only once it may stop writing. */
  while (!good && read(in, tar_chunk, TAR_CHUNK) > 0) continue;
  char line[sizeof f.text + 2];
  int length = snprintf(line, sizeof line, "%s\n", good ? "" : f.text);
  return write(out, line, (size_t)length) == length && good;
}

bool archive_stat(struct reader *body, struct writer *out, struct failure *f) {
  char path[PATH_SIZE];
  read_string(body, path, sizeof path);
  if (body->bad || body->left != 0) return fail(f, EINVAL, "PROTOCOL", "ARCHIVE_STAT");
  return stat_in(root_of(0), path, out, f);
}

/* Both requests: token, flags, path. The answer says that the child is at work; the stream says the rest. */
static bool start_child(struct reader *body, bool write, struct failure *f) {
  char path[PATH_SIZE];
  const uint8_t *token = read_fixed(body, TOKEN_SIZE);
  uint32_t flags = read_u32(body);
  read_string(body, path, sizeof path);
  if (body->bad || body->left != 0) return fail(f, EINVAL, "PROTOCOL", "ARCHIVE");
  int stream = open_stream(token, f);
  if (stream < 0) return false;
  const char *root = root_of(flags);
  bool flush = workload_pid() == 0;
  pid_t pid = fork();
  if (pid == 0) {
    struct failure failure = {.code = ""};
    bool good = write ? take_tree(root, stream, stream, flags, path, flush)
                      : send_tree(root, LAYERS, stream, flags, path, &failure);
    shutdown(stream, SHUT_WR);
    _exit(good ? 0 : 1);
  }
  int error = errno;
  close(stream);
  return pid > 0 || fail(f, error, "RUNTIME", "fork");
}

bool archive_read(struct reader *body, struct failure *f) { return start_child(body, false, f); }
bool archive_write(struct reader *body, struct failure *f) { return start_child(body, true, f); }

/* agent stat ROOT PATH | create ROOT FLAGS PATH [LAYERS] | extract ROOT FLAGS PATH, over the standard streams */
int archive_main(int argc, char **argv) {
  struct failure f = {.code = ""};
  signal(SIGPIPE, SIG_IGN);
  const char *verb = argv[1];
  uint32_t flags = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 0;
  bool good = false;
  if (argc == 4 && strcmp(verb, "stat") == 0) {
    struct writer out = {0};
    /* Without the length that `bytes` of the protocol begin with. */
    ssize_t size = stat_in(argv[2], argv[3], &out, &f) ? (ssize_t)(out.size - sizeof(uint32_t)) : 0;
    good = size > 0 && write(STDOUT_FILENO, out.data + sizeof(uint32_t), (size_t)size) == size;
  } else if (argc >= 5 && strcmp(verb, "create") == 0)
    good = send_tree(argv[2], argc > 5 ? argv[5] : "/nowhere", STDOUT_FILENO, flags, argv[4], &f);
  else if (argc == 5 && strcmp(verb, "extract") == 0)
    good = take_tree(argv[2], STDIN_FILENO, STDOUT_FILENO, flags, argv[4], false);
  else
    fail(&f, 0, "PROTOCOL", "what is '%s'?", verb);
  if (!good) fprintf(stderr, "%d %s\n", f.error, f.text);
  return good ? 0 : 1;
}
