/* What a container has changed of its image: each file of the overlay's upper layer, against the layers below. */
#include "tar.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_DEPTH 512

struct listing {
  int out;
  const int *layers;
  size_t count;
  struct failure *failure;
};

/* Whether the image has the path: the topmost layer that says something of it decides. */
static bool is_below(const struct listing *l, const char *path) {
  struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS};
  for (size_t i = 0; i < l->count; i++) {
    int fd = (int)syscall(SYS_openat2, l->layers[i], path + 1, &how, sizeof how);
    if (fd < 0) continue;
    struct stat st;
    bool known = fstat(fd, &st) == 0;
    close(fd);
    if (known) return !(S_ISCHR(st.st_mode) && st.st_rdev == 0);
  }
  return false;
}

static bool put(const struct listing *l, char kind, const char *path) {
  char line[TAR_PATH + 4];
  int length = snprintf(line, sizeof line, "%c %s", kind, path);
  return tar_write_all(l->out, line, (size_t)length + 1) || fail(l->failure, errno, "STREAM", "the reader is gone");
}

/* The folder that is the current one. `path` is a buffer of TAR_PATH that ends with its name. */
static bool list_folder(const struct listing *l, char *path, int depth) {
  if (depth >= MAX_DEPTH) return fail(l->failure, ELOOP, "FILE", "%.200s…: folders too deep", path);
  struct dirent **entries;
  int count = scandir(".", &entries, NULL, alphasort);
  if (count < 0) return fail(l->failure, errno, "FILE", "%s", path);
  size_t length = strlen(path);
  bool good = true;
  for (int i = 0; i < count; i++) {
    const char *base = entries[i]->d_name;
    struct stat st;
    if (good && strcmp(base, ".") != 0 && strcmp(base, "..") != 0 && lstat(base, &st) == 0 &&
        length + strlen(base) + 2 < TAR_PATH) {
      sprintf(path + length, "/%s", base);
      if (S_ISCHR(st.st_mode) && st.st_rdev == 0)
        good = put(l, 'D', path);
      else
        good = put(l, is_below(l, path) ? 'C' : 'A', path);
      int here = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
      int fd = S_ISDIR(st.st_mode) ? open(base, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
      if (good && here >= 0 && fd >= 0 && fchdir(fd) == 0) {
        good = list_folder(l, path, depth + 1);
        if (fchdir(here) < 0) good = fail(l->failure, errno, "FILE", "%s", path);
      }
      if (fd >= 0) close(fd);
      if (here >= 0) close(here);
      path[length] = '\0';
    }
    free(entries[i]);
  }
  free(entries);
  return good;
}

bool list_changes(int out, const int *layers, size_t count, struct failure *f) {
  struct listing listing = {.out = out, .layers = layers, .count = count, .failure = f};
  char path[TAR_PATH] = "";
  return list_folder(&listing, path, 0) && put(&listing, 'E', "");
}
