/* The control connection: requests in, replies and events out. The rules are in PROTOCOL.md. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <linux/reboot.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FAREWELL_MS 1000

struct header {
  uint32_t length;
  uint16_t type, flags;
  uint32_t request;
};

static struct {
  int fd;
  uint8_t *data;
  size_t size, room;
} control = {.fd = -1};

static void drop_control(void) {
  close(control.fd);
  control.fd = -1;
  control.size = 0;
}

/* A connection that fails is dropped here and made anew by the loop. */
static void send_frame(uint16_t type, uint32_t request, const struct writer *body) {
  uint8_t frame[sizeof(struct header) + sizeof body->data];
  size_t size = body == NULL ? 0 : body->size;
  struct header header = {.length = (uint32_t)size, .type = type, .request = request};
  memcpy(frame, &header, sizeof header);
  if (size > 0) memcpy(frame + sizeof header, body->data, size);
  for (size_t sent = 0; sent < sizeof header + size && control.fd >= 0;) {
    ssize_t n = send(control.fd, frame + sent, sizeof header + size - sent, MSG_NOSIGNAL);
    if (n > 0) sent += (size_t)n;
    else if (n < 0 && errno != EINTR) drop_control();
  }
}

static void send_hello(void) {
  struct utsname name;
  uname(&name);
  struct writer body = {0};
  write_u32(&body, PROTOCOL_VERSION);
  write_string(&body, name.release);
  write_string(&body, AGENT_VERSION);
  write_u32(&body, workload_state());
  send_frame(HELLO, 0, &body);
}

