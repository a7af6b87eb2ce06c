/*
 * A stream into a tree. The host has read the stream and written it anew: what comes is ustar and pax, and no more.
 */
#include "tar.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

bool tar_read_all(int fd, void *data, size_t size) {
  for (uint8_t *at = data; size > 0;) {
    ssize_t n = read(fd, at, size);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    size -= (size_t)n;
  }
  return true;
}

struct entry {
  char name[TAR_PATH], link[TAR_PATH], type;
  mode_t mode;
  uid_t uid;
  gid_t gid;
  uint64_t size;
  struct timespec mtime;
  dev_t device;
};

static uint64_t octal(const char *field, size_t size) {
  uint64_t value = 0;
  for (size_t i = 0; i < size && field[i] >= '0' && field[i] <= '7'; i++) value = value * 8 + (uint64_t)(field[i] - '0');
  return value;
}

static void take_text(char *out, const char *field, size_t size) {
  size_t length = strnlen(field, size);
  memcpy(out, field, length);
  out[length] = '\0';
}

/* Applies a pax header's records to an entry. Attributes are kept in `records` for later. */
static bool take_records(struct entry *e, const struct records *records, struct failure *f) {
  for (size_t at = 0; at < records->size;) {
    char *end;
    unsigned long length = strtoul(records->data + at, &end, 10);
    char *record = records->data + at, *keyword = end + 1;
    if (length < 5 || length > records->size - at || *end != ' ' || record[length - 1] != '\n')
      return fail(f, EINVAL, "PROTOCOL", "a pax record");
    char *equals = memchr(keyword, '=', (size_t)(record + length - keyword));
    if (equals == NULL) return fail(f, EINVAL, "PROTOCOL", "a pax record");
    size_t size = (size_t)(record + length - 1 - (equals + 1));
    char value[TAR_PATH];
    if (strncmp(keyword, XATTR_KEYWORD, sizeof XATTR_KEYWORD - 1) != 0) {
      if (size >= sizeof value) return fail(f, ENAMETOOLONG, "FILE", "%.200s…", equals + 1);
      memcpy(value, equals + 1, size);
      value[size] = '\0';
      *equals = '\0';
      if (strcmp(keyword, "path") == 0) strcpy(e->name, value);
      else if (strcmp(keyword, "linkpath") == 0) strcpy(e->link, value);
      else if (strcmp(keyword, "size") == 0) e->size = strtoull(value, NULL, 10);
      else if (strcmp(keyword, "uid") == 0) e->uid = (uid_t)strtoul(value, NULL, 10);
      else if (strcmp(keyword, "gid") == 0) e->gid = (gid_t)strtoul(value, NULL, 10);
      else if (strcmp(keyword, "mtime") == 0) {
        char *dot;
        e->mtime.tv_sec = strtoll(value, &dot, 10);
        long unit = 100000000;
        for (e->mtime.tv_nsec = 0; *dot != '\0' && *++dot >= '0' && *dot <= '9' && unit > 0; unit /= 10)
          e->mtime.tv_nsec += (*dot - '0') * unit;
      }
      *equals = '=';
    }
    at += length;
  }
  return true;
}

static void set_attributes(const char *name, const struct records *records) {
  for (size_t at = 0; at < records->size;) {
    unsigned long length = strtoul(records->data + at, NULL, 10);
    char *keyword = strchr(records->data + at, ' ') + 1;
    char *equals = memchr(keyword, '=', (size_t)(records->data + at + length - keyword));
    if (strncmp(keyword, XATTR_KEYWORD, sizeof XATTR_KEYWORD - 1) == 0) {
      *equals = '\0';
      if (tar_attribute(keyword + sizeof XATTR_KEYWORD - 1))
        lsetxattr(name, keyword + sizeof XATTR_KEYWORD - 1, equals + 1, (size_t)(records->data + at + length - 1 - (equals + 1)), 0);
      *equals = '=';
    }
    at += length;
  }
}

/* Takes the dots and slashes off the front; false for a name that climbs. */
static bool clean_name(char *name) {
  char *from = name;
  while (*from == '/' || (from[0] == '.' && (from[1] == '/' || from[1] == '\0'))) from++;
  memmove(name, from, strlen(from) + 1);
  for (size_t length = strlen(name); length > 0 && name[length - 1] == '/';) name[--length] = '\0';
  for (const char *part = name; part != NULL; part = strchr(part, '/')) {
    if (*part == '/') part++;
    if (strncmp(part, "..", 2) == 0 && (part[2] == '/' || part[2] == '\0')) return false;
  }
  return true;
}

