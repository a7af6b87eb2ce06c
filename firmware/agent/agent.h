/*
 * The guest agent: PID 1 of a microVM. It makes the guest ready, speaks PROTOCOL.md with the host over vsock and runs
 * one container under crun. One thread, one poll loop.
 */
#ifndef CORACLE_AGENT_H
#define CORACLE_AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define AGENT_VERSION "0.1.0"
#define PROTOCOL_VERSION 1
#define PORT_CONTROL 1024
#define PORT_STREAM 1025
#define TOKEN_SIZE 16
#define MAX_BODY (4u << 20)
#define MAX_LAYERS 128
#define MAX_FILES 64
/* Of one READ; the answer fits the 4096 bytes that the host takes. */
#define MAX_READ 4000u
#define MAX_EXECS 32
#define CONTAINER "workload" /* as crun knows it */

enum type {
  CONFIGURE = 0x01,
  CREATE = 0x02,
  START = 0x03,
  SIGNAL = 0x04,
  RESIZE = 0x05,
  SYNC = 0x06,
  SHUTDOWN = 0x07,
  MOUNT = 0x08,
  READ = 0x09,
  EXEC = 0x10,
  RESCAN = 0x14,
  STATS = 0x11,
  EXEC_SIGNAL = 0x15,
  EXEC_RESIZE = 0x16,
  ARCHIVE_STAT = 0x20,
  ARCHIVE_READ = 0x21,
  ARCHIVE_WRITE = 0x22,
  NETWORK = 0x17,
  NETWORK_DOWN = 0x18,
  UNPLUG = 0x19,
  SHARE = 0x1a,
  HOLD = 0x1b,
  RELEASE = 0x1c,
  REATTACH = 0x1d,
  LIMIT_PROCESSES = 0x1e,
  REHEARSE = 0x1f,
  PROCESSES = 0x23,
  HELLO = 0x4001,
  EXIT = 0x4002,
  EXEC_EXIT = 0x4004,
  OK = 0x8001,
  ERROR = 0x8002,
  DATA = 0x8003,
};

/* What a request failed with. `code` is part of the protocol, `text` is one line for the user. */
struct failure {
  int error;
  const char *code;
  char text[512];
};

/* Fills in a failure and returns false, so that a function can `return fail(…)`. `error` may be 0. */
__attribute__((format(printf, 4, 5))) bool fail(struct failure *f, int error, const char *code,
                                               const char *format, ...);

/* frame.c: bodies are read and written field by field; a reader that ran past its end stays `bad`. */
struct reader {
  const uint8_t *at;
  size_t left;
  bool bad;
};
struct span {
  const uint8_t *data;
  uint32_t size;
};
uint32_t read_u32(struct reader *r);
uint64_t read_u64(struct reader *r);
struct span read_bytes(struct reader *r);
/* A copy ended by NUL; bad when it is longer than `size - 1` or holds a NUL. */
void read_string(struct reader *r, char *out, size_t size);
const uint8_t *read_fixed(struct reader *r, size_t size);

struct writer {
  uint8_t data[4096];
  size_t size;
};
void write_u32(struct writer *w, uint32_t value);
void write_u64(struct writer *w, uint64_t value);
void write_string(struct writer *w, const char *text);
void write_bytes(struct writer *w, const void *data, size_t size);

/* boot.c */
void die(const char *what) __attribute__((noreturn));
void boot_early(void);
void load_modules(const char *list);
bool write_file(const char *path, const void *data, size_t size, mode_t mode);
bool mount_tools(const char *device, const char *type, const char *options, struct failure *f);

/* mount.c */
bool wait_for_device(const char *device, struct failure *f);
bool mount_device(const char *device, const char *target, const char *type, unsigned long flags, const char *options,
                  struct failure *f);
struct layer {
  char device[64], type[16], options[128];
};
struct root {
  uint32_t count;
  struct layer layers[MAX_LAYERS]; /* lowest first */
  struct layer upper;              /* device "" for a tmpfs */
  char overlay[128];
};
bool mount_root(const struct root *root, struct failure *f);
/* Mounts what the host shares (virtiofs) by its tag, on /run/v/TAG. */
bool mount_share(struct reader *body, struct failure *f);
/* Reads a regular file of the root file system, links followed inside it. Returns the bytes read, -1 on failure. */
ssize_t read_root(const char *path, uint64_t offset, void *out, size_t size, struct failure *f);
void unmount_root(void);

/* stream.c */
int connect_host(unsigned port);
struct pump { /* idle when all zero; owns both descriptors */
  int from, to;
  bool socket;  /* `to` is a socket: end it by half-closing */
  uint8_t *data;
  size_t start, end;
};
#define BUFFER_SIZE (128u << 10)
int open_stream(const uint8_t *token, struct failure *f);
bool pump_open(struct pump *p, int from, int to, bool socket);
bool pump_idle(const struct pump *p);
void pump_close(struct pump *p);
struct pollfd;
size_t pump_prepare(const struct pump *p, struct pollfd *fds);
void pump_run(struct pump *p, const struct pollfd *fds);