/* The host listens before it starts us; only while it restores a snapshot may a connection be refused. */
static void connect_control(void) {
  for (long wait_ms = 1; (control.fd = connect_host(PORT_CONTROL)) < 0; wait_ms = wait_ms < 1000 ? wait_ms * 2 : 1000) {
    struct timespec pause = {.tv_sec = wait_ms / 1000, .tv_nsec = wait_ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
  }
  send_hello();
}

static bool credit_entropy(struct span seed, struct failure *f) {
  if (seed.size == 0) return true;
  if (seed.size > 512) return fail(f, EINVAL, "PROTOCOL", "%u bytes of entropy", seed.size);
  union {
    struct rand_pool_info info;
    uint8_t space[sizeof(struct rand_pool_info) + 512];
  } pool;
  pool.info.entropy_count = (int)seed.size * 8;
  pool.info.buf_size = (int)seed.size;
  memcpy(pool.space + sizeof pool.info, seed.data, seed.size);
  int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return fail(f, errno, "RUNTIME", "/dev/urandom");
  bool good = ioctl(fd, RNDADDENTROPY, &pool.info) == 0;
  /* Used at once: else what a clone draws in its first seconds is what its siblings draw. */
  if (good && ioctl(fd, RNDRESEEDCRNG) < 0 && errno != ENODATA) good = false;
  close(fd);
  return good || fail(f, errno, "RUNTIME", "RNDADDENTROPY");
}

/* New functions on the PCI bus get their drivers before this returns; their nodes in /dev may come a moment later. */
static bool rescan(struct failure *f) {
  return write_file("/sys/bus/pci/rescan", "1", 1, 0200) || fail(f, errno, "RUNTIME", "rescan of the PCI bus");
}

/* The driver has let go of the function when this returns: what reads or writes it by then has failed. */
static bool unplug(struct reader *body, struct failure *f) {
  uint32_t slot = read_u32(body), function = read_u32(body);
  if (body->bad || body->left != 0 || slot == 0 || slot > 31 || function > 7)
    return fail(f, EINVAL, "PROTOCOL", "UNPLUG");
  char path[64];
  snprintf(path, sizeof path, "/sys/bus/pci/devices/0000:00:%02x.%u/remove", slot, function);
  return write_file(path, "1", 1, 0200) || fail(f, errno, "DEVICE", "no device in PCI slot %u.%u", slot, function);
}

static bool configure(struct reader *body, struct failure *f) {
  char hostname[65];
  struct layer tools;
  uint64_t clock = read_u64(body);
  struct span seed = read_bytes(body);
  read_string(body, hostname, sizeof hostname);
  read_string(body, tools.device, sizeof tools.device);
  read_string(body, tools.type, sizeof tools.type);
  read_string(body, tools.options, sizeof tools.options);
  if (body->bad || body->left != 0) return fail(f, EINVAL, "PROTOCOL", "CONFIGURE");
  if (clock != 0) {
    struct timespec time = {.tv_sec = (time_t)(clock / 1000000000u), .tv_nsec = (long)(clock % 1000000000u)};
    if (clock_settime(CLOCK_REALTIME, &time) < 0) return fail(f, errno, "RUNTIME", "clock");
  }
  if (!credit_entropy(seed, f)) return false;
  if (hostname[0] != '\0' && sethostname(hostname, strlen(hostname)) < 0)
    return fail(f, errno, "RUNTIME", "hostname");
  return tools.device[0] == '\0' || mount_tools(tools.device, tools.type, tools.options, f);
}

static bool shut_down(struct reader *body, struct failure *f, uint32_t request) {
  uint32_t how = read_u32(body);
  if (body->bad || how > 1) return fail(f, EINVAL, "PROTOCOL", "SHUTDOWN");
  unmount_root();
  /* The host may end us as soon as it has read this; if it rather waits, it must have read it before we go. */
  send_frame(OK, request, NULL);
  if (control.fd >= 0) {
    uint8_t ignored[64];
    struct pollfd wait = {.fd = control.fd, .events = POLLIN};
    shutdown(control.fd, SHUT_WR);
    while (poll(&wait, 1, FAREWELL_MS) > 0 && recv(control.fd, ignored, sizeof ignored, MSG_DONTWAIT) > 0) continue;
  }
  reboot(how == 0 ? LINUX_REBOOT_CMD_POWER_OFF : LINUX_REBOOT_CMD_RESTART);
  return fail(f, errno, "RUNTIME", "reboot");
}

/* OK, or DATA where the request asks for some, or ERROR. */
static void reply(uint32_t request, bool good, const struct writer *data, const struct failure *f) {
  if (good) {
    send_frame(data->size > 0 ? DATA : OK, request, data);
    return;
  }
  struct writer body = {0};
  write_u32(&body, (uint32_t)f->error);
  write_string(&body, f->code);
  write_string(&body, f->text);
  send_frame(ERROR, request, &body);
}

static void handle(const struct header *header, const uint8_t *data) {
  struct reader body = {.at = data, .left = header->length};
  struct failure f = {.code = "PROTOCOL"};
  struct writer answer = {0};
  bool good = false;
  switch (header->type) {
  case CONFIGURE:
    good = configure(&body, &f);
    break;
  case MOUNT:
    good = workload_mount(&body, &f);
    break;
  case READ:
    good = workload_read(&body, &answer, &f);
    break;
  case CREATE:
    good = workload_create(&body, &f);
    break;
  case START:
    good = workload_start(&f);
    break;
  case SIGNAL: {
    int signal = (int)read_u32(&body);
    good = !body.bad ? workload_signal(signal, &f) : fail(&f, EINVAL, "PROTOCOL", "SIGNAL");
    break;
  }
  case RESIZE: {
    uint32_t columns = read_u32(&body), rows = read_u32(&body);
    good = !body.bad && columns <= UINT16_MAX && rows <= UINT16_MAX
               ? workload_resize((uint16_t)columns, (uint16_t)rows, &f)
               : fail(&f, EINVAL, "PROTOCOL", "RESIZE");
    break;
  }
  case RESCAN:
    good = body.left == 0 ? rescan(&f) : fail(&f, EINVAL, "PROTOCOL", "RESCAN");
    break;
  case UNPLUG:
    good = unplug(&body, &f);
    break;
  case SHARE:
    good = mount_share(&body, &f);
    break;
  case HOLD:
    good = body.left == 0 ? hold(&f) : fail(&f, EINVAL, "PROTOCOL", "HOLD");
    break;
  case RELEASE:
    good = body.left == 0 ? release(&f) : fail(&f, EINVAL, "PROTOCOL", "RELEASE");
    break;
  case REATTACH:
    good = reattach(&body, &answer, &f);
    break;
  case EXEC:
    good = exec_start(&body, &f);
    break;
  case STATS:
    good = stats_read(workload_pid(), &answer, &f);
    break;
  case EXEC_SIGNAL:
    good = exec_signal(&body, &f);
    break;
  case EXEC_RESIZE:
    good = exec_resize(&body, &f);
    break;
  case NETWORK:
    good = network_set(&body, &f);
    break;
  case NETWORK_DOWN:
    good = network_clear(&body, &f);
    break;
  case ARCHIVE_STAT:
    good = archive_stat(&body, &answer, &f);
    break;
  case ARCHIVE_READ:
    good = archive_read(&body, &f);
    break;
  case ARCHIVE_WRITE:
    good = archive_write(&body, &f);
    break;
  case PROCESSES:
    good = processes_read(&body, &f);
    break;
  case REHEARSE:
    good = rehearse(&body, &f);
    break;
  case LIMIT_PROCESSES:
    good = processes_limit(&body, &f);
    break;
  case SYNC:
    sync();
    good = true;
    break;
  case SHUTDOWN:
    good = shut_down(&body, &f, header->request);
    break;
  default:
    fail(&f, ENOSYS, "UNSUPPORTED", "request %u", header->type);
  }
  reply(header->request, good, &answer, &f);
}

static void read_control(void) {
  if (control.room - control.size < 4096) {
    control.room = control.room == 0 ? 16384 : control.room * 2;
    control.data = realloc(control.data, control.room);
    if (control.data == NULL) die("memory for a request");
  }
  ssize_t n = recv(control.fd, control.data + control.size, control.room - control.size, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) {
    drop_control();
    return;
  }
  control.size += (size_t)n;
  size_t at = 0;
  struct header header;
  while (control.fd >= 0 && control.size - at >= sizeof header) {
    memcpy(&header, control.data + at, sizeof header);
    if (header.length > MAX_BODY) {
      drop_control();
      return;
    }
    if (control.size - at < sizeof header + header.length) break;
    handle(&header, control.data + at + sizeof header);
    at += sizeof header + header.length;
  }
  if (control.fd < 0) return;
  control.size -= at;
  memmove(control.data, control.data + at, control.size);
}

static void reap(int signals) {
  struct signalfd_siginfo info;
  while (read(signals, &info, sizeof info) > 0) continue;
  int status;
  for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
    workload_reaped(pid, status);
    exec_reaped(pid, status);
  }
}

