/*
 * Trees of files as tar streams (POSIX.1-2001 pax), both ways. This runs in a process of its own whose root directory is
 * the tree's, so that no link and no `..` leads anywhere else; the host runs the same code for containers without a VM.
 */
#ifndef CORACLE_TAR_H
#define CORACLE_TAR_H

#include "agent.h"

#define TAR_BLOCK 512
#define TAR_PATH 4096
/* Of one pax header, as the host's reader takes it. */
#define TAR_RECORDS (1u << 20)

/* ustar (pax(1), "ustar Interchange Format"). Numbers are octal digits. */
struct header {
  char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100], magic[6], version[2],
      user[32], group[32], major[8], minor[8], prefix[155], padding[12];
};
_Static_assert(sizeof(struct header) == TAR_BLOCK, "a tar header is a block");

/* Records of a pax header: "LENGTH KEYWORD=VALUE\n". */
struct records {
  char *data;
  size_t size, room;
};
#define XATTR_KEYWORD "SCHILY.xattr."

/* File contents on their way. */
#define TAR_CHUNK (256u << 10)
extern uint8_t tar_chunk[TAR_CHUNK];

/* Attributes that belong to a file's content; the others are the file system's or the overlay's own. */
bool tar_attribute(const char *name);
bool tar_write_all(int fd, const void *data, size_t size);
bool tar_read_all(int fd, void *data, size_t size);

#endif
