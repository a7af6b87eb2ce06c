/* Connections to the host, and the copying of bytes between them and the workload's pipes or terminal. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
/* After sys/socket.h, which it needs. */
#include <linux/vm_sockets.h>

#define STREAM_MAGIC 0x4d525453u /* "STRM" */

/* By default it would be two, which a host may need to answer that starts many guests. */
#define CONNECT_SECONDS 60

int connect_host(unsigned port) {
  int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port};
  struct timeval patience = {.tv_sec = CONNECT_SECONDS};
  setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &patience, sizeof patience);
  if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
    int error = errno;
    close(fd);
    errno = error;
    return -1;
  }
  return fd;
}

int open_stream(const uint8_t *token, struct failure *f) {
  int fd = connect_host(PORT_STREAM);
  if (fd < 0) {
    fail(f, errno, "STREAM", "connection to the host");
    return -1;
  }
  uint8_t header[4 + TOKEN_SIZE];
  uint32_t magic = STREAM_MAGIC;
  memcpy(header, &magic, sizeof magic);
  memcpy(header + sizeof magic, token, TOKEN_SIZE);
  if (send(fd, header, sizeof header, MSG_NOSIGNAL) != (ssize_t)sizeof header) {
    fail(f, errno, "STREAM", "header of a stream");
    close(fd);
    return -1;
  }
  return fd;
}

bool pump_open(struct pump *p, int from, int to, bool socket) {
  uint8_t *data = malloc(BUFFER_SIZE);
  if (data == NULL) return false;
  fcntl(from, F_SETFL, fcntl(from, F_GETFL) | O_NONBLOCK);
  fcntl(to, F_SETFL, fcntl(to, F_GETFL) | O_NONBLOCK);
  *p = (struct pump){.from = from, .to = to, .socket = socket, .data = data};
  return true;
}

bool pump_idle(const struct pump *p) { return p->data == NULL; }

void pump_close(struct pump *p) {
  if (pump_idle(p)) return;
  close(p->from);
  close(p->to);
  free(p->data);
  *p = (struct pump){.from = -1, .to = -1};
}

/* Two entries: what is waited for at `from`, then at `to`. An error at `to` is always waited for. */
size_t pump_prepare(const struct pump *p, struct pollfd *fds) {
  bool full = p->start < p->end;
  fds[0] = (struct pollfd){.fd = pump_idle(p) || full ? -1 : p->from, .events = POLLIN};
  fds[1] = (struct pollfd){.fd = pump_idle(p) ? -1 : p->to, .events = full ? POLLOUT : 0};
  return 2;
}

/* Half-closes the side that a terminal's other pump may still use, then lets go. */
static void end(struct pump *p) {
  if (p->socket)
    shutdown(p->to, SHUT_WR);
  else
    shutdown(p->from, SHUT_RD);
  pump_close(p);
}

void pump_run(struct pump *p, const struct pollfd *fds) {
  if (pump_idle(p)) return;
  if (fds[1].revents & (POLLERR | POLLHUP | POLLNVAL)) {
    end(p);
    return;
  }
  if (p->start == p->end && fds[0].revents != 0) {
    ssize_t n = read(p->from, p->data, BUFFER_SIZE);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) { /* a terminal whose last user has gone reads EIO */
      end(p);
      return;
    }
    p->start = 0;
    p->end = (size_t)n;
  }
  while (p->start < p->end) {
    ssize_t n = write(p->to, p->data + p->start, p->end - p->start);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
      end(p);
      return;
    }
    p->start += (size_t)n;
  }
}