int main(int argc, char **argv) {
  if (strcmp(argv[0], REHEARSED) == 0) return 0;
  if (getpid() != 1) {
    if (argc > 1) return archive_main(argc, argv);
    fputs("coracle agent " AGENT_VERSION ": runs as process 1 of a microVM only\n", stderr);
    return 1;
  }
  boot_early();
  signal(SIGPIPE, SIG_IGN);
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  sigprocmask(SIG_BLOCK, &child, NULL);
  int signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
  if (signals < 0) die("signalfd");
  bool exited = false;
  struct writer exit_event = {0};
  for (;;) {
    if (control.fd < 0) {
      connect_control();
      if (exited) send_frame(EXIT, 0, &exit_event);
    }
    struct pollfd fds[2 + PROCESS_FDS * (1 + MAX_EXECS)] = {{.fd = control.fd, .events = POLLIN},
                                                            {.fd = signals, .events = POLLIN}};
    bool still = is_held();
    size_t count = 2;
    if (!still) {
      count += workload_prepare(fds + count);
      count += exec_prepare(fds + count);
    }
    if (poll(fds, count, -1) < 0 && errno != EINTR) die("poll");
    if (!still) {
      workload_run(fds + 2);
      exec_run(fds + 2 + PROCESS_FDS);
    }
    if (fds[1].revents != 0) reap(signals);
    if (still) {
      if (control.fd >= 0 && fds[0].revents != 0) read_control();
      continue;
    }
    for (uint32_t id, code; control.fd >= 0 && exec_exited(&id, &code);) {
      struct writer body = {0};
      write_u32(&body, id);
      write_u32(&body, code);
      send_frame(EXEC_EXIT, 0, &body);
    }
    uint32_t status, flags;
    if (workload_exited(&status, &flags)) {
      write_u32(&exit_event, status);
      write_u32(&exit_event, flags);
      exited = true;
      send_frame(EXIT, 0, &exit_event);
    }
    if (control.fd >= 0 && fds[0].revents != 0) read_control();
  }
}
