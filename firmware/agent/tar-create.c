/* A tree as a stream. */
#include "tar.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#define MAX_DEPTH 512
#define OPAQUE ".wh..wh..opq"
#define WHITEOUT ".wh."

uint8_t tar_chunk[TAR_CHUNK];

bool tar_attribute(const char *name) {
  return strcmp(name, "security.capability") == 0 || strncmp(name, "user.", 5) == 0;
}

bool tar_write_all(int fd, const void *data, size_t size) {
  for (const uint8_t *at = data; size > 0;) {
    ssize_t n = write(fd, at, size);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    size -= (size_t)n;
  }
  return true;
}

static bool add_record(struct records *r, const char *keyword, const void *value, size_t size) {
  size_t rest = strlen(keyword) + size + 3, length = rest + 1;
  char digits[16];
  while (length != rest + (size_t)snprintf(digits, sizeof digits, "%zu", length)) length = rest + strlen(digits);
  if (r->size + length > TAR_RECORDS) return false;
  if (r->size + length > r->room) {
    size_t room = (r->size + length) * 2;
    char *data = realloc(r->data, room);
    if (data == NULL) return false;
    r->data = data;
    r->room = room;
  }
  char *at = r->data + r->size;
  at += sprintf(at, "%zu %s=", length, keyword);
  memcpy(at, value, size);
  at[size] = '\n';
  r->size += length;
  return true;
}

struct source {
  int out;
  uint32_t flags;
  struct records records;
  /* Files with several names, by the name under which each went first. */
  struct linked {
    dev_t device;
    ino_t inode;
    char *name;
  } *linked;
  size_t count, room;
  struct failure *failure;
};

static bool broken(struct source *s) { return fail(s->failure, errno, "STREAM", "the archive's reader is gone"); }

/* Puts a number, or leaves zero and says it in a record where it has too many digits. */
static bool put_number(struct source *s, char *field, size_t size, uint64_t value, const char *keyword) {
  char digits[24], decimal[24];
  int length = snprintf(digits, sizeof digits, "%0*llo", (int)size - 1, (unsigned long long)value);
  if ((size_t)length < size) {
    memcpy(field, digits, size);
    return true;
  }
  memset(field, '0', size - 1);
  length = snprintf(decimal, sizeof decimal, "%llu", (unsigned long long)value);
  return add_record(&s->records, keyword, decimal, (size_t)length);
}

static bool put_text(struct source *s, char *field, size_t size, const char *text, const char *keyword) {
  size_t length = strlen(text);
  memcpy(field, text, length < size ? length : size);
  return length <= size || add_record(&s->records, keyword, text, length);
}

static bool put_block(struct source *s, struct header *h) {
  memset(h->checksum, ' ', sizeof h->checksum);
  unsigned sum = 0;
  for (size_t i = 0; i < sizeof *h; i++) sum += ((uint8_t *)h)[i];
  snprintf(h->checksum, sizeof h->checksum, "%06o", sum);
  return tar_write_all(s->out, h, sizeof *h);
}

static bool pad(struct source *s, uint64_t size) {
  static const uint8_t zeros[TAR_BLOCK];
  return size % TAR_BLOCK == 0 || tar_write_all(s->out, zeros, TAR_BLOCK - size % TAR_BLOCK);
}

static struct header new_header(char type) {
  struct header h = {.type = type, .magic = "ustar", .version = {'0', '0'}};
  snprintf(h.mode, sizeof h.mode, "%07o", 0644);
  snprintf(h.uid, sizeof h.uid, "%07o", 0);
  snprintf(h.gid, sizeof h.gid, "%07o", 0);
  snprintf(h.size, sizeof h.size, "%011o", 0);
  snprintf(h.mtime, sizeof h.mtime, "%011o", 0);
  return h;
}