/* workload.c: a process under crun with its streams */
#define FLAG_TTY 1u
#define FLAG_STDIN 2u
struct process {
  pid_t pid; /* 0: not started */
  bool reaped;
  uint32_t status; /* once reaped: 0-255, or 128+n for signal n */
  int terminal;    /* -1 without one */
  struct pump pumps[3]; /* stdin, stdout or terminal, stderr */
};
#define PROCESS_FDS 6
/* Runs a crun command that leaves a process to us. Where it fails `p` may still hold something: process_close it. */
bool process_run(struct process *p, uint32_t flags, const char *const *arguments, const uint8_t *tokens,
                 struct failure *f);
bool process_signal(const struct process *p, int signal, struct failure *f);
bool process_resize(const struct process *p, uint16_t columns, uint16_t rows, struct failure *f);
/* New streams in place of those that a snapshot's restoring cut. @param connected gets a bit for each pump that has one */
bool process_reattach(struct process *p, uint32_t flags, const uint8_t *tokens, uint32_t *connected,
                      struct failure *f);
bool process_reaped(struct process *p, pid_t pid, int status);
void process_close(struct process *p);
struct pollfd;
size_t process_prepare(const struct process *p, struct pollfd *fds);
void process_pump(struct process *p, const struct pollfd *fds);

/* workload.c: the one container of this guest */
bool workload_mount(struct reader *body, struct failure *f);
bool workload_read(struct reader *body, struct writer *out, struct failure *f);
bool workload_create(struct reader *body, struct failure *f);
/* Files that mounts of the container may name: written, or written anew in place. */
bool workload_files(struct reader *body, struct failure *f);
bool workload_start(struct failure *f);
bool workload_reattach(uint32_t flags, const uint8_t *tokens, uint32_t *connected, struct failure *f);
bool workload_running(void);
/* Runs crun with the given standard streams and waits for it. */
bool run_crun(const char *const *arguments, const int streams[3], struct failure *f);
/* The container's first process; 0 while there is none. */
pid_t workload_pid(void);
bool workload_signal(int signal, struct failure *f);
bool workload_resize(uint16_t columns, uint16_t rows, struct failure *f);
void workload_reaped(pid_t pid, int status);
bool workload_exited(uint32_t *status, uint32_t *flags);
uint32_t workload_state(void);
size_t workload_prepare(struct pollfd *fds);
void workload_run(const struct pollfd *fds);

/* stats.c */
bool stats_read(pid_t pid, struct writer *out, struct failure *f);
/* The cgroup of a process, as a folder of the kernel's. */
bool find_cgroup(pid_t pid, char *out, size_t size);

/* processes.c: a list of the container's, and how many it may have (0: as many as there is room for) */
bool processes_read(struct reader *body, struct failure *f);
bool processes_limit(struct reader *body, struct failure *f);

/* hold.c: standing still for a snapshot, and what a clone gets of its own */
bool hold(struct failure *f);
bool release(struct failure *f);
bool reattach(struct reader *body, struct writer *out, struct failure *f);
/* The container is frozen: its streams are not to be touched. */
bool is_held(void);

/* rehearse.c: a container of nobody's, before there is one */
#define REHEARSED "/rehearsed" /* our program there */
bool rehearse(struct reader *body, struct failure *f);

/* network.c */
void loopback_up(void);
bool network_set(struct reader *body, struct failure *f);
bool network_clear(struct reader *body, struct failure *f);

/* exec.c: further processes in the container */
bool exec_start(struct reader *body, struct failure *f);
bool exec_signal(struct reader *body, struct failure *f);
bool exec_resize(struct reader *body, struct failure *f);
void exec_reaped(pid_t pid, int status);
/* The host that started them is gone: their ends are told to nobody. */
void exec_forget(void);
/* True once for each that has ended. Its output may still be on its way. */
bool exec_exited(uint32_t *id, uint32_t *status);
size_t exec_prepare(struct pollfd *fds);
void exec_run(const struct pollfd *fds);

/* tar-create.c, tar-extract.c: trees as tar streams, for a process whose root is the tree's */
#define TAR_CHANGES 1u    /* an overlay's upper layer: whiteouts and opaque folders by their names in a layer's tar */
#define TAR_CONTENTS 2u   /* what is in the folder, without the folder itself */
#define TAR_KEEP_KINDS 4u /* no folder in place of another kind of file, nor the other way round */
#define TAR_OWN_ROOT 8u   /* all belongs to root */
#define TAR_LIST 16u      /* with TAR_CHANGES: what has changed, in place of a tar */
bool tar_create(int out, const char *path, uint32_t flags, struct failure *f);
/* changes.c: what an upper layer changes of the layers below, topmost first: kind, space, path, NUL; an E at the end */
bool list_changes(int out, const int *layers, size_t count, struct failure *f);
bool tar_extract(int in, const char *path, uint32_t flags, struct failure *f);

/* archive.c: the container's files for the host */
bool archive_stat(struct reader *body, struct writer *out, struct failure *f);
bool archive_read(struct reader *body, struct failure *f);
bool archive_write(struct reader *body, struct failure *f);
/* The same on a host, as a program: its exit status. */
int archive_main(int argc, char **argv);

#endif