static bool make_parents(char *name) {
  for (char *slash = strchr(name, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
    *slash = '\0';
    int made = mkdir(name, 0755);
    *slash = '/';
    if (made < 0 && errno != EEXIST) return false;
  }
  return true;
}

static bool skip(int in, uint64_t size) {
  for (uint64_t left = (size + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK; left > 0;) {
    size_t want = left < TAR_CHUNK ? (size_t)left : TAR_CHUNK;
    if (!tar_read_all(in, tar_chunk, want)) return false;
    left -= want;
  }
  return true;
}

static bool take_content(int in, const struct entry *e, struct failure *f) {
  int fd = open(e->name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd < 0) return fail(f, errno, "FILE", "%s", e->name);
  uint64_t left = e->size;
  while (left > 0) {
    size_t want = left < TAR_CHUNK ? (size_t)left : TAR_CHUNK;
    if (!tar_read_all(in, tar_chunk, want)) break;
    if (!tar_write_all(fd, tar_chunk, want)) {
      int error = errno;
      close(fd);
      return fail(f, error, "FILE", "%s", e->name);
    }
    left -= want;
  }
  close(fd);
  size_t rest = (TAR_BLOCK - e->size % TAR_BLOCK) % TAR_BLOCK;
  if (left > 0 || (rest > 0 && !tar_read_all(in, tar_chunk, rest))) return fail(f, EPIPE, "STREAM", "the archive broke off");
  return true;
}

/* Makes room for an entry: a folder stays where one comes, all else goes. */
static bool clear_way(const struct entry *e, uint32_t flags, bool *there, struct failure *f) {
  struct stat st;
  *there = lstat(e->name, &st) == 0;
  if (!*there) return true;
  bool folder = S_ISDIR(st.st_mode);
  if (folder && e->type == '5') return true;
  /* A link to a folder stands for it. */
  struct stat target;
  if (e->type == '5' && S_ISLNK(st.st_mode) && stat(e->name, &target) == 0 && S_ISDIR(target.st_mode)) return true;
  if ((folder || e->type == '5') && (flags & TAR_KEEP_KINDS) != 0)
    return fail(f, folder ? EISDIR : ENOTDIR, "FILE", "cannot replace %s", e->name);
  *there = false;
  if ((folder ? rmdir(e->name) : unlink(e->name)) < 0) return fail(f, errno, "FILE", "%s", e->name);
  return true;
}

static bool take_entry(int in, struct entry *e, const struct records *records, uint32_t flags, struct failure *f) {
  bool there;
  if (!clean_name(e->name)) return fail(f, EINVAL, "FILE", "%s", e->name);
  if (e->name[0] == '\0') return skip(in, e->size) || fail(f, EPIPE, "STREAM", "the archive broke off");
  if (!make_parents(e->name)) return fail(f, errno, "FILE", "%s", e->name);
  if (!clear_way(e, flags, &there, f)) return false;
  int result = 0;
  switch (e->type) {
  case '5':
    result = there ? 0 : mkdir(e->name, 0700);
    break;
  case '2':
    result = symlink(e->link, e->name);
    break;
  case '1':
    if (!clean_name(e->link)) return fail(f, EINVAL, "FILE", "%s", e->link);
    if (link(e->link, e->name) < 0) return fail(f, errno, "FILE", "%s", e->name);
    return true;
  case '3':
  case '4':
  case '6':
    result = mknod(e->name, (e->type == '3' ? S_IFCHR : e->type == '4' ? S_IFBLK : S_IFIFO) | 0600, e->device);
    break;
  default:
    if (!take_content(in, e, f)) return false;
  }
  if (result < 0) return fail(f, errno, "FILE", "%s", e->name);
  bool own = (flags & TAR_OWN_ROOT) == 0;
  if (lchown(e->name, own ? e->uid : 0, own ? e->gid : 0) < 0) return fail(f, errno, "FILE", "%s", e->name);
  set_attributes(e->name, records);
  if (e->type != '2' && chmod(e->name, e->mode) < 0) return fail(f, errno, "FILE", "%s", e->name);
  struct timespec times[2] = {e->mtime, e->mtime};
  utimensat(AT_FDCWD, e->name, times, AT_SYMLINK_NOFOLLOW);
  return true;
}

bool tar_extract(int in, const char *path, uint32_t flags, struct failure *f) {
  if (chdir(path) < 0) return fail(f, errno, "FILE", "%s", path);
  umask(0);
  static struct records records;
  for (;;) {
    struct header h;
    if (!tar_read_all(in, &h, sizeof h)) return fail(f, EPIPE, "STREAM", "the archive broke off");
    if (h.name[0] == '\0' && h.type == '\0') return true;
    static struct entry e;
    e = (struct entry){.type = h.type,
                       .mode = (mode_t)octal(h.mode, sizeof h.mode) & 07777,
                       .uid = (uid_t)octal(h.uid, sizeof h.uid),
                       .gid = (gid_t)octal(h.gid, sizeof h.gid),
                       .size = octal(h.size, sizeof h.size),
                       .mtime = {.tv_sec = (time_t)octal(h.mtime, sizeof h.mtime)},
                       .device = makedev((unsigned)octal(h.major, sizeof h.major), (unsigned)octal(h.minor, sizeof h.minor))};
    if (h.type == 'x') {
      if (e.size > TAR_RECORDS) return fail(f, E2BIG, "PROTOCOL", "a pax header");
      free(records.data);
      records = (struct records){.data = malloc(e.size + 1), .size = e.size};
      if (records.data == NULL) return fail(f, ENOMEM, "RUNTIME", "memory for a pax header");
      records.data[e.size] = '\0';
      size_t rest = (TAR_BLOCK - e.size % TAR_BLOCK) % TAR_BLOCK;
      if (!tar_read_all(in, records.data, e.size) || (rest > 0 && !tar_read_all(in, tar_chunk, rest)))
        return fail(f, EPIPE, "STREAM", "the archive broke off");
      continue;
    }
    size_t prefix = strnlen(h.prefix, sizeof h.prefix);
    if (prefix > 0) snprintf(e.name, sizeof e.name, "%.*s/", (int)prefix, h.prefix);
    take_text(e.name + strlen(e.name), h.name, sizeof h.name);
    take_text(e.link, h.link, sizeof h.link);
    if (!take_records(&e, &records, f) || !take_entry(in, &e, &records, flags, f)) return false;
    records.size = 0;
  }
}