/* The header of one entry, with the records gathered so far in a pax header before it. */
static bool put_entry(struct source *s, const char *name, const struct stat *st, char type, const char *link) {
  struct header h = new_header(type);
  uint64_t size = type == '0' ? (uint64_t)st->st_size : 0;
  uint64_t seconds = st->st_mtim.tv_sec < 0 ? 0 : (uint64_t)st->st_mtim.tv_sec;
  bool good = put_text(s, h.name, sizeof h.name, name, "path") && put_text(s, h.link, sizeof h.link, link, "linkpath") &&
              put_number(s, h.mode, sizeof h.mode, st->st_mode & 07777, "mode") &&
              put_number(s, h.uid, sizeof h.uid, st->st_uid, "uid") &&
              put_number(s, h.gid, sizeof h.gid, st->st_gid, "gid") &&
              put_number(s, h.size, sizeof h.size, size, "size") &&
              put_number(s, h.mtime, sizeof h.mtime, seconds, "mtime");
  if (good && st->st_mtim.tv_nsec != 0 && st->st_mtim.tv_sec >= 0) {
    char time[40];
    int length = snprintf(time, sizeof time, "%lld.%09ld", (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec);
    good = add_record(&s->records, "mtime", time, (size_t)length);
  }
  if (type == '3' || type == '4') {
    snprintf(h.major, sizeof h.major, "%07o", major(st->st_rdev) & 07777777);
    snprintf(h.minor, sizeof h.minor, "%07o", minor(st->st_rdev) & 07777777);
  }
  if (!good) return fail(s->failure, E2BIG, "FILE", "%s: too much to say of it", name);
  if (s->records.size > 0) {
    struct header x = new_header('x');
    snprintf(x.name, sizeof x.name, "pax");
    snprintf(x.size, sizeof x.size, "%011zo", s->records.size);
    if (!put_block(s, &x) || !tar_write_all(s->out, s->records.data, s->records.size) || !pad(s, s->records.size))
      return broken(s);
    s->records.size = 0;
  }
  return put_block(s, &h) || broken(s);
}

/* What a whiteout stands for is said by an empty file of a special name (OCI image-spec layer.md). */
static bool put_marker(struct source *s, const char *name) {
  struct stat st = {.st_mode = S_IFREG | 0644};
  return put_entry(s, name, &st, '0', "");
}

/* The extended attributes of `base` in the current directory. A file system without any has none. */
static bool put_attributes(struct source *s, const char *base) {
  static char names[65536], value[65536], keyword[300];
  ssize_t size = llistxattr(base, names, sizeof names);
  for (char *name = names; size > 0 && name < names + size; name += strlen(name) + 1) {
    if (!tar_attribute(name)) continue;
    ssize_t length = lgetxattr(base, name, value, sizeof value);
    if (length < 0) continue;
    snprintf(keyword, sizeof keyword, XATTR_KEYWORD "%.255s", name);
    if (!add_record(&s->records, keyword, value, (size_t)length))
      return fail(s->failure, E2BIG, "FILE", "%s: too many attributes", base);
  }
  return true;
}

/* The content: exactly as much as was announced, whatever becomes of the file meanwhile. */
static bool put_content(struct source *s, int fd, uint64_t size) {
  for (uint64_t left = size; left > 0;) {
    size_t want = left < TAR_CHUNK ? (size_t)left : TAR_CHUNK;
    ssize_t n = read(fd, tar_chunk, want);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) memset(tar_chunk, 0, (size_t)(n = (ssize_t)want));
    if (!tar_write_all(s->out, tar_chunk, (size_t)n)) return broken(s);
    left -= (uint64_t)n;
  }
  return pad(s, size) || broken(s);
}

static const char *first_name(struct source *s, const struct stat *st, const char *name) {
  for (size_t i = 0; i < s->count; i++)
    if (s->linked[i].device == st->st_dev && s->linked[i].inode == st->st_ino) return s->linked[i].name;
  if (s->count == s->room) {
    size_t room = s->room == 0 ? 64 : s->room * 2;
    struct linked *linked = realloc(s->linked, room * sizeof *linked);
    if (linked == NULL) return NULL;
    s->linked = linked;
    s->room = room;
  }
  char *copy = strdup(name);
  if (copy != NULL) s->linked[s->count++] = (struct linked){st->st_dev, st->st_ino, copy};
  return NULL;
}

static bool put_node(struct source *s, char *name, const char *base, int depth);

/* What is in the folder that is the current one. `name` is a buffer of TAR_PATH that ends with the folder's name. */
static bool put_children(struct source *s, char *name, int depth) {
  struct dirent **entries;
  int count = scandir(".", &entries, NULL, alphasort);
  if (count < 0) return fail(s->failure, errno, "FILE", "%s", name);
  size_t length = strlen(name);
  bool good = true;
  for (int i = 0; i < count; i++) {
    const char *base = entries[i]->d_name;
    if (good && strcmp(base, ".") != 0 && strcmp(base, "..") != 0) {
      if (length + strlen(base) + sizeof WHITEOUT + 2 > TAR_PATH)
        good = fail(s->failure, ENAMETOOLONG, "FILE", "%.200s…", name);
      else {
        memcpy(name + length, base, strlen(base) + 1);
        good = put_node(s, name, base, depth);
        name[length] = '\0';
      }
    }
    free(entries[i]);
  }
  free(entries);
  return good;
}

static bool put_folder(struct source *s, char *name, const char *base, const struct stat *st, int depth) {
  size_t length = strlen(name);
  bool changes = (s->flags & TAR_CHANGES) != 0;
  char mark = 'n';
  bool opaque = changes && lgetxattr(base, "trusted.overlay.opaque", &mark, 1) == 1 && mark == 'y';
  if (changes && lgetxattr(base, "trusted.overlay.redirect", NULL, 0) > 0)
    return fail(s->failure, EXDEV, "FILE", "%s: a folder that was renamed across layers", name);
  if (depth >= MAX_DEPTH) return fail(s->failure, ELOOP, "FILE", "%.200s…: folders too deep", name);
  if (length > 0 && name[length - 1] != '/') strcpy(name + length, "/");
  if (name[0] != '\0' && (!put_attributes(s, base) || !put_entry(s, name, st, '5', ""))) return false;
  if (opaque) {
    char marker[TAR_PATH + sizeof OPAQUE];
    snprintf(marker, sizeof marker, "%s" OPAQUE, name);
    if (!put_marker(s, marker)) return false;
  }
  int here = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  int fd = open(base, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  /* One that went, or became something else, since: the archive has the empty folder. */
  bool good = true;
  if (here >= 0 && fd >= 0 && fchdir(fd) == 0) {
    good = put_children(s, name, depth + 1);
    if (fchdir(here) < 0) good = fail(s->failure, errno, "FILE", "%s", name);
  }
  if (fd >= 0) close(fd);
  if (here >= 0) close(here);
  name[length] = '\0';
  return good;
}

static bool put_node(struct source *s, char *name, const char *base, int depth) {
  struct stat st;
  if (lstat(base, &st) < 0) return errno == ENOENT || fail(s->failure, errno, "FILE", "%s", name);
  if (S_ISDIR(st.st_mode)) return put_folder(s, name, base, &st, depth);
  if (S_ISLNK(st.st_mode)) {
    char target[TAR_PATH];
    ssize_t n = readlink(base, target, sizeof target - 1);
    if (n < 0) return errno == ENOENT || fail(s->failure, errno, "FILE", "%s", name);
    target[n] = '\0';
    return put_entry(s, name, &st, '2', target);
  }
  if (S_ISREG(st.st_mode)) {
    const char *first = st.st_nlink > 1 ? first_name(s, &st, name) : NULL;
    if (first != NULL) return put_entry(s, name, &st, '1', first);
    int fd = open(base, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return errno == ENOENT || fail(s->failure, errno, "FILE", "%s", name);
    bool good = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    good = !good || (put_attributes(s, base) && put_entry(s, name, &st, '0', "") &&
                     put_content(s, fd, (uint64_t)st.st_size));
    close(fd);
    return good;
  }
  if (S_ISCHR(st.st_mode) && st.st_rdev == 0 && (s->flags & TAR_CHANGES) != 0) {
    const char *slash = strrchr(name, '/');
    size_t folder = slash == NULL ? 0 : (size_t)(slash - name) + 1;
    char marker[TAR_PATH + sizeof WHITEOUT];
    snprintf(marker, sizeof marker, "%.*s" WHITEOUT "%s", (int)folder, name, name + folder);
    return put_marker(s, marker);
  }
  if (S_ISCHR(st.st_mode)) return put_entry(s, name, &st, '3', "");
  if (S_ISBLK(st.st_mode)) return put_entry(s, name, &st, '4', "");
  if (S_ISFIFO(st.st_mode)) return put_entry(s, name, &st, '6', "");
  return true; /* a socket is nothing without who listens on it */
}

/* Splits off the last name of a path: the folder it is in becomes the current one. */
static bool enter_parent(const char *path, char *base, struct failure *f) {
  char copy[TAR_PATH];
  if (strlen(path) >= sizeof copy) return fail(f, ENAMETOOLONG, "FILE", "%.200s…", path);
  strcpy(copy, path);
  size_t length = strlen(copy);
  while (length > 1 && copy[length - 1] == '/') copy[--length] = '\0';
  char *slash = strrchr(copy, '/');
  const char *name = slash == NULL ? copy : slash + 1;
  if (*name == '\0' || strcmp(name, "..") == 0) name = ".";
  strcpy(base, name);
  if (strcmp(name, ".") == 0 && slash != NULL && strcmp(path, "/") != 0) {
    if (chdir(path) < 0) return fail(f, errno, "FILE", "%s", path);
    return true;
  }
  if (slash == NULL) return true;
  *slash = '\0';
  if (chdir(copy[0] == '\0' ? "/" : copy) < 0) return fail(f, errno, "FILE", "%s", path);
  return true;
}

bool tar_create(int out, const char *path, uint32_t flags, struct failure *f) {
  struct source source = {.out = out, .flags = flags, .failure = f};
  char name[TAR_PATH], base[TAR_PATH];
  if (!enter_parent(path, base, f)) return false;
  struct stat st;
  if (lstat(base, &st) < 0) return fail(f, errno, "FILE", "%s", path);
  if ((flags & TAR_CONTENTS) != 0) {
    /* What is in a folder, and not the folder itself. */
    if (chdir(base) < 0) return fail(f, errno, "FILE", "%s", path);
    name[0] = '\0';
    char mark = 'n';
    if ((flags & TAR_CHANGES) != 0 && lgetxattr(".", "trusted.overlay.opaque", &mark, 1) == 1 && mark == 'y' &&
        !put_marker(&source, OPAQUE))
      return false;
    if (!put_children(&source, name, 0)) return false;
  } else {
    snprintf(name, sizeof name, "%s", base);
    if (!put_node(&source, name, base, 0)) return false;
  }
  static const uint8_t end[2 * TAR_BLOCK];
  return tar_write_all(out, end, sizeof end) || broken(&source);
}

